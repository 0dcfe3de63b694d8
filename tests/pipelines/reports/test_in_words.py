"""Figures in words: true to the figures, without statistics, and honest about what is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.reports.in_words import in_words

FIGURES: dict[str, Any] = {
    "rows": 70_000, "anomalies": 700, "flagged": 1_100, "rejected": 0, "unlabelled": 0,
    "fpr": 0.01, "fpr_interval": [0.009, 0.011],
    "recall": 0.58, "recall_interval": [0.54, 0.62],
    "precision": 0.37, "precision_interval": [0.34, 0.40],
    "period": ["2018-07-24T00:00:10+00:00", "2018-07-30T23:59:50+00:00"],
}  # fmt: skip


def said(**changes: Any) -> str:
    return in_words({**FIGURES, **changes})


def test_a_period_has_its_flags_a_day() -> None:
    assert said() == (
        "On the test rows of 24 to 30 July 2018, about 99 normal rows are flagged a day (89 to "
        "109), about 37 of 100 flagged rows are anomalies (34 to 40), and about 58 of 100 "
        "anomalies are found (54 to 62). The numbers in brackets are the range that chance leaves "
        "open. Expect the same only if the data are like those of 24 to 30 July 2018."
    )


def test_without_times_nothing_is_said_of_a_day() -> None:
    text = said(period=None)
    assert text.startswith("On the test rows, about 10 of 1,000 normal rows are flagged (9 to 11)")
    assert "Nothing can be said of a day, because these rows have no time." in text
    assert "1 of 100 of these rows are anomalies; where anomalies are rarer" in text
    assert text.endswith("like these rows.")


def test_hours_are_no_day() -> None:
    text = said(period=["2018-07-24T08:00:00+00:00", "2018-07-24T17:00:00+00:00"])
    assert "of 24 July 2018" in text
    assert "cover less than a day" in text
    assert "a day (" not in text


def test_without_a_known_anomaly_nothing_is_said_of_what_is_found() -> None:
    nothing = {"precision": None, "recall": None, "precision_interval": None,
               "recall_interval": None}  # fmt: skip
    text = said(anomalies=0, **nothing)
    assert "No anomaly is known" in text
    assert "are found (" not in text
    assert "of 100" not in text


def test_without_a_normal_row_false_alarms_are_not_counted() -> None:
    text = said(rows=700, fpr=None, fpr_interval=None)
    assert "false alarms cannot be counted" in text


def test_a_model_that_flags_nothing_is_described() -> None:
    text = said(flagged=0, fpr=0.0, recall=0.0, precision=None, precision_interval=None)
    assert "about 0 normal rows are flagged a day" in text
    assert "about 0 of 100 anomalies are found" in text
    assert "flagged rows are anomalies" not in text


def test_rows_left_out_are_counted() -> None:
    text = said(unlabelled=1_200, rejected=3)
    assert "1,200 rows without a label are not counted." in text
    assert "3 rows could not be scored." in text
    text = said(unlabelled=1, rejected=1)
    assert "1 row without a label is not counted. 1 row could not be scored." in text


def test_no_row_says_nothing() -> None:
    assert said(rows=0, anomalies=0).endswith("nothing can be said.")


def test_figures_of_an_older_version_have_no_intervals() -> None:
    known = ("rows", "anomalies", "flagged", "fpr", "recall", "precision")
    text = in_words({key: FIGURES[key] for key in known})
    assert "(" not in text
    assert "brackets" not in text


def test_images_are_called_images() -> None:
    text = in_words({**FIGURES, "period": None}, "image")
    assert "normal images" in text
    assert "rows" not in text


@pytest.mark.parametrize(("fpr", "count"), [(1e-7, "0.00099"), (3.4e-5, "0.34"), (0.5, "4,950")])
def test_counts_have_no_exponent(fpr: float, count: str) -> None:
    assert f"about {count} normal rows are flagged a day" in said(fpr=fpr, fpr_interval=None)
