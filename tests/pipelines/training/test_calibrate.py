"""Calibration: its own rows, a promise they can keep, and a version that holds what was tested."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from anomaly_vae.artifacts.bundle import GRAPH, MANIFEST, Bundle, load_bundle
from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN
from anomaly_vae.errors import BundleError, CalibrationError, ConfigError, DataError
from anomaly_vae.evaluation.metrics import Evaluation, evaluate
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    DIGEST_TAG,
    INPUTS_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    TRAINED_RUN_TAG,
    TRAINED_TAG,
    Registry,
)
from anomaly_vae.simulation.transactions import simulate_transactions
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.registry.model_uri import LoadedModel, open_model
from pipelines.reports.model_card import card_of
from pipelines.training.calibrate import calibrate, show_localization
from pipelines.training.calibration_sample import check_labels, sample_of, zero_scores
from pipelines.training.train import inputs_digest, read_data, train
from tests.support.flows import Command, World
from tests.support.registries import changed, copy_registry

pytestmark = pytest.mark.usefixtures("blank_figures")


def client() -> MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri)


@pytest.fixture
def trained(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The trained model's URI, in a registry of this test's own."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    return world.trained.model_uri


# ---------------------------------------------------------------- spans and late labels


def test_newer_rows_do_not_move_the_spans_of_a_trained_model(
    place: Path, flow: Config, transactions: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Counted back from the newer rows, the calibration span would hold rows that trained."""
    everything, path = pq.read_table(transactions), place / "now.parquet"
    days = everything["TX_DATETIME"].to_numpy().astype("datetime64[D]")
    spans = {"train": None, "calibration": "14d", "test": "7d"}
    config = changed(flow, data__path=str(path), data__splits=spans)
    pq.write_table(everything.filter(days <= days.max() - 14), path)
    trained = train(config)
    pq.write_table(everything, path)
    newer = read_data(config)
    moved = set(newer.table["TRANSACTION_ID"].take(newer.assignment.rows(CALIBRATION)).to_pylist())
    of_training = trained.data.assignment.rows(TRAIN)
    assert not moved & set(trained.data.table["TRANSACTION_ID"].take(of_training).to_pylist())
    capfd.readouterr()
    calibrated = calibrate(config, trained.model_uri)
    assert calibrated.bundle.manifest["data"] == trained.fitted.bundle.manifest["data"]
    assert "are left out: they are newer than the model's data" in capfd.readouterr().err
    with pytest.raises(DataError, match="its calibration rows may have trained it"):
        calibrate(changed(config, data__splits={**spans, "calibration": "21d"}), trained.model_uri)


def late(config: Config, delay: str, **changes: Any) -> Config:
    return changed(config, data__label_delay=delay, **changes)


