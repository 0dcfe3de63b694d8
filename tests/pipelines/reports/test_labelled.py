"""What is said of labels before a detector is judged by them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.reports.labelled import Labelled


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["benign", "malignant", None, "benign"], "'benign', 'malignant'"),
        ([0, 2, 0, 3], "'0', '2', '3'"),
        (list("abcdefg"), "'a', 'b', 'c', 'd', 'e' and 2 more"),
        ([None, None], "nothing"),
    ],
)
def test_labels_without_an_anomaly_are_named(
    labels: list[object], found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"verdict": labels})
    truth = Labelled.of(table, {"label": "verdict", "positive": 1})
    assert not truth.anomaly.any()
    note = "no row has 1 in column 'verdict': none is a known anomaly; found "
    assert capfd.readouterr().err == f"{note}{found}\n"


def test_labels_with_an_anomaly_need_no_note(capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"verdict": ["bad", "good"]})
    truth = Labelled.of(table, {"label": "verdict", "positive": "bad"})
    assert truth.anomaly.tolist() == [True, False]
    assert capfd.readouterr().err == ""
