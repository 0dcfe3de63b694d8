"""The estimator of tables: its arguments, its promise, and the bundle inside it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.detector import TabularConfig
from anomaly_vae.errors import (
    AnomalyVAEError,
    ConfigError,
    DataError,
    NotCalibratedError,
)
from anomaly_vae.estimators.tabular import CONFIG_KEYS, TabularVAEDetector
from tests.support import excused
from tests.support.estimators import (
    TINY,
    check_defaults_are_those_of_files,
    check_every_key_is_an_argument,
    tiny,
)
from tests.support.merchants import merchant_detector

NO_ARGUMENT = excused.NO_ARGUMENT | {
    "data.path": "the rows are X",
    "data.id": "rows come back in the order of X",
    "data.time": "X is taken as exchangeable rows",
    "data.group": "see data.time; for anything but exchangeable rows, use calibrate(X)",
    "data.ignore": "drop the columns from X, or list the others as features",
    "data.splits.gap_days": "see data.time",
    "calibration.group_by": "unless the command line calibrates; a loaded bundle keeps its groups",
    "calibration.density_ratio": "X is taken to be like traffic",
    "training.precision": "networks of tables are small",
    "data.csv.separator": "X is no file",
    "data.csv.decimal": "X is no file",
    "data.csv.encoding": "X is no file",
    "data.csv.null_values": "X is no file",
    "data.timezone": "see data.time",
    "data.label_delay": "see data.time",
    "data.labels": "fit ignores y: leave known anomalies out of X",
    "data.windows": "features.offline.add_windows adds them to X",
    "data.windows_horizon": "see data.windows",
    "data.windows_warm_up": "see data.windows",
}


# ---------------------------------------------------------------- configuration


def test_every_key_of_the_configuration_is_an_argument_or_excused() -> None:
    check_every_key_is_an_argument(TabularConfig, CONFIG_KEYS, NO_ARGUMENT)


def test_defaults_are_those_of_files() -> None:
    """None follows the file's; `random_state` 0 is the seed that files have."""
    check_defaults_are_those_of_files("tabular", TabularVAEDetector(), CONFIG_KEYS)


def test_arguments_are_called_as_their_keys_are() -> None:
    renamed = {"score_type", "model", "random_state", "calibration_fraction", "validation_fraction"}
    renamed |= {"verbose"}
    assert CONFIG_KEYS.keys() == TabularVAEDetector().get_params().keys()
    for argument in CONFIG_KEYS.keys() - renamed:
        assert CONFIG_KEYS[argument][0].rpartition(".")[2] == argument


def test_arguments_reach_the_manifest_and_none_follows_the_preset(X: np.ndarray) -> None:
    detector = TabularVAEDetector(preset="fast", epochs=np.int64(2), beta=0.5, random_state=7)
    recorded = detector.fit(X).bundle_.manifest["config"]
    assert recorded["model"]["members"] == 1
    assert recorded["training"]["beta"] == 0.5
    assert detector.n_iter_ == 2
    assert [recorded["training"]["seed"], recorded["data"]["splits"]["seed"]] == [7, 7]


def test_a_certified_threshold_takes_the_rows_that_certify_it(X: np.ndarray) -> None:
    detector = tiny(method="certified", alpha=0.1).fit(X)
    calibration = detector.bundle_.detector.calibration
    assert len(calibration.scores) >= 29  # (1 − 0.1)²⁹ ≤ 0.05 < (1 − 0.1)²⁸
    assert calibration.figures["bound"] <= 0.1
    assert detector.offset_ == -calibration.threshold


