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
    note = f"none of {len(labels)} rows has 1 in column 'verdict': no known anomaly; found "
    assert capfd.readouterr().err == f"{note}{found}\n"


def test_rows_younger_than_the_delay_have_no_final_label() -> None:
    """A fraud of the last days that is not known yet is no false positive."""
    times = ["2024-03-01", "2024-03-09", "2024-03-10T12:00", None]
    table = pa.table({"verdict": [0, 1, 0, 0], "booked": times})
    roles = {"label": "verdict", "positive": 1, "time": "booked", "label_delay": "1d"}
    truth = Labelled.of(table, roles)
    assert truth.final.tolist() == [True, True, False, False]
    later = Labelled.of(table, {**roles, "newest": "2024-03-12T00:00:00+00:00"})
    assert later.final.tolist() == [True, True, True, False]
    assert Labelled.of(table, {**roles, "label_delay": None}).final.all()


def test_labels_with_an_anomaly_need_no_note(capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"verdict": ["bad", "good"]})
    truth = Labelled.of(table, {"label": "verdict", "positive": "bad"})
    assert truth.anomaly.tolist() == [True, False]
    assert capfd.readouterr().err == ""