def test_young_rows_choose_no_threshold_by_labels_and_are_named_where_they_calibrate(
    place: Path, flow: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """The test split may be the earliest, so that only later rows are young."""
    splits = {
        "test": ["2024-02-01", "2024-03-10"],
        "train": ["2024-03-10", "2024-04-01"],
        "calibration": ["2024-04-01", "2024-05-01"],
    }
    data = read_data(late(flow, "7d", data__splits=splits))
    rows = data.assignment.rows(CALIBRATION)
    young = int(data.young[rows].sum())
    assert 0 < young < len(rows)
    said = f"{young} of {len(rows)} calibration rows are younger than data.label_delay"
    assert f"{said} and count as normal" in capfd.readouterr().err
    assert data.summary()["labels"]["young"]["calibration"] == young
    assert sample_of(data, CalibrationConfig(), zero_scores).n == len(rows)
    cost = CalibrationConfig(method="cost", costs=CostConfig(review=0.01))
    assert sample_of(data, cost, zero_scores).n == len(rows) - young
    check_labels(data, cost)
    assert f"{said}: their labels may change" in capfd.readouterr().err
    with pytest.raises(DataError, match="every calibration row is younger"):
        check_labels(replace(data, label_delay="29d"), cost)


@pytest.mark.parametrize("splits", [{"calibration": 0.2, "test": 0.2},
                                    {"calibration": "7d", "test": "7d"}])  # fmt: skip
def test_a_test_split_without_a_final_label_is_refused_before_training(
    place: Path, flow: Config, splits: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"every test row is younger than data\.label_delay"):
        read_data(late(flow, "30d", data__splits=splits))


# ---------------------------------------------------------------- the promise


def test_a_leak_is_found_although_the_test_split_has_too_few_known_anomalies(
    place: Path, flow: Config, transactions: Path
) -> None:
    """Frauds of the last weeks are mostly unknown yet, those of earlier splits are not."""
    table = pq.read_table(transactions)
    fraud = table["TX_FRAUD"].to_numpy() == 1
    fraud[np.arange(len(table)) >= 0.75 * len(table)] = False
    index = table.column_names.index("TX_FRAUD")
    known = table.set_column(index, "TX_FRAUD", pa.array(fraud.astype(np.int8)))
    closed = np.where(fraud, 2.5, np.arange(len(table)) % 5)
    pq.write_table(known.append_column("CASE", pa.array(closed)), place / "rows.parquet")
    config = changed(flow, data__path=str(place / "rows.parquet"), training__epochs=1)
    calibrated = calibrate(config, train(config).model_uri)
    report = calibrated.report
    card = card_of(LoadedModel(calibrated.bundle, "fraud", "1"))
    assert "compared on all labelled rows" in str(card)
    assert report.figures.anomalies == 0
    assert report.single_features[0].name == "CASE"
    assert "column 'CASE' alone separates anomalies: AUROC 1.000" in report.warnings[0]
    assert sum("alone separates" in warning for warning in report.warnings) == 1


def test_the_threshold_comes_from_the_calibration_rows_alone(champion: World) -> None:
    data, bundle = champion.trained.data, champion.calibrated.bundle
    scores = np.sort(champion.trained.fitted.bundle.scorer.score(data.part(CALIBRATION)))
    calibration = bundle.detector.calibration
    assert np.array_equal(calibration.scores, scores)
    assert calibration.alpha == 0.05
    keeps = np.floor(0.05 * (len(scores) + 1))
    assert calibration.threshold == scores[-int(keeps)]


def test_the_model_itself_is_untouched(champion: World) -> None:
    before, after = champion.trained.fitted.bundle, champion.calibrated.bundle
    assert (before.graph, before.weights) == (after.graph, after.weights)
    assert before.digest != after.digest
    assert {k for k in after.manifest if after.manifest[k] != before.manifest.get(k)} == {
        "calibration", "evaluation", "reference", "unusual"
    }  # fmt: skip


def test_the_bundle_knows_what_its_calibration_rows_looked_like(champion: World) -> None:
    data, bundle = champion.trained.data, champion.calibrated.bundle
    reference, evaluation = bundle.monitor.reference, champion.calibrated.evaluation
    share = evaluation.anomalies / evaluation.rows
    assert share < reference.anomaly_share < share + 0.05
    assert reference.columns is not None
    assert {column.name for column in reference.columns} == set(data.schema.names)
    assert {sum(column.counts) for column in reference.columns} == {len(data.calibration_rows)}


def test_other_data_is_refused(trained: str, flow: Config, tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(simulate_transactions(1_500, seed=9), path)
    with pytest.raises(DataError, match="trained on other rows or another split"):
        calibrate(changed(flow, data__path=str(path)), trained)
    assert Registry().models()[0]["versions"] == ["1"]


def test_late_labels_of_test_rows_may_arrive_after_training(
    place: Path, flow: Config, dataset: Dataset
) -> None:
    late = Path("late.csv")
    late.write_text("TRANSACTION_ID,label\n")
    config = changed(flow, data__labels="late.csv")
    model = train(config).model_uri
    rows = {split: dataset.assignment.rows(split)[0] for split in (TEST, TRAIN)}
    ids = {split: dataset.table["TRANSACTION_ID"][int(row)] for split, row in rows.items()}
    late.write_text(f"TRANSACTION_ID,label\n{ids[TEST]},anomaly\n")
    calibrated = calibrate(config, model)
    before = int(dataset.rows.anomaly[dataset.assignment.rows(TEST)].sum())
    assert calibrated.evaluation.anomalies == before + 1
    policy = json.loads(calibrated.version.tags[POLICY_TAG])
    assert policy["late_labels"] == {"places": [str(late.absolute())], "normal": ["0"]}
    late.write_text(f"TRANSACTION_ID,label\n{ids[TRAIN]},anomaly\n")
    with pytest.raises(DataError, match="before the late labels of training rows arrived"):
        calibrate(config, model)


def test_another_split_of_the_same_data_is_refused(trained: str, flow: Config) -> None:
    with pytest.raises(DataError, match="another split"):
        calibrate(changed(flow, data__splits__calibration=0.3), trained)


def test_one_changed_label_is_other_data(trained: str, flow: Config, tmp_path: Path) -> None:
    table = pq.read_table(flow.data.path)
    labels = table["TX_FRAUD"].to_numpy().copy()
    labels[-1] = 1 - labels[-1]
    index = table.column_names.index("TX_FRAUD")
    pq.write_table(table.set_column(index, "TX_FRAUD", pa.array(labels)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="other rows"):
        calibrate(changed(flow, data__path=str(tmp_path / "t.parquet")), trained)


@pytest.mark.parametrize(
    ("key", "value"), [("training__epochs", 2), ("score__draws", 4), ("model__depth", 1)]
)
def test_a_model_of_another_configuration_is_refused_by_key(
    trained: str, flow: Config, dataset: Dataset, key: str, value: int
) -> None:
    """Else `run` would later take the version for what that configuration makes."""
    with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
        calibrate(changed(flow, **{key: value}), trained, dataset)


def test_alpha_may_differ_from_what_was_planned_in_training(
    trained: str, flow: Config, dataset: Dataset
) -> None:
    stricter = calibrate(changed(flow, calibration__alpha=0.02), trained, dataset)
    assert stricter.bundle.detector.calibration.alpha == 0.02
    assert stricter.bundle.manifest["config"]["calibration"]["alpha"] == 0.02
    assert stricter.result()["version"] == "2"


def test_an_alpha_finer_than_the_rows_resolve_says_how_many_are_needed(
    world: World, trained: str, flow: Config, dataset: Dataset
) -> None:
    rows = len(dataset.part(CALIBRATION))
    with pytest.raises(CalibrationError, match=f"needs 999 .* there are {rows};"):
        calibrate(changed(flow, calibration__alpha=0.001), trained, dataset)
    assert Registry().models()[0]["versions"] == ["1"]


# ---------------------------------------------------------------- what is registered


def test_the_answer_names_the_version_and_its_figures(champion: World) -> None:
    answer = champion.calibrated.result()
    assert (answer["name"], answer["version"], answer["alias"]) == ("fraud", "1", CHALLENGER)
    assert answer["model_uri"] == "models:/fraud/1"
    assert answer["digest"] == champion.calibrated.bundle.digest
    assert answer["threshold"] == champion.calibrated.bundle.detector.calibration.threshold
    assert answer["metrics"] == champion.calibrated.evaluation.to_json()
    json.dumps(answer, allow_nan=False)


def test_the_registered_folder_is_the_bundle(champion: World) -> None:
    source = open_model("models:/fraud@challenger")
    bundle = champion.calibrated.bundle
    assert source.bundle.digest == bundle.digest
    assert source.bundle.files == bundle.files
    assert source.to_json() == {
        "name": "fraud", "version": "1", "alias": "challenger", "digest": bundle.digest
    }  # fmt: skip


def test_the_tags_tell_where_the_version_comes_from(champion: World) -> None:
    tags = Registry().version("fraud", "1").tags
    assert tags[DIGEST_TAG] == champion.calibrated.bundle.digest
    assert tags[INPUTS_TAG] == inputs_digest(champion.config, champion.trained.data)
    assert tags[TRAINED_TAG] == champion.trained.model_uri
    assert tags[TRAINED_RUN_TAG] == champion.trained.run_id
    policy = json.loads(tags[POLICY_TAG])
    assert policy["metric"] == "average_precision"
    assert (policy["label"], policy["positive"], policy["time"]) == ("TX_FRAUD", 1, "TX_DATETIME")


def test_the_version_has_a_signature_and_an_example(champion: World) -> None:
    info = mlflow.models.get_model_info("models:/fraud/1")
    assert info.signature.inputs.input_names() == list(champion.trained.data.schema.names)
    assert not any(column.required for column in info.signature.inputs)
    assert info.saved_input_example_info is not None


def test_the_test_split_is_kept_with_its_digest(champion: World) -> None:
    tags = Registry().version("fraud", "1").tags
    path = Path(Registry().download(tags[TEST_TAG]))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tags[TEST_DIGEST_TAG]
    assert pq.read_table(path).equals(champion.trained.data.test_table)


def test_the_evaluation_is_in_the_bundle_in_mlflow_and_true(champion: World) -> None:
    data, bundle = champion.trained.data, champion.calibrated.bundle
    found = bundle.detector.detect(data.part(TEST))
    anomaly = data.rows.anomaly[data.assignment.rows(TEST)]
    truth = evaluate(found, anomaly, bundle.detector.calibration)
    assert Evaluation.from_json(bundle.manifest["evaluation"]) == truth
    run = client().get_run(champion.calibrated.run_id)
    assert run.data.metrics["auroc"] == truth.auroc
    assert run.data.metrics["fpr"] == truth.fpr
    logged = Path(Registry().download(f"runs:/{run.info.run_id}/evaluation.json")).read_text()
    assert json.loads(logged) == truth.to_json()
    for name in ("scores", "highest"):
        with Image.open(
            Registry().download(f"runs:/{run.info.run_id}/plots/{name}.png")
        ) as picture:
            picture.verify()


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, "calibration.safetensors"])
def test_a_registered_file_that_was_altered_is_not_loaded(trained: str, name: str) -> None:
    path = Path(Registry().fetch("models:/fraud/1").path) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=name):
        open_model("models:/fraud@champion")


