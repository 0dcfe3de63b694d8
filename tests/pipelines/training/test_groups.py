"""A model calibrated by groups, from the configuration to the last consumer; and by weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import weighted_p_values
from anomaly_vae.calibration.contamination_test import contamination_test
from anomaly_vae.calibration.thresholds import check_sample
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import TEST, VALIDATION, thin_by_ratio
from anomaly_vae.errors import CalibrationError, DataError
from anomaly_vae.estimators.tabular import TabularVAEDetector
from anomaly_vae.lifecycle.registry import Registry
from pipelines.batch.result.folder import SUMMARY
from pipelines.batch.tables import score_files
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.promotion.promote import promote
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.labelled import Labelled, judge
from pipelines.training.calibrate import Calibrated, calibrate
from pipelines.training.calibration_sample import model_sample, sample_of, zero_scores
from pipelines.training.train import read_data, train
from tests.support.flows import Command, World
from tests.support.registries import changed, copy_registry

pytestmark = pytest.mark.usefixtures("blank_figures")

COLUMN = "TX_CHANNEL"
WEIGHT = "ratio"


@pytest.fixture(scope="module")
def place(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry, in which one module works."""
    folder = tmp_path_factory.mktemp("groups")
    with pytest.MonkeyPatch.context() as patch:
        copy_registry(world.folder, folder, patch)
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")


@pytest.fixture(scope="module")
def grouped(place: Path, world: World, flow: Config, dataset: Dataset) -> Calibrated:
    """Version 2: the same model by channels; 39 rows resolve an alpha of 0.025."""
    config = changed(flow, calibration__group_by=COLUMN, calibration__alpha=0.025)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        return calibrate(config, world.trained.model_uri, dataset)


def own(made: Calibrated) -> dict[str, Any]:
    groups = made.bundle.detector.calibration.groups
    assert groups
    return dict(groups.by_level)


# ---------------------------------------------------------------- what is calibrated


def test_each_channel_has_the_scores_of_its_own_calibration_rows(
    grouped: Calibrated, dataset: Dataset
) -> None:
    rows = dataset.batch.take(dataset.calibration_rows)
    scores, channel = grouped.bundle.scorer.score(rows), rows.values[COLUMN]
    calibrations = own(grouped)
    assert len(calibrations) >= 3
    for name, one in calibrations.items():
        mine = channel.codes == channel.names.index(name)  # type: ignore[union-attr]
        np.testing.assert_array_equal(one.scores, np.sort(scores[mine]))
    told = grouped.bundle.manifest["calibration"]
    assert told["groups"]["column"] == COLUMN
    counted = sum(one["n"] for one in told["groups"]["own"].values())
    counted += sum(told["figures"]["small_groups"].values()) + told["figures"]["ungrouped"]
    assert counted == told["n"] == len(rows)


def test_what_held_out_training_rows_score_is_compared(
    grouped: Calibrated, dataset: Dataset
) -> None:
    told = grouped.bundle.manifest["calibration"]["figures"]["contamination"]
    scorer, held_out = grouped.bundle.scorer, dataset.part(VALIDATION)
    calibrating = dataset.batch.take(dataset.calibration_rows)
    losses = (np.sort(scorer.scored(rows).terms.loss) for rows in (calibrating, held_out))
    assert told == contamination_test(*losses, np.sort(scorer.score(calibrating))).to_json()
    assert told["held_out"] == len(held_out)
    assert 0 < told["p_value"] <= 1


def test_the_evaluation_and_the_gate_decide_by_group(grouped: Calibrated, dataset: Dataset) -> None:
    detector = grouped.bundle.detector
    anomaly = dataset.rows.anomaly[dataset.assignment.rows(TEST)]
    found = detector.detect(dataset.part(TEST))
    assert grouped.evaluation.flagged == int(found.is_anomaly.sum())
    truth = Labelled.of(dataset.test_table, {"label": "TX_FRAUD", "positive": 1})
    judged = judge(detector, truth)
    assert judged.evaluate().fpr == grouped.evaluation.fpr == found.is_anomaly[~anomaly].mean()
    some = np.arange(len(anomaly)) % 3 == 0
    np.testing.assert_array_equal(judged.decisions(some).p_value, found.p_value[some])
    single = detector.calibration.flags(found.score)
    assert (single != found.is_anomaly).any(), "or groups make no difference here"


