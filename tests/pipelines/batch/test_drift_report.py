"""What is printed about the guarantee of a batch."""

import re

import pytest

from anomaly_vae.monitoring.drift import Drift
from anomaly_vae.monitoring.exchangeability import Report
from pipelines.batch.drift_report import show_guarantee


def column(name, noticed_after, evidence=0.1):
    return Drift(name, 0.0, 0.0, 0.0, None, None, evidence, noticed_after)


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ("rows", r"unknown: the rows are too few \(4,140\) to tell"),
        ("calibration", "unknown: 4,140 rows cannot be compared .* cover too few days .* 14 days"),
    ],
)
def test_an_unknown_guarantee_says_what_is_missing(lacks, words, capsys):
    show_guarantee(Report("unknown", 4_140, 3, 60, 0.0, None, lacks), "tabular")
    assert re.search(words, " ".join(capsys.readouterr().err.split()))


def test_columns_in_which_changes_are_not_noticed_are_named(capsys):
    columns = (
        column("usual", 1_400),
        column("slow", None),
        column("slower", 4_100),
        column("untested", None, None),
    )
    show_guarantee(Report("holding", 4_000, 40, 80, 0.0, columns), "tabular")
    text = " ".join(capsys.readouterr().err.split())
    assert "a change of a tenth of the rows would not be noticed in 'slow', 'slower', whose" in text
    assert "usual" not in text
    assert "untested" not in text


def test_columns_whose_hours_explain_their_drift_are_not_listed(capsys):
    """All rows of a batch may be of one evening; the evidence, unlike the drift, knows that."""
    columns = (
        Drift("night", 0.9, 0.0, 0.0, None, None, -0.2, 1_400),
        Drift("drifted", 0.3, 0.0, 0.0, None, None, None, None),
        Drift("amount", 0.2, 0.0, 0.0, None, None, 21.0, 1_400),
        Drift("lost", 0.0, 0.5, 0.0, None, None, -0.2, 1_400),
    )
    show_guarantee(Report("doubtful", 4_000, 40, 80, 20.0, columns), "tabular")
    text = capsys.readouterr().err
    assert text.index("amount") < text.index("drifted") < text.index("lost")
    assert "night" not in text
