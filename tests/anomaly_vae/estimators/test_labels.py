"""Labels of known anomalies, and estimators that learn from them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from anomaly_vae import TabularVAEDetector
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.labels import known_anomalies
from anomaly_vae.types import KNOWN_ANOMALIES
from tests.support.known import rows

FEW = {"preset": "fast", "epochs": 2, "alpha": 0.05}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Return 900 rows whose first 60 are anomalies."""
    return rows(900).to_pandas()


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    """Return the labels of `frame`: −1 for anomalies, else 1."""
    return np.repeat([-1, 1], [60, 840])


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, 0, 1],
        [True, False, False, True],
        [-1, 1, 1, -1],
        [-1.0, 1.0, np.nan, -1.0],
        np.array([1.0, 0.0, np.nan, 1.0], np.float32),
        pd.Series([1, 0, None, 1], dtype="Int64"),
        pd.Series([True, False, None, True], dtype="boolean"),
    ],
)
def test_both_conventions_are_understood(labels):
    assert known_anomalies(labels, 4).tolist() == [True, False, False, True]


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [None] * 4])
def test_labels_may_name_no_anomaly(labels):
    assert not known_anomalies(labels, 4).any()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 1, 1, 1], "may mean either"),
        ([0, 1, -1, 0], r"values '-1', '0', '1': mark known anomalies by -1"),
        (["no", "yes", "no", "no"], "values 'no', 'yes'"),
        ([0, 2, 0, 0], "values '0', '2'"),
        ([0, 1, 0], r"shape \(3,\), and X has 4 rows"),
        (np.zeros((4, 2)), r"shape \(4, 2\)"),
    ],
)
def test_other_labels_are_refused(labels, said):
    with pytest.raises(DataError, match=said):
        known_anomalies(labels, 4)


def test_an_estimator_learns_from_y(frame, y, tmp_path):
    detector = TabularVAEDetector(known="auto", **FEW).fit(frame, y)
    fresh = rows(460, seed=9).to_pandas()
    assert (detector.predict(fresh[:60]) == -1).mean() > 0.7
    assert (detector.predict(fresh[60:]) == -1).mean() < 0.12
    assert any("known anomalies: on, 60 labelled" in note for note in detector.notes_)
    assert detector.bundle_.manifest["unit"] == "surprise"
    parts = detector.explain(fresh[:1]).to_frame()
    assert parts["nats"].sum() == pytest.approx(detector.anomaly_score(fresh[:1])[0])
    assert parts[parts["part"] == "known"]["feature"].tolist() == [KNOWN_ANOMALIES]
    assert "surprise" in detector.plot_explanation(fresh[:1]).get_xlabel()
    loaded = TabularVAEDetector.load(detector.save(tmp_path / "bundle"))
    assert loaded.known == "auto"
    np.testing.assert_array_equal(loaded.anomaly_score(fresh), detector.anomaly_score(fresh))


def test_labels_are_read_beside_any_container(frame, y):
    tables = frame, pl.from_pandas(frame), pa.Table.from_pandas(frame)
    graphs = {TabularVAEDetector(known="auto", **FEW).fit(X, y).bundle_.graph for X in tables}
    assert len(graphs) == 1


def test_few_labels_leave_the_model_of_the_normal_rows(frame, y):
    few = frame[31:]
    detector = TabularVAEDetector(known="auto", **FEW).fit(few, y[31:])
    plain = TabularVAEDetector(**FEW).fit(frame[60:])
    assert detector.bundle_.digest == plain.bundle_.digest
    assert any("off, 29 labelled anomalies" in note for note in detector.notes_)


def test_without_the_wish_y_is_ignored(frame, y):
    plain, labelled = (TabularVAEDetector(**FEW).fit(frame, labels) for labels in (None, y))
    assert plain.bundle_.digest == labelled.bundle_.digest


def test_the_reason_is_printed_on_request(frame, capsys):
    TabularVAEDetector(known="auto", verbose=1, **FEW).fit(frame[60:])
    assert "known anomalies: off, 0 labelled anomalies" in capsys.readouterr().err
