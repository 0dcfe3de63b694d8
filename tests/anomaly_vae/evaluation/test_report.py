"""A report survives JSON, and reports of older versions are read as far as they go."""

from __future__ import annotations

import json

import pytest

from anomaly_vae.evaluation.leakage import Duplicates, SingleFeatureAUROC
from anomaly_vae.evaluation.metrics import Evaluation, Rate
from anomaly_vae.evaluation.p_values import UniformityPoint
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.evaluation.slices import ColumnSlice

FIGURES = Evaluation(
    rows=100, anomalies=10, alpha=0.05, threshold=3.5, flagged=12, auroc=0.9,
    auroc_interval=(0.8, 0.95),
)  # fmt: skip
RATE = Rate(value=0.1, low=0.05, high=0.2, hits=9, total=90)
WHOLE = EvaluationReport(
    FIGURES,
    (
        ColumnSlice("channel", "atm", 60, 6, RATE, 0.3, None, 0.7),
        ColumnSlice("channel", None, 40, 4, None, None, RATE, None),
    ),
    (UniformityPoint(level=0.1, share=0.12, low=0.05, high=0.2),),
    (SingleFeatureAUROC("amount", "value", 0.97, 0.93),),
    Duplicates(rows=3, normal=0.01, anomalies=0.2, auroc_without=None),
    ("amount alone separates the anomalies",),
)


@pytest.mark.parametrize("report", [WHOLE, EvaluationReport(FIGURES)], ids=["whole", "figures"])
def test_a_report_survives_json(report: EvaluationReport) -> None:
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert EvaluationReport.from_json(content) == report


def test_figures_and_details_share_one_object_without_overlap() -> None:
    figures, details = FIGURES.to_json(), WHOLE.details()
    assert figures.keys().isdisjoint(details)
    assert WHOLE.to_json() == {**figures, **details}
    assert [one["level"] for one in details["slices"]] == ["atm", None]


def test_a_report_of_an_older_version_has_its_figures_and_nothing_else() -> None:
    assert EvaluationReport.from_json(FIGURES.to_json()) == EvaluationReport(FIGURES)


def test_keys_of_a_newer_version_are_ignored() -> None:
    assert EvaluationReport.from_json({**WHOLE.to_json(), "added": 1}) == WHOLE
