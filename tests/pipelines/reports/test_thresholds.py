"""The command `thresholds` tells what other thresholds would come to, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pyarrow import csv

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.calibration.conformal import calibrate as conformal
from anomaly_vae.config import Config, validate_config
from anomaly_vae.errors import CalibrationError, ConfigError, DataError, NotCalibratedError
from anomaly_vae.lifecycle.registry import Registry
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.thresholds import Question, thresholds
from tests.support.flows import Command, World

LABEL = "TX_FRAUD"


def asked(world: World, out: Path, **fields: Any) -> dict[str, Any]:
    """Answer to a question about the transactions that the model was made from."""
    paths = [str(world.config.data.path)]
    return thresholds(world.source, Question(**{"paths": paths, **fields}), out / "t.png")


def test_the_table_is_complete_and_nothing_is_registered(
    champion: World, transactions: Path, command: Command, tmp_path: Path
) -> None:
    before = Registry().models()
    answer = command(
        "thresholds", "--model", "models:/fraud@champion", "--data", transactions,
        "--label", LABEL, "--entity", "CUSTOMER_ID", "--out", tmp_path / "t.png",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert Registry().models() == before
    found, n = answer.json, len(champion.calibrated.bundle.detector.calibration.scores)
    alphas = [row["alpha"] for row in found["thresholds"]]
    assert alphas == [alpha for alpha in (0.005, 0.01, 0.02, 0.05, 0.1) if alpha >= 1 / (n + 1)]
    assert [row["alpha"] for row in found["thresholds"] if row["current"]] == [0.05]
    assert found["smallest_alpha"] == 1 / (n + 1)
    assert f"resolve none below 1/(n + 1) = {1 / (n + 1):.3g}" in answer.err
    assert found["days"] > 55
    for row in found["thresholds"]:
        low, high = row["entities_per_day_interval"]
        assert low <= row["entities_per_day"] <= row["alerts_per_day"]
        assert row["entities_per_day"] <= high
        assert None not in (row["precision"], row["recall"], row["recall_day_interval"])
    assert "CUSTOMER_ID a day" in answer.err
    assert "on 95 of 100" in answer.err or "where 95 of 100 future days lie" in answer.err
    assert f"Picture: {tmp_path / 't.png'}" in answer.err
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.getpixel((1, 1))[:3] == (255, 255, 255)
        assert picture.width > 700


def test_the_own_row_is_what_evaluation_says(champion: World, tmp_path: Path) -> None:
    paths = [str(tmp_path / "test.parquet")]
    pq.write_table(champion.trained.data.test_table, paths[0])
    found = asked(champion, tmp_path, paths=paths, label=LABEL)
    own = next(row for row in found["thresholds"] if row["current"])
    evaluation = champion.calibrated.evaluation
    assert own["threshold"] == evaluation.threshold
    for name in ("recall", "precision", "fpr"):
        assert own[name] == pytest.approx(getattr(evaluation, name))
    assert own["alerts_per_1000"] == pytest.approx(1_000 * evaluation.flagged / evaluation.rows)


def test_calibration_rows_among_the_data_are_warned_of(
    champion: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked(champion, tmp_path, label=LABEL)
    assert "have the very score of a calibration row" in capfd.readouterr().err


def test_without_data_the_bundle_tells_what_it_knows(
    champion: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = asked(champion, tmp_path, paths=())
    own = next(row for row in found["thresholds"] if row["current"])
    others = [row for row in found["thresholds"] if not row["current"]]
    assert own["recall"] == champion.calibrated.evaluation.recall
    assert all(row["recall"] is None for row in others)
    assert all(row["alerts_per_1000_interval"][0] <= 1_000 * row["alpha"] for row in others)
    assert all(row["alerts_per_day"] is None for row in found["thresholds"])
    assert (found["rows"], found["days"], found["entity"]) == (None, None, None)
    told = capfd.readouterr().err
    assert "in 1,000 normal rows" in told
    assert "add --data PATH --label COLUMN" in told


def test_without_labels_alerts_are_counted_and_the_rest_is_said_to_be_unknown(
    champion: World, tmp_path: Path
) -> None:
    found = asked(champion, tmp_path)
    assert all(row["alerts_per_day"] is not None for row in found["thresholds"])
    assert all(row["precision"] is None for row in found["thresholds"])
    assert any("with --label" in text for text in found["unknown"])
    assert any("with --entity" in text for text in found["unknown"])


def test_late_labels_count_once_they_are_final(
    champion: World, transactions: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(transactions)
    late = tmp_path / "late.csv"
    csv.write_csv(table.select(["TRANSACTION_ID", LABEL]), late)
    unknown = pa.array(np.zeros(len(table), np.int64))
    position = table.column_names.index(LABEL)
    paths = [str(tmp_path / "unlabelled.parquet")]
    pq.write_table(table.set_column(position, LABEL, unknown), paths[0])
    asks = {"paths": paths, "label": LABEL, "labels": [str(late)]}
    told = asked(champion, tmp_path, label=LABEL)
    assert asked(champion, tmp_path, **asks)["thresholds"] == told["thresholds"]
    assert told["labels"] is None
    aged = asked(champion, tmp_path, **asks, label_delay="20d")
    assert 0 < aged["labels"]["young"] < len(table)
    for row, all_final in zip(aged["thresholds"], told["thresholds"], strict=True):
        assert row["alerts_per_day"] == all_final["alerts_per_day"]
    assert [row["precision"] for row in aged["thresholds"]] != [
        row["precision"] for row in told["thresholds"]
    ]
    young = asked(champion, tmp_path, **asks, label_delay="900d")
    assert "precision and recall: no row with a final label is a known anomaly" in young["unknown"]
    assert "younger rows are left out of the figures" in capfd.readouterr().err


@pytest.mark.parametrize("option", [{"labels": ["x.csv"]}, {"label_delay": "7d"}])
def test_options_about_labels_need_labels_and_rows(
    champion: World, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="add --data PATH"):
        asked(champion, tmp_path, paths=(), **option)
    with pytest.raises(ConfigError, match="add --label COLUMN"):
        asked(champion, tmp_path, **option)


def test_single_days_add_up(champion: World, tmp_path: Path) -> None:
    found = asked(champion, tmp_path, per_day=True, entity="TERMINAL_ID")
    counts = np.array([day["alerts"] for day in found["per_day"]])
    assert counts.shape == (found["days"], len(found["thresholds"]))
    means = [row["entities_per_day"] for row in found["thresholds"]]
    assert counts.mean(axis=0).tolist() == pytest.approx(means)
    assert found["per_day"][0]["day"].startswith("2024-02")


@pytest.mark.parametrize(
    ("fields", "fault", "message"),
    [
        ({"paths": (), "label": LABEL}, ConfigError, "--label needs rows .* add --data PATH"),
        ({"paths": (), "per_day": True}, ConfigError, "--per-day needs rows"),
        ({"paths": (), "entity": "CUSTOMER_ID"}, ConfigError, "--entity needs rows"),
        ({"entity": "CARD"}, DataError, "--entity 'CARD' is not in the data; found 'TRANSACTION"),
        ({"label": "fraud"}, DataError, "the label column 'fraud' is not there"),
        ({"choose": 1e-4}, CalibrationError, "resolve no alpha below .* calibrate on more rows"),
    ],
)
def test_a_question_that_cannot_be_answered_names_the_remedy(
    champion: World, tmp_path: Path, fields: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=message):
        asked(champion, tmp_path, **fields)
    assert not list(tmp_path.glob("*.png"))


def test_rows_without_times_or_of_one_day_are_not_counted_by_day(
    champion: World, transactions: Path, tmp_path: Path
) -> None:
    table = pq.read_table(transactions)
    untimed, short = str(tmp_path / "untimed.parquet"), str(tmp_path / "short.parquet")
    pq.write_table(table.drop_columns("TX_DATETIME"), untimed)
    pq.write_table(table.slice(0, 40), short)
    found = asked(champion, tmp_path, paths=[untimed], label=LABEL)
    assert "alerts a day: the rows have no times" in found["unknown"]
    assert found["thresholds"][-1]["recall"] is not None
    with pytest.raises(DataError, match="--per-day counts by day, and the rows have no times"):
        asked(champion, tmp_path, paths=[untimed], per_day=True)
    with pytest.raises(DataError, match="of the days with rows are complete, at least 2"):
        asked(champion, tmp_path, paths=[short], entity="CUSTOMER_ID")
    assert any("are complete, at least 2" in text
               for text in asked(champion, tmp_path, paths=[short])["unknown"])  # fmt: skip


def test_rows_that_cannot_be_scored_are_counted_apart(
    champion: World, transactions: Path, tmp_path: Path
) -> None:
    table = pq.read_table(transactions)
    amounts = table["TX_AMOUNT"].to_numpy().copy()
    amounts[:3] = np.inf
    index = table.column_names.index("TX_AMOUNT")
    path = str(tmp_path / "infinite.parquet")
    pq.write_table(table.set_column(index, "TX_AMOUNT", pa.array(amounts)), path)
    found = asked(champion, tmp_path, paths=[path], label=LABEL)
    assert (found["rows"], found["rejected"]) == (1_497, 3)


def test_a_chosen_row_is_a_configuration_that_gives_its_threshold(
    champion: World, flow: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = asked(champion, tmp_path, label=LABEL, choose=0.03)
    assert found["configuration"] in capfd.readouterr().err + "\n"
    row = next(row for row in found["thresholds"] if row["alpha"] == 0.03)
    lines = yaml.safe_load(found["configuration"])
    assert lines == {"calibration": {"method": "conformal", "alpha": 0.03}}
    validate_config({**flow.model_dump(), **lines})
    scores = champion.calibrated.bundle.detector.calibration.scores
    assert conformal(scores, 0.03).threshold == row["threshold"]
    assert f"# expected recall: {row['recall']:.3g} (" in found["configuration"]
    own = yaml.safe_load(asked(champion, tmp_path, choose=0.05)["configuration"])
    assert own == {"calibration": {"method": "conformal", "alpha": 0.05}}


def test_images_have_a_table_without_days(image_calibrated: Bundle, tmp_path: Path) -> None:
    source = LoadedModel(image_calibrated)
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    names = [f"{i}.png" for i in range(12)]
    for name in names:
        pixels = rng.integers(0, 255, (48, 48), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / name)
    manifest = tmp_path / "scans" / "manifest.csv"
    rows = [f"{name},{int(i < 4)}" for i, name in enumerate(names)]
    manifest.write_text("\n".join(["path,lesion", *rows]), encoding="utf-8")
    labelled = Question([str(manifest)], "lesion")
    found = thresholds(source, labelled, tmp_path / "a.png")
    assert (found["rows"], found["anomalies"], found["days"]) == (12, 4, None)
    assert all(row["recall"] is not None for row in found["thresholds"])
    assert "alerts a day: the rows have no times" in found["unknown"]
    plain = thresholds(source, Question([str(tmp_path / "scans")]), tmp_path / "b.png")
    assert (plain["rows"], plain["anomalies"]) == (12, None)
    with pytest.raises(DataError, match="--per-day counts by day, and the rows have no times"):
        thresholds(source, Question([str(manifest)], per_day=True), tmp_path / "c.png")


def test_a_model_without_a_threshold_and_a_picture_of_another_form_are_refused(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(NotCalibratedError, match="run: anomaly-vae calibrate"):
        thresholds(LoadedModel(world.trained.fitted.bundle), Question(), tmp_path / "t.png")
    with pytest.raises(ConfigError, match=r"must end in .png"):
        thresholds(world.source, Question(), tmp_path / "t.pdf")


def test_an_alpha_beyond_0_and_1_is_wrong_usage(champion: World, command: Command) -> None:
    answer = command("thresholds", "--model", "models:/fraud@champion", "--choose", "1.5")
    assert (answer.code, answer.out) == (2, "")
    assert "--choose 1.5 must lie between 0 and 1" in answer.err


@pytest.mark.parametrize("version", ["format-1", "format-2"])
@pytest.mark.parametrize("kind", ["table", "image"])
def test_bundles_of_older_formats_are_told_of(
    fixtures: Path, tmp_path: Path, version: str, kind: str
) -> None:
    source = LoadedModel(load_bundle(fixtures / version / kind))
    found = thresholds(source, Question(choose=0.2), tmp_path / "t.png")
    own = next(row for row in found["thresholds"] if row["current"])
    assert own["threshold"] == source.bundle.detector.calibration.threshold
    assert "alpha: 0.2" in found["configuration"]
