"""What an evaluation tells beyond its figures, from decisions to the bundle and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.splitting import CALIBRATION, TEST
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.lifecycle.registry import Registry
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.images.dataset import ImageDataset, read_labelled
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.image_metadata import file_metadata, image_statistics
from pipelines.reports.labelled import Judged, Labelled, judge
from pipelines.reports.report import Reporter, ReportOptions, evaluate_files
from pipelines.training.train import read_data
from tests.support.flows import Command, World
from tests.support.registries import changed

pytestmark = pytest.mark.usefixtures("blank_figures")

LABEL = {"label": "TX_FRAUD", "positive": 1, "time": "TX_DATETIME"}


@pytest.fixture
def tested(calibrated: Bundle, dataset: Dataset) -> Judged:
    """The test split, judged."""
    return judge(calibrated.detector, Labelled.of(dataset.test_table, LABEL))


# ---------------------------------------------------------------- what a report holds


def test_the_bundle_keeps_the_whole_report(champion: World) -> None:
    manifest = champion.calibrated.bundle.manifest["evaluation"]
    assert EvaluationReport.from_json(manifest) == champion.calibrated.report
    assert (
        EvaluationReport.from_json(json.loads(json.dumps(manifest))) == champion.calibrated.report
    )


def test_a_report_of_an_older_version_has_its_figures(champion: World) -> None:
    figures = champion.calibrated.evaluation
    assert EvaluationReport.from_json(figures.to_json()) == EvaluationReport(figures)


def test_levels_and_zeros_and_ones_are_compared_where_they_have_enough_rows(tested: Judged) -> None:
    report = Reporter(tested).report()
    columns = {one.column for one in report.slices}
    assert "TX_CHANNEL" in columns
    assert "TX_DURING_WEEKEND" in columns
    weekend = [one for one in report.slices if one.column == "TX_DURING_WEEKEND"]
    assert sum(one.rows for one in weekend) == report.figures.rows
    assert sum(one.anomalies for one in weekend) == report.figures.anomalies


def test_other_columns_are_compared_where_they_are_asked_for(tested: Judged) -> None:
    report = Reporter(tested, ReportOptions(slices=("TX_FRAUD", "not there"))).report()
    assert {(one.level, one.rows - one.anomalies) for one in report.slices[:1]} == {
        ("0", report.figures.rows - report.figures.anomalies)
    }


def test_cards_are_counted_by_day_where_they_are_named(tested: Judged) -> None:
    without = Reporter(tested).report().figures
    assert without.card_precision is without.card_precision_interval is None
    figures = Reporter(tested, ReportOptions(top=3, entity="CUSTOMER_ID")).report().figures
    assert figures.card_precision is not None
    assert figures.card_precision_interval is not None
    low, high = figures.card_precision_interval
    assert low <= figures.card_precision <= high


def test_rows_without_a_card_are_cards_of_their_own(calibrated: Bundle, dataset: Dataset) -> None:
    table = dataset.test_table.append_column("card", pa.nulls(len(dataset.test_table), pa.string()))
    judged = judge(calibrated.detector, Labelled.of(table, LABEL))
    figures = Reporter(judged, ReportOptions(top=1, entity="card")).report().figures
    rows = np.arange(len(table))
    alone = table.set_column(len(table.column_names) - 1, "card", pa.array(rows))
    again = judge(calibrated.detector, Labelled.of(alone, LABEL))
    assert figures.card_precision is not None
    assert Reporter(again, ReportOptions(top=1, entity="card")).report().figures == figures


def test_costs_are_saved_by_the_amounts_of_the_frauds(tested: Judged) -> None:
    costs = CostConfig(amount="TX_AMOUNT", review=2.0)
    figures = Reporter(tested, ReportOptions(costs=costs)).report().figures
    known, anomaly = tested.known, tested.labelled.anomaly
    flags = tested.decisions(known).is_anomaly
    amounts = tested.labelled.table["TX_AMOUNT"].to_numpy()
    saved = amounts[anomaly & flags].sum() - 2 * flags.sum()
    assert figures.cost_saved == pytest.approx(1_000 * saved / len(flags))
    assert figures.cost_saved_interval


def test_without_amounts_no_cost_is_told(tested: Judged, capfd: pytest.CaptureFixture[str]) -> None:
    figures = (
        Reporter(tested, ReportOptions(costs=CostConfig(amount="nothing", review=1)))
        .report()
        .figures
    )
    assert figures.cost_saved is None
    assert "without an amount in 'nothing'" in capfd.readouterr().err


def test_manifests_of_older_versions_wish_for_nothing(champion: World) -> None:
    config = dict(champion.calibrated.bundle.manifest["config"])
    assert ReportOptions.of(config).top == 100
    del config["evaluation"]
    assert ReportOptions.of(config) == ReportOptions()


def test_a_column_that_gives_the_label_away_is_named(calibrated: Bundle, dataset: Dataset) -> None:
    table = dataset.table  # all rows, for enough frauds
    frauds = table["TX_FRAUD"].to_numpy()
    index = table.column_names.index("TX_AMOUNT")
    leaking = table.set_column(index, "TX_AMOUNT", pa.array(np.where(frauds, 5e4, 5.0)))
    report = Reporter(judge(calibrated.detector, Labelled.of(leaking, LABEL))).report()
    assert report.single_features[0].name == "TX_AMOUNT"
    assert any("'TX_AMOUNT' alone" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("key", "value"), [("evaluation__entity", "CARD"), ("evaluation__slices", ["REGION"])]
)
def test_columns_that_are_not_there_are_refused_before_the_fit(
    champion: World, flow: Config, key: str, value: Any
) -> None:
    name = key.replace("__", ".")
    with pytest.raises(DataError, match=rf"{name} names the column '(CARD|REGION)'"):
        read_data(changed(flow, **{key: value}))


# ---------------------------------------------------------------- the command and MLflow


def test_rows_that_calibrated_are_noticed(
    world: World, dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "again.parquet"
    pq.write_table(dataset.table.take(pa.array(dataset.assignment.rows(CALIBRATION))), path)
    answer = evaluate_files(LoadedModel(world.calibrated.bundle), [str(path)], "TX_FRAUD")
    rows = len(dataset.assignment.rows(CALIBRATION))
    assert answer["twins"]["rows"] == rows
    pq.write_table(dataset.test_table, path)
    fresh = evaluate_files(LoadedModel(world.calibrated.bundle), [str(path)], "TX_FRAUD")
    assert fresh["warnings"] == []
    assert (
        f"{rows} of {rows} test rows have the very score of a calibration row"
        in (answer["warnings"][0])
    )
    assert "Warning: " in capfd.readouterr().err


def test_the_answer_has_slices_and_the_top_that_was_asked_for(
    champion: World, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "test.parquet"
    pq.write_table(champion.trained.data.test_table, path)
    answer = command("evaluate", "--model", "models:/fraud/1", "--data", path, "--label",
                     "TX_FRAUD", "--top", 2)  # fmt: skip
    assert answer.code == 0
    assert answer.json["metrics"]["top"] == 2
    assert answer.json["slices"] == champion.calibrated.report.details()["slices"]
    assert answer.json["warnings"] == []


def test_young_labels_are_left_out_and_the_answer_says_how_many(
    champion: World, tmp_path: Path, command: Command
) -> None:
    path, table = tmp_path / "test.parquet", champion.trained.data.test_table
    pq.write_table(table, path)
    times = table["TX_DATETIME"].to_numpy()
    arguments = ("evaluate", "--model", "models:/fraud/1", "--data", path, "--label", "TX_FRAUD")
    answer = command(*arguments, "--label-delay", "last 72h")
    final = times <= times.max() - np.timedelta64(72, "h")
    assert answer.json["metrics"]["rows"] == final.sum() < len(table)
    assert answer.json["labels"] == {
        "delay": "72h",
        "rows": len(table),
        "young": int((~final).sum()),
        "mature": float(final.mean()),
        "youngest_mature_day": str(times[final].max())[:10],
    }
    assert f"{(~final).sum()} younger rows are left out of the figures" in answer.err
    everything = command(*arguments, "--label-delay", "0d")
    assert everything.json["metrics"]["rows"] == len(table)
    assert "labels" not in everything.json
    refused = command(*arguments, "--label-delay", "99d")
    assert refused.code == 1
    assert "each labelled row is younger than 99d" in refused.err
    assert "expected a span such as 28d" in command(*arguments, "--label-delay", "soon").err


def test_calibration_rows_unlike_the_test_rows_are_a_warning(
    champion: World, tmp_path: Path
) -> None:
    table = champion.trained.data.test_table
    amounts = pa.array(table["TX_AMOUNT"].to_numpy() * 20)
    path = tmp_path / "dear.parquet"
    at = table.column_names.index("TX_AMOUNT")
    pq.write_table(table.set_column(at, "TX_AMOUNT", amounts), path)
    answer = evaluate_files(champion.source, [str(path)], "TX_FRAUD")
    assert any("are not exchangeable" in warning for warning in answer["warnings"])


def test_findings_plots_and_card_are_logged(champion: World) -> None:
    def logged(name: str) -> Path:
        return Path(Registry().download(f"runs:/{champion.calibrated.run_id}/{name}"))

    report = champion.calibrated.report
    assert json.loads(logged("findings.json").read_text()) == report.details()
    for name in ("scores", "p_values", "ranking", "slices", "highest"):
        assert logged(f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
    card = json.loads(logged("card/card.json").read_text())
    assert card["title"] == "Model card: fraud"
    page = logged("card/card.html").read_text()
    assert champion.calibrated.bundle.digest in page
    assert page.count("data:image/png;base64,") == 6


# ---------------------------------------------------------------- images


def test_facts_of_files_are_those_of_their_headers(image_dataset: ImageDataset) -> None:
    files = image_dataset.files[:4]
    facts = file_metadata(files)
    assert np.asarray(facts["size in bytes"]).tolist() == [f.stat().st_size for f in files]
    assert set(facts["format"].names) == {"PNG"}  # type: ignore[union-attr]  # Levels
    assert facts["suffix"].names == (".png",)  # type: ignore[union-attr]


def test_damaged_and_absent_files_have_no_facts(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    facts = file_metadata([tmp_path / "cut.png", tmp_path / "absent.png"])
    np.testing.assert_array_equal(facts["size in bytes"], [8.0, np.nan])


def test_a_glance_is_the_mean_the_deviation_and_the_border(image_dataset: ImageDataset) -> None:
    images = np.asarray(image_dataset.batch.values["image"])[:, 0].astype(np.float64)
    seen = image_statistics(image_dataset.batch)
    np.testing.assert_allclose(seen["brightness"], images.mean((1, 2)))
    np.testing.assert_allclose(seen["contrast"], images.std((1, 2)))
    edge = np.concatenate(
        [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1
    )
    if images.shape[1] < 32:
        np.testing.assert_allclose(seen["brightness at the border"], edge.mean(1))


def test_files_of_another_kind_give_anomalies_away(
    image_calibrated: Bundle, image_dataset: ImageDataset, tmp_path: Path
) -> None:
    rows = image_dataset.assignment.rows(TEST)
    anomaly = image_dataset.rows.anomaly[rows]
    files = []
    for number, (row, odd) in enumerate(zip(rows, anomaly, strict=True)):
        content = image_dataset.files[row].read_bytes()
        path = tmp_path / f"{number}.png"
        path.write_bytes(content + (b"\0" * 100_000 if odd else b""))
        files.append(path)
    truth = Labelled(
        image_dataset.table.take(pa.array(rows)),
        anomaly,
        np.zeros(len(rows), bool),
        batch=image_dataset.part(TEST),
        files=tuple(files),
    )
    report = Reporter(judge(image_calibrated.detector, truth)).report()
    assert report.single_features[0].name == "size in bytes"
    assert report.warnings[0].startswith("the file's size in bytes alone separates anomalies")


def test_other_columns_of_a_manifest_can_be_compared(
    manifest: Path, image_calibrated: Bundle
) -> None:
    lines = manifest.read_text().splitlines()
    sites = ["site", *("east" if i % 2 else "west" for i in range(len(lines) - 1))]
    path = manifest.with_name("sites.csv")
    path.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, sites, strict=True)) + "\n")
    schema = image_calibrated.scorer.schema
    assert isinstance(schema, ImageSchema)
    table, batch, files = read_labelled([str(path)], schema, "label")
    assert table.column_names == ["path", "frame", "label", "group", "site"]
    truth = Labelled.of(table, {"label": "label", "positive": 1}, batch, files)
    report = Reporter(
        judge(image_calibrated.detector, truth), ReportOptions(slices=("site",))
    ).report()
    assert sorted(one.name for one in report.slices) == ["site = east", "site = west"]


# ---------------------------------------------------------------- late labels


def test_late_labels_are_merged_into_the_rows_of_an_evaluation(
    champion: World, tmp_path: Path, command: Command
) -> None:
    table = champion.trained.data.test_table
    path, late = tmp_path / "test.parquet", tmp_path / "late.csv"
    pq.write_table(table, path)
    ids = table["TRANSACTION_ID"].filter(pa.array(table["TX_FRAUD"].to_numpy() == 0)).to_pylist()
    late.write_text("TRANSACTION_ID,label\n" + "".join(f"{i},anomaly\n" for i in ids[:3]))
    arguments = ("evaluate", "--model", "models:/fraud/1", "--data", path, "--label", "TX_FRAUD")
    plain, matured = command(*arguments), command(*arguments, "--labels", late)
    counts = [answer.json["metrics"]["anomalies"] for answer in (plain, matured)]
    assert counts[1] == counts[0] + 3
    assert "3 labels changed (3 to anomaly)" in matured.err
    assert "late labels" not in plain.err


def test_late_labels_without_ids_are_refused(
    champion: World, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "test.parquet"
    pq.write_table(champion.trained.data.test_table.drop(["TRANSACTION_ID"]), path)
    answer = command("evaluate", "--model", "models:/fraud/1", "--data", path, "--label",
                     "TX_FRAUD", "--labels", "late.csv")  # fmt: skip
    assert answer.code == 1
    assert "--labels needs a model of tables that was trained with data.id" in answer.err