def test_it_is_promoted_by_its_own_decisions(grouped: Calibrated) -> None:
    decided = promote(Registry(), "fraud", grouped.version.version)
    assert decided.challenger_evaluation
    assert decided.challenger_evaluation.flagged == grouped.evaluation.flagged


# ---------------------------------------------------------------- who decides by them


def test_every_consumer_says_the_same(
    grouped: Calibrated, transactions: Path, tmp_path: Path
) -> None:
    """The batch, the pyfunc of MLflow and the estimator, against the detector."""
    table = pq.read_table(transactions)
    truth = grouped.bundle.detector.detect(grouped.bundle.scorer.schema.from_arrow(table))
    assert truth.group is not None
    source = LoadedModel(grouped.bundle, "fraud", "2", "challenger")
    summary = score_files(source, [str(transactions)], tmp_path / "out", explain=1)
    part = pq.read_table(tmp_path / "out" / summary["parts"][0])
    assert part["group"].to_pylist() == truth.group.tolist()
    assert part["threshold"].to_pylist() == truth.threshold.tolist()  # type: ignore[union-attr]
    np.testing.assert_array_equal(part["p_value"], truth.p_value)
    np.testing.assert_array_equal(part["is_anomaly"], truth.is_anomaly)
    thresholds = {name: one.threshold for name, one in own(grouped).items()}
    assert (summary["group"], summary["group_thresholds"]) == (COLUMN, thresholds)

    model = mlflow.pyfunc.load_model(f"models:/fraud/{grouped.version.version}")
    frame = table.to_pandas()[model.metadata.get_input_schema().input_names()]
    answers = model.predict(frame)
    assert list(answers) == model.metadata.get_output_schema().input_names()
    assert answers["group"].astype(object).where(answers["group"].notna(), None).tolist() == (
        truth.group.tolist()
    )
    np.testing.assert_array_equal(answers["p_value"], truth.p_value)

    estimator = TabularVAEDetector.load(grouped.bundle.save(tmp_path / "bundle"))
    np.testing.assert_array_equal(estimator.predict(frame) == -1, truth.is_anomaly)
    np.testing.assert_array_equal(estimator.p_values(frame), truth.p_value)


@pytest.mark.parametrize("q", [0.3, 0.9])
def test_false_discoveries_are_of_all_groups_together(
    grouped: Calibrated, transactions: Path, tmp_path: Path, q: float
) -> None:
    source = LoadedModel(grouped.bundle, "fraud", "2", "challenger")
    summary = score_files(source, [str(transactions)], tmp_path / "out", fdr=q)
    part = pq.read_table(tmp_path / "out" / summary["parts"][0])
    flags = part["is_anomaly"].to_numpy()
    truth = false_discovery_control(part["p_value"].to_numpy()) <= q
    np.testing.assert_array_equal(flags, truth)
    thresholds = part["threshold"].to_numpy(zero_copy_only=False).astype(float)
    above = part["score"].to_numpy() > np.nan_to_num(thresholds, nan=np.inf)
    np.testing.assert_array_equal(above, flags)
    assert json.loads((tmp_path / "out" / SUMMARY).read_text()) == summary
    assert set(summary["group_thresholds"]) == set(own(grouped))