def test_a_fitted_tail_warns_that_it_is_a_model(on_array: TabularVAEDetector) -> None:
    rows = np.random.default_rng(1).normal(size=(600, on_array.n_features_in_))
    detector = deepcopy(on_array).set_params(method="evt", alpha=0.001)
    with pytest.warns(UserWarning, match="a model, not a guarantee"):
        detector.calibrate(rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "training.epochs"),
        ({"score_type": "loss"}, "score.type"),
        ({"alpha": 1.5}, "calibration.alpha"),
        ({"preset": "huge"}, "preset"),
        ({"features": {"x0": "number"}}, "data.features.x0.type"),
    ],
)
def test_a_wrong_argument_is_named_when_fitting(
    X: np.ndarray, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        tiny(**wrong).fit(X)
    assert isinstance(raised.value, ValueError)


# ---------------------------------------------------------------- scores and decisions


def test_a_broken_correlation_is_found(on_array: TabularVAEDetector) -> None:
    normal, odd = [1.0, 2.0, 5.0], [2.0, -4.0, 5.0]
    assert on_array.predict([normal, odd]).tolist() == [1, -1]
    assert on_array.explain([odd], most=1)[0].contributions[0].feature in {"x0", "x1"}


# ---------------------------------------------------------------- how many rows


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (50, 1),
        (50, 300),
        (2000, 1),
        (5000, 30),
        pytest.param(1_000_000, 10, marks=pytest.mark.slow),
        pytest.param(5000, 1500, marks=pytest.mark.slow),
    ],
)
def test_tables_of_any_shape_are_learned(rows: int, columns: int) -> None:
    """By the defaults but for alpha and epochs; what is far out is further out than all others."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 1)) + rng.normal(size=(rows, columns))
    detector = TabularVAEDetector(alpha=0.05, epochs=2).fit(X)
    scores = detector.anomaly_score(np.concatenate([X[:1000], np.full((1, columns), 30.0)]))
    assert np.isfinite(scores).all()
    assert scores.argmax() == len(scores) - 1
    assert np.mean(detector.predict(X[:1000]) == -1) < 0.2


# ---------------------------------------------------------------- what X may be


def test_a_frame_an_arrow_table_and_other_columns_order_give_the_same(
    on_frame: TabularVAEDetector, frame: pd.DataFrame
) -> None:
    score = on_frame.anomaly_score(frame)
    more = frame[frame.columns[::-1]].assign(unknown="?")
    for same in (pa.table(frame), more, pa.table(more)):
        np.testing.assert_array_equal(on_frame.anomaly_score(same), score)
    again = tiny().fit(pa.table(frame))
    np.testing.assert_array_equal(again.anomaly_score(frame), score)


def test_names_and_number_of_the_columns_are_remembered(
    on_frame: TabularVAEDetector, on_array: TabularVAEDetector, frame: pd.DataFrame
) -> None:
    assert list(on_frame.feature_names_in_) == list(frame.columns)
    assert on_frame.n_features_in_ == 5
    assert not hasattr(on_array, "feature_names_in_")
    types = {c.name: str(c.type) for c in on_frame.bundle_.scorer.schema.columns}
    assert types == {
        "amount": "numeric",
        "online": "binary",
        "country": "categorical",
        "at": "datetime",
        "items": "numeric",
    }


def test_columns_without_names_are_an_array(X: np.ndarray, on_array: TabularVAEDetector) -> None:
    unnamed = pd.DataFrame(X)
    np.testing.assert_array_equal(tiny(epochs=20).fit(unnamed).offset_, on_array.offset_)
    np.testing.assert_array_equal(on_array.predict(unnamed), on_array.predict(X))


def test_an_array_after_a_frame_is_read_by_position_with_a_warning(X: np.ndarray) -> None:
    named = pd.DataFrame(X, columns=["a", "b", "c"])
    detector = tiny().fit(named)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        score = detector.anomaly_score(X)
    np.testing.assert_array_equal(score, detector.anomaly_score(named))


def test_a_table_after_an_array_is_read_by_position_with_a_warning(
    X: np.ndarray, on_array: TabularVAEDetector
) -> None:
    with pytest.warns(UserWarning, match="fitted without feature names"):
        score = on_array.anomaly_score(pa.table(pd.DataFrame(X, columns=["a", "b", "c"])))
    np.testing.assert_array_equal(score, on_array.anomaly_score(X))


def test_missing_cells_are_scored_by_what_is_there(on_array: TabularVAEDetector) -> None:
    nan = np.nan
    score = on_array.anomaly_score([[1, 2, 5], [1, nan, 5], [nan, nan, nan]])
    assert np.isfinite(score).all()
    assert {c.observed for c in on_array.explain([[1, nan, 5]])[0].contributions} == {
        1.0,
        None,
        5.0,
    }


def test_zeros_and_ones_in_an_array_are_numbers(X: np.ndarray) -> None:
    """A count that never passed 1 in training must not make a 2 unreadable."""
    counts = np.column_stack([X[:, 0], X[:, 1] > 0])
    assert len(tiny().fit(counts).predict([[0.0, 2.0]])) == 1
    declared = tiny(features={"x0": "numeric", "x1": "binary"}).fit(counts)
    with pytest.raises(DataError, match="column 'x1', row 0: expected 0 or 1, got 2"):
        declared.predict([[0.0, 2.0]])


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinity_is_refused(
    on_array: TabularVAEDetector,
    on_frame: TabularVAEDetector,
    frame: pd.DataFrame,
    infinite: float,
) -> None:
    with pytest.raises(ValueError, match="infinity"):
        on_array.predict([[1, infinite, 5]])
    wrong = frame.assign(amount=[*frame["amount"][:-1], infinite])
    with pytest.raises(DataError, match="column 'amount', row 199: infinity is not a value"):
        on_frame.predict(wrong)
    with pytest.raises(DataError, match="infinity"):
        tiny().fit(wrong)


def test_an_absent_column_is_refused_by_name(
    on_frame: TabularVAEDetector, frame: pd.DataFrame
) -> None:
    with pytest.raises(DataError, match="X lacks columns that the model reads: 'at', 'items'"):
        on_frame.predict(frame.drop(columns=["at", "items"]))


def test_two_columns_of_one_name_are_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="column 'items' appears more than once"):
        tiny().fit(pd.concat([frame, frame[["items"]]], axis=1))


def test_a_column_that_is_left_out_is_said_and_not_needed(X: np.ndarray) -> None:
    ids = [f"c{i}" for i in range(len(X))]
    named = pd.DataFrame(X, columns=["a", "b", "c"]).assign(id=ids)
    detector = tiny()
    with pytest.warns(UserWarning, match="column 'id': left out, nearly every value"):
        detector.fit(named)
    assert detector.n_features_in_ == 4
    assert len(detector.notes_) == 1
    np.testing.assert_array_equal(
        detector.predict(named), detector.predict(named.drop(columns="id"))
    )


def test_an_empty_column_of_an_array_is_left_out(X: np.ndarray) -> None:
    empty = np.column_stack([X[:, 0], np.full(len(X), np.nan), X[:, 2]])
    detector = tiny()
    with pytest.warns(UserWarning, match="'x1': left out, it has no value"):
        detector.fit(empty)
    np.testing.assert_array_equal(detector.predict(empty), detector.predict(X))
    assert np.isnan(detector.sample(4)[:, 1]).all()


# ---------------------------------------------------------------- latent space


def test_samples_come_as_what_was_fitted(
    on_array: TabularVAEDetector, on_frame: TabularVAEDetector, frame: pd.DataFrame
) -> None:
    assert on_array.sample(5).shape == (5, 3)
    rows = on_frame.sample(5)
    assert list(rows) == ["amount", "online", "country", "at.hour", "at.weekday", "items"]
    assert isinstance(tiny().fit(pa.table(frame)).sample(2), pa.Table)


# ---------------------------------------------------------------- saving


def test_an_array_detector_loads_as_one(
    on_array: TabularVAEDetector, X: np.ndarray, tmp_path: Path
) -> None:
    loaded = TabularVAEDetector.load(on_array.save(tmp_path / "bundle"))
    assert loaded.n_features_in_ == 3
    np.testing.assert_array_equal(loaded.predict(X), on_array.predict(X))
    assert loaded.sample(2).shape == (2, 3)


def test_a_bundle_of_the_command_line_loads(bundle: Bundle, dataset: Any, tmp_path: Path) -> None:
    loaded = TabularVAEDetector.load(bundle.save(tmp_path / "bundle"))
    rows = dataset.table.to_pandas()
    assert list(loaded.feature_names_in_) == list(bundle.scorer.schema.names)
    np.testing.assert_array_equal(loaded.anomaly_score(rows), bundle.scorer.score(dataset.batch))
    for decide in (loaded.predict, loaded.decision_function, loaded.p_values):
        with pytest.raises(NotCalibratedError, match=r"call calibrate\(X\)"):
            decide(rows)
    normal = rows[rows["TX_FRAUD"] == 0]
    assert np.mean(loaded.set_params(alpha=0.05).calibrate(normal).predict(normal) < 0) <= 0.05


def test_refitting_a_bundle_of_the_command_line_never_reads_its_label(
    bundle: Bundle, dataset: Any, tmp_path: Path
) -> None:
    loaded = TabularVAEDetector.load(bundle.save(tmp_path / "bundle"))
    again = clone(loaded).set_params(**TINY).fit(dataset.table)
    assert again.bundle_.scorer.schema.columns == bundle.scorer.schema.columns


def test_errors_are_of_the_family() -> None:
    assert issubclass(DataError, AnomalyVAEError)
    assert issubclass(DataError, ValueError)


def test_the_guard_finds_anomalies_like_those_among_the_training_rows() -> None:
    """One row in twenty is of a clump, which the other members learn to expect."""
    rng = np.random.default_rng(0)

    def normal(n: int) -> NDArray[np.float64]:
        z = rng.normal(size=(n, 2))
        x = np.column_stack([z, z.sum(1), z[:, 0] - z[:, 1]])
        return np.asarray(x + [0.0, 0.0, 0.3, 0.3] * rng.normal(size=(n, 4)))

    clump = np.array([4.0, -4.0, 4.0, 4.0]) + 0.3 * rng.normal(size=(150, 4))
    x = np.vstack([normal(950), clump[:50]])
    test, odd = np.vstack([normal(500), clump[50:]]), np.arange(600) >= 500

    def found(guard: float | None) -> float:
        detector = TabularVAEDetector(guard=guard, epochs=30, alpha=0.05).fit(x)
        return float(roc_auc_score(odd, detector.anomaly_score(test)))

    assert found(None) > found(0.0) + 0.05


def test_values_that_are_no_levels_are_noted():
    [note] = merchant_detector().notes_
    assert note.startswith(
        "column 'merchant': 10 of 103 values are kept as levels; the others, in "
    )


def test_single_types_and_the_format_of_times_are_arguments(tmp_path: Path) -> None:
    days = [f"{1 + i % 12:02}/{1 + i % 9:02}/2024" for i in range(60)]
    frame = pd.DataFrame(
        {"mcc": [5411, 5812, 4829] * 20, "day": days, "amount": np.arange(60) % 7 + 0.5}
    )
    detector = tiny(types={"mcc": "categorical"}, time_format="%d/%m/%Y", preset="fast").fit(frame)
    columns = {c.name: (str(c.type), c.format) for c in detector.bundle_.scorer.schema.columns}
    assert columns == {
        "mcc": ("categorical", None),
        "day": ("datetime", "%d/%m/%Y"),
        "amount": ("numeric", None),
    }
    assert np.isfinite(detector.score_samples(frame)).all()
    detector.save(tmp_path / "bundle")
    again = TabularVAEDetector.load(tmp_path / "bundle")
    assert again.get_params()["time_format"] == "%d/%m/%Y"
    assert (again.score_samples(frame) == detector.score_samples(frame)).all()
    array = tiny(types={"x1": "categorical"}).fit(np.arange(120).reshape(60, 2) % 5)
    kinds = [str(c.type) for c in array.bundle_.scorer.schema.columns]
    assert kinds == ["numeric", "categorical"]