def test_calibrating_twice_makes_two_versions_of_one_digest(
    trained: str, flow: Config, dataset: Dataset
) -> None:
    again = calibrate(flow, trained, dataset)
    assert again.version.version == "2"
    assert again.bundle.digest == Registry().version("fraud", "1").tags[DIGEST_TAG]
    assert Registry().by_alias("fraud", CHALLENGER).version == "2"


def test_a_bundle_folder_can_be_calibrated_too(
    world: World, trained: str, flow: Config, dataset: Dataset
) -> None:
    folder = str(world.folder / world.trained.folder)
    again = calibrate(flow, folder, dataset)
    assert again.bundle.digest == world.calibrated.bundle.digest
    assert load_bundle(Registry().fetch("models:/fraud/2").path).calibration is not None


# ---------------------------------------------------------------- other thresholds


def wishing(flow: Config, **calibration: object) -> Config:
    content = {**flow.model_dump(mode="json"), "calibration": calibration}
    return validate_config(content)


@pytest.mark.parametrize(
    "calibration",
    [
        {"method": "certified", "alpha": 0.05, "delta": 0.1},
        {"method": "budget", "per_1000": 20},
        {"method": "budget", "per_day": 5},
        {"method": "cost", "costs": {"amount": "TX_AMOUNT", "review": 5}},
        {"method": "fbeta"},
        {"method": "recall_at_precision", "min_precision": 0.05},
    ],
    ids="-".join,
)
def test_each_threshold_is_chosen_registered_and_read_again(
    trained: str, flow: Config, dataset: Dataset, calibration: dict[str, Any]
) -> None:
    made = calibrate(wishing(flow, **calibration), trained, dataset)
    again = open_model(made.version.uri).bundle.detector.calibration
    chosen = made.bundle.detector.calibration
    assert (again.method, again.threshold) == (calibration["method"], chosen.threshold)
    assert again.figures == chosen.figures != {}
    assert made.result()["calibration"]["figures"] == chosen.figures
    normal = np.sort(made.bundle.scorer.score(dataset.part(CALIBRATION)))
    np.testing.assert_array_equal(again.scores, normal)


