"""Calibration: its own rows, a promise they can keep, and a version that holds what was tested."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from anomaly_vae.artifacts.bundle import GRAPH, MANIFEST, load_bundle
from anomaly_vae.config import Config, validate_config
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
from pipelines.registry.model_uri import open_model
from pipelines.training.calibrate import calibrate
from pipelines.training.calibration_sample import sample_of, zero_scores
from pipelines.training.train import inputs_digest, read_data, train
from tests.support.flows import World
from tests.support.registries import changed, copy_registry


def client() -> MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri)


@pytest.fixture
def trained(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The trained model's URI, in a registry of this test's own."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    return world.trained.model_uri


# ---------------------------------------------------------------- the promise


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


def test_without_a_time_column_nothing_is_said_about_times(
    flow: Config, trained: str, capfd: pytest.CaptureFixture[str]
) -> None:
    untimed = changed(flow, data__time=None)
    data = load_dataset(untimed.data)
    bundle = calibrate(untimed, train(untimed, data).model_uri, data).bundle
    assert bundle.cycle is None
    assert "time" not in bundle.manifest["reference"]
    assert "monitoring:" not in capfd.readouterr().err