def test_an_id_called_like_an_answer_is_refused_only_there(
    grouped: Calibrated, world: World, transactions: Path, tmp_path: Path
) -> None:
    table = pq.read_table(transactions)
    names = ["group" if name == "TRANSACTION_ID" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), tmp_path / "t.parquet")
    renamed = [
        LoadedModel(_with_id(made.bundle, "group"), "x", None, None)
        for made in (world.calibrated, grouped)
    ]
    path = [str(tmp_path / "t.parquet")]
    assert score_files(renamed[0], path, tmp_path / "out")["scored"] == len(table)
    with pytest.raises(DataError, match="has the name of a result column"):
        score_files(renamed[1], path, tmp_path / "other")


def _with_id(bundle: Bundle, name: str) -> Bundle:
    config = bundle.manifest["config"]
    data = {**config["data"], "id": name}
    return replace(bundle, manifest={**bundle.manifest, "config": {**config, "data": data}})


def test_rows_without_the_column_are_told_of(
    grouped: Calibrated, dataset: Dataset, command: Command, tmp_path: Path
) -> None:
    uri, output = grouped.version.uri, str(tmp_path / "scores")
    pq.write_table(dataset.test_table, tmp_path / "whole.parquet")
    pq.write_table(dataset.test_table.drop_columns([COLUMN]), tmp_path / "without.parquet")
    for name, told in (("whole", False), ("without", True)):
        path = str(tmp_path / f"{name}.parquet")
        scored = command("score", "--model", uri, "--input", path, "--output", output)
        judged = command("evaluate", "--model", uri, "--data", path, "--label", "TX_FRAUD")
        for answer in (scored, judged):
            assert (f"there is no column '{COLUMN}'" in " ".join(answer.err.split())) == told


def test_inspect_shows_the_groups(grouped: Calibrated, command: Command) -> None:
    answer = command("inspect", f"models:/fraud/{grouped.version.version}")
    assert answer.code == 0
    words = answer.err.partition("Groups")[2]
    for name, one in own(grouped).items():
        assert name in words
        assert f"{one.threshold:.4g}" in words
    assert "of all rows" in words
    assert "The guarantee is about the normal rows of each group" in words
    assert "The guarantee is about normal rows as a whole" not in words
    assert answer.json["calibration"]["groups"]["column"] == COLUMN


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("CUSTOMER_ID", r"which the model does not read.* name one of 'TX_DURING_WEEKEND', 'TX_DU"),
        ("TX_FRAUD", "which the model does not read"),
        ("absent", "which the model does not read"),
        ("TX_AMOUNT", "which is numeric and has no groups; name a categorical or binary one"),
        ("TX_DATETIME", "which is datetime and has no groups"),
    ],
)
def test_a_column_that_makes_no_groups_is_refused_before_training(
    flow: Config, column: str, message: str
) -> None:
    with pytest.raises(
        DataError, match=f"calibration.group_by names the column '{column}'.*{message}"
    ):
        read_data(changed(flow, calibration__group_by=column))


def test_groups_that_are_all_too_small_are_refused_before_training(flow: Config) -> None:
    with pytest.raises(CalibrationError, match=r"no level of 'TX_CHANNEL' has the 199 normal cal"):
        read_data(changed(flow, calibration__group_by=COLUMN, calibration__alpha=0.005))