def test_labels_of_the_calibration_split_choose_a_threshold_by_cost(
    world: World, dataset: Dataset
) -> None:
    rows = dataset.assignment
    assert len(rows.calibration_anomalies), "the simulation has frauds between the calibration rows"
    time = dataset.rows.time
    assert time is not None
    split = time[[*rows.rows(CALIBRATION), *rows.calibration_anomalies]]
    assert (time[rows.calibration_anomalies] >= time[rows.rows(TRAIN)].max()).all()
    assert (time[rows.calibration_anomalies] < time[rows.rows(TEST)].min()).all()
    wish = wishing(world.config, method="cost", costs={"amount": "TX_AMOUNT", "review": 5})
    found = sample_of(dataset, wish.calibration, zero_scores)
    amounts = dataset.table["TX_AMOUNT"].to_numpy()[rows.calibration_anomalies]
    assert found.amounts is not None
    assert sorted(found.amounts) == sorted(amounts)
    assert found.weight == pytest.approx(1)
    days = np.ptp(split) / 86_400
    assert found.rows_per_day == pytest.approx((found.n + len(amounts)) / days)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"amount": "PRICE", "review": 1}, "names the column 'PRICE'; found"),
        ({"amount": "TX_DATETIME", "review": 1}, "TX_DATETIME': expected numbers, found timestamp"),
    ],
)
def test_amounts_that_cannot_be_read_are_refused(
    world: World, dataset: Dataset, costs: dict[str, Any], message: str
) -> None:
    wish = wishing(world.config, method="cost", costs=costs).calibration
    with pytest.raises(DataError, match=message):
        sample_of(dataset, wish, zero_scores)