def test_levels_that_training_did_not_keep_have_no_threshold(
    world: World, flow: Config, dataset: Dataset
) -> None:
    wish = changed(flow, calibration__group_by=COLUMN).calibration
    raw = sample_of(dataset, wish, zero_scores).levels
    bundle = world.trained.fitted.bundle
    scored = bundle.scorer.scored(dataset.batch.take(dataset.calibration_rows))
    kept = model_sample(dataset, wish, bundle, scored).levels
    assert raw
    assert kept
    (column,) = (c for c in world.trained.fitted.bundle.scorer.encoding.columns if c.name == COLUMN)  # type: ignore[union-attr]
    assert kept.names == column.levels  # type: ignore[union-attr]
    rare = set(raw.names) - set(kept.names)
    lost = sum(int((raw.codes == raw.names.index(name)).sum()) for name in rare)
    assert (kept.codes < 0).sum() == (raw.codes < 0).sum() + lost


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def weighed(transactions: Path, flow: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The transactions with a column of ratios."""
    table = pq.read_table(transactions)
    ratios = np.random.default_rng(0).uniform(0.5, 1.5, len(table))
    path = tmp_path_factory.mktemp("weighed") / "t.parquet"
    pq.write_table(table.append_column(WEIGHT, pa.array(ratios)), path)
    keys = {"data__path": str(path), "calibration__density_ratio": WEIGHT, "name": "weighed"}
    return changed(flow, **keys)


def test_weights_go_from_the_table_into_the_bundle(
    weighed: Config, tmp_path: Path, transactions: Path
) -> None:
    data = load_dataset(weighed.data)
    assert WEIGHT not in data.schema.names
    trained = train(weighed, data)
    made = calibrate(weighed, trained.model_uri, data)
    bundle = made.bundle
    calibration, rows = bundle.detector.calibration, data.calibration_rows
    order = np.argsort(bundle.scorer.score(data.batch.take(rows)), kind="stable")
    ratios = data.table[WEIGHT].to_numpy()[rows][order]
    np.testing.assert_array_equal(calibration.weights, ratios)
    found = bundle.detector.detect(data.part(TEST))
    reached = np.searchsorted(calibration.scores, found.score)
    np.testing.assert_array_equal(found.p_value, weighted_p_values(ratios)[reached])
    np.testing.assert_array_equal(found.is_anomaly, found.p_value <= 0.05)
    kept = thin_by_ratio(data.test_table[WEIGHT].to_numpy())
    assert made.evaluation.rows == kept.sum() < len(kept)
    assert made.evaluation.flagged == found.is_anomaly[kept].sum()
    policy = {"label": "TX_FRAUD", "positive": 1, "density_ratio": WEIGHT}
    judged = judge(bundle.detector, Labelled.of(data.test_table, policy))
    assert judged.evaluate().to_json() == made.evaluation.to_json()
    assert promote(Registry(), "weighed").challenger_evaluation == made.evaluation
    with pytest.raises(CalibrationError, match="--fdr needs p-values that are positively depend"):
        score_files(
            LoadedModel(bundle, "x", None, None), [str(transactions)], tmp_path / "o", fdr=0.1
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("ratio", [-1.0, None, "much"])
def test_a_row_without_a_weight_is_refused_with_its_place(weighed: Config, ratio: Any) -> None:
    data = load_dataset(weighed.data)
    place = int(data.calibration_rows[5])
    values: list[Any] = [1.0] * len(data.table)
    values[place] = ratio
    at = data.table.column_names.index(WEIGHT)
    cells = pa.array(map(str, values)) if ratio == "much" else pa.array(values)
    changed_ = replace(data, table=data.table.set_column(at, WEIGHT, cells))
    with pytest.raises(DataError, match=f"1 calibration rows have no ratio .* row {place} for one"):
        sample_of(changed_, weighed.calibration, zero_scores)


def test_weights_of_nought_are_worth_nothing(weighed: Config) -> None:
    data = load_dataset(weighed.data)
    at = data.table.column_names.index(WEIGHT)
    table = data.table.set_column(at, WEIGHT, pa.array(np.zeros(len(data.table))))
    given = sample_of(replace(data, table=table), weighed.calibration, zero_scores)
    with pytest.raises(CalibrationError, match="are worth 0 rows"):
        check_sample(given, weighed.calibration)


def test_weights_that_are_not_there_are_refused(weighed: Config, flow: Config) -> None:
    with pytest.raises(DataError, match="density_ratio names the column 'absent'; found"):
        read_data(changed(weighed, calibration__density_ratio="absent"))
    wish = weighed.calibration.model_copy(update={"density_ratio": "TX_AMOUNT"})
    with pytest.raises(DataError, match="names the column 'TX_AMOUNT', which the model reads"):
        sample_of(load_dataset(flow.data), wish, zero_scores)