def test_a_method_by_label_without_labels_is_refused_before_anything_is_trained(
    place: Path, flow: Config
) -> None:
    without = changed(wishing(flow, method="fbeta"), data__label=None)
    with pytest.raises(CalibrationError, match=r"name their column in data.label"):
        read_data(without)


def test_anomalies_count_as_often_as_in_all_the_data_where_there_is_no_time(flow: Config) -> None:
    """A share of them helps to choose the threshold; it stands for those of so many normal rows."""
    by_share = changed(wishing(flow, method="fbeta"), data__time=None)
    by_share = changed(by_share, data__splits__anomalies=0.5)
    data = load_dataset(by_share.data)
    found = sample_of(data, by_share.calibration, zero_scores)
    share = data.rows.anomaly.sum() / (~data.rows.anomaly).sum()
    assert len(found.anomalies) == round(0.5 * data.rows.anomaly.sum())
    assert found.weight * len(found.anomalies) / found.n == pytest.approx(share)


# ---------------------------------------------------------------- times for the monitor


@pytest.mark.parametrize(("ignored", "said"), [
    ((), "the calibration rows cover"), (("TX_DATETIME",), "the model does not read it"),
])  # fmt: skip
def test_what_the_monitor_can_check_is_said(
    flow: Config,
    trained: str,
    capfd: pytest.CaptureFixture[str],
    ignored: tuple[str, ...],
    said: str,
) -> None:
    config = changed(flow, data__ignore=(*flow.data.ignore, *ignored))
    data = load_dataset(config.data)
    model = train(config, data).model_uri if ignored else trained
    capfd.readouterr()
    bundle = calibrate(config, model, data).bundle
    told = capfd.readouterr().err
    assert "monitoring: the calibration rows cover" in told
    assert said in told
    days = len({int(time // 86_400) for time in data.rows.time[data.calibration_rows]})
    assert (bundle.cycle is not None) == (days >= 3)
    assert bundle.manifest["reference"].get("time") == (bundle.cycle and "TX_DATETIME")


def test_all_rows_of_groups_tell_how_traffic_varies(flow: Config, place: Path) -> None:
    """One row of each order calibrates, but all of them are monitored."""
    table = pq.read_table(flow.data.path)
    table = table.append_column("ORDER", pa.array(np.arange(len(table)) // 2))
    pq.write_table(table, place / "orders.parquet")
    path = str(place / "orders.parquet")
    keys = {"data__group": "ORDER", "calibration__unusual_alpha": None}
    grouped = changed(flow, data__path=path, **keys)
    data = load_dataset(grouped.data)
    bundle = calibrate(grouped, train(grouped, data).model_uri, data).bundle
    rows = data.assignment.rows(CALIBRATION)
    assert len(data.calibration_rows) < len(rows)
    assert bundle.cycle is not None
    flags = slice(bundle.monitor.widths[0], sum(bundle.monitor.widths[:2]))
    assert bundle.cycle.hours[:, flags].sum() == len(rows)
    values = bundle.cycle.hours[:, flags.stop :].sum() / (len(bundle.monitor.widths) - 2)
    assert values == len(rows) + len(data.assignment.calibration_anomalies)


def test_without_a_time_column_nothing_is_said_about_times(
    flow: Config, trained: str, capfd: pytest.CaptureFixture[str]
) -> None:
    untimed = changed(flow, data__time=None)
    data = load_dataset(untimed.data)
    bundle = calibrate(untimed, train(untimed, data).model_uri, data).bundle
    assert bundle.cycle is None
    assert "time" not in bundle.manifest["reference"]
    assert "monitoring:" not in capfd.readouterr().err


# ---------------------------------------------------------------- aliases


def challenger_version() -> str:
    return str(client().get_model_version_by_alias("fraud", CHALLENGER).version)


def test_a_version_can_be_registered_without_becoming_challenger(
    world: World, trained: str, command: Command
) -> None:
    path = world.folder / "flow.yaml"
    path.write_text(json.dumps(world.config.model_dump(mode="json")), encoding="utf-8")
    answer = command(
        "calibrate", path, "--model", trained, "--set", "calibration.alpha=0.1", "--no-alias"
    )
    assert answer.code == 0, answer.err
    assert (answer.json["version"], answer.json["alias"]) == ("2", None)
    assert "version 2 is registered without an alias, @challenger was not moved" in answer.err
    assert "anomaly-vae promote fraud --version 2" in answer.err
    assert challenger_version() == "1"
    assert not client().get_model_version("fraud", "2").aliases
    again = command("calibrate", path, "--model", trained, "--set", "calibration.alpha=0.1")
    assert (again.json["version"], again.json["alias"]) == ("3", CHALLENGER)
    assert "version 3 is @challenger now" in again.err
    assert challenger_version() == "3"


# ---------------------------------------------------------------- budgets per day


def budget(flow: Config, **keys: Any) -> Config:
    return wishing(flow, method="budget", per_day=2, **keys)


def test_a_budget_of_customers_a_day_is_recorded_and_kept_on_complete_days(
    world: World, trained: str, dataset: Dataset
) -> None:
    """The column of the customers is no feature."""
    config = budget(world.config, entity="CUSTOMER_ID")
    made = calibrate(config, trained, dataset)
    recorded = made.bundle.manifest
    assert recorded["config"]["calibration"]["entity"] == "CUSTOMER_ID"
    figures = recorded["calibration"]["figures"]
    time, split = dataset.rows.time, dataset.assignment
    assert time is not None
    rows = np.append(split.rows(CALIBRATION), split.calibration_anomalies)
    day = time[rows] // 86_400
    partial = {day.min(), day.max()}
    customer = dataset.table["CUSTOMER_ID"].to_numpy()[rows]
    flags = made.bundle.scorer.score(dataset.batch.take(rows)) > figures_threshold(made.bundle)
    counts = [
        len(set(customer[flags & (day == one)])) for one in np.unique(day) if one not in partial
    ]
    assert (figures["days"], figures["days_left_out"]) == (len(counts), 2)
    assert np.mean(counts) < figures["per_day"] == pytest.approx(np.mean(counts) + 1 / len(counts))
    assert figures["per_day"] <= 2
    assert figures["entity"] == "CUSTOMER_ID"
    card = json.dumps(card_of(LoadedModel(made.bundle)).to_json())
    assert "alerts a day (distinct CUSTOMER_ID)" in card
    assert "on 95 of 100 future days" in card


def figures_threshold(bundle: Bundle) -> float:
    return bundle.detector.calibration.threshold


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"entity": "CUSTOMER"}, r"the column 'CUSTOMER', which is not there; .*'CUSTOMER_ID'"),
        ({"entity": "colour"}, "which is not there; found .*; name one of them"),
    ],
)
def test_an_unknown_entity_is_refused_before_anything_is_trained(
    place: Path, flow: Config, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_data(budget(flow, **keys))


def test_a_budget_of_entities_needs_times(place: Path, flow: Config) -> None:
    untimed = changed(budget(flow, entity="CUSTOMER_ID"), data__time=None)
    with pytest.raises(CalibrationError, match=r"calibration.per_day needs a time column"):
        read_data(untimed)


def test_groups_of_the_calibration_split_represent_all_groups(flow: Config) -> None:
    """A fifth of the customers calibrate: their alerts count about five times."""
    grouped = changed(budget(flow, entity="CUSTOMER_ID"), data__group="CUSTOMER_ID")
    data = load_dataset(grouped.data)
    traffic = sample_of(data, grouped.calibration, zero_scores).traffic
    assert traffic is not None
    rows = np.append(data.assignment.rows(CALIBRATION), data.assignment.calibration_anomalies)
    share = len(rows) / (traffic.days.index >= 0).sum()
    assert 1 <= share < 1.5
    assert 2 < traffic.days.scale < 20
    assert len(traffic.days) >= 5


def test_days_follow_the_time_zone(flow: Config, dataset: Dataset) -> None:
    config = budget(flow, time_zone="Asia/Kolkata").calibration
    traffic = sample_of(dataset, config, zero_scores).traffic
    utc = sample_of(dataset, budget(flow).calibration, zero_scores).traffic
    assert traffic is not None
    assert utc is not None
    assert not np.array_equal(traffic.days.index, utc.days.index)


# ---------------------------------------------------------------- maps of images


@pytest.mark.parametrize(("low", "drawn"), [(0.8, True), (0.6, False)])
def test_it_says_whether_maps_localise_and_offers_the_head(
    low: float, drawn: bool, image_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"images": 20, "auroc": 0.9, "average_precision": 0.2, "base_rate": 0.03}
    manifest = {**image_bundle.manifest, "localization": figures | {"auroc_low": low}}
    show_localization(replace(image_bundle, manifest=manifest))
    said = capsys.readouterr().err
    assert f"of 20 inserted lesions, pixel AUROC 0.90 (95% interval from {low:.2f})" in said
    assert ("does not localise" not in said) is drawn
    assert ("model.localization_head: true" not in said) is drawn


def test_it_says_nothing_of_maps_that_were_not_tested(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    show_localization(bundle)
    assert capsys.readouterr().err == ""
