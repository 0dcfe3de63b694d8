"""A detector on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.detector import Detector
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation import Evaluation, evaluate
from anomaly_vae.schema import listed
from pipelines import console
from pipelines.data import anomaly_mask, unlabelled_mask
from pipelines.io import find_files, read_table

Mask = NDArray[np.bool_]


def evaluate_files(
    detector: Detector, paths: Sequence[str], label: str, positive: Any = 1
) -> dict[str, Any]:
    """The command's answer: metrics over every labelled row that can be scored."""
    table = read_table(find_files(paths))
    evaluation = evaluate_table(detector, table, label, positive)
    show(evaluation)
    return {"metrics": evaluation.to_json(), "rows": len(table), "scored": evaluation.rows}


def evaluate_table(
    detector: Detector,
    table: pa.Table,
    label: str | None,
    positive: Any,
    confidence: float = 0.95,
) -> Evaluation:
    """Score every row of a table that can be scored and is not known to be unlabelled.

    Without a label column every row counts as normal.

    Raises:
        DataError: no such label column, or nothing to score.
    """
    anomaly, unlabelled = _labels(table, label, positive)
    batch = detector.scorer.schema.from_arrow(table)
    if not batch.usable.any():
        raise DataError(f"none of the {len(table)} rows can be scored: {batch.problems[0]}")
    rows = batch.usable & ~unlabelled
    decisions = detector.detect(batch.take(rows))
    found = evaluate(decisions, anomaly[rows], detector.calibration, confidence)
    rejected, skipped = int((~batch.usable).sum()), int((batch.usable & unlabelled).sum())
    return replace(found, rejected=rejected, unlabelled=skipped)


def _labels(table: pa.Table, label: str | None, positive: Any) -> tuple[Mask, Mask]:
    """Which rows are anomalies, and which have no label."""
    if label is None:
        return np.zeros(len(table), bool), np.zeros(len(table), bool)
    if label not in table.column_names:
        raise DataError(
            f"the label column '{label}' is not there; found {listed(table.column_names)}",
            column=label,
        )
    labels = table.column(label)
    return anomaly_mask(labels, positive, label), unlabelled_mask(labels, label)


def show(evaluation: Evaluation) -> None:
    """The figures as a table."""
    interval = evaluation.fpr_interval
    rows = [
        ("rows", evaluation.rows),
        ("anomalies", evaluation.anomalies),
        ("AUROC", evaluation.auroc),
        ("average precision", evaluation.average_precision),
        (f"false positive rate (alpha {evaluation.alpha:g})", evaluation.fpr),
        ("  its interval", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else None),
        ("  the most that chance explains", evaluation.fpr_limit),
        ("recall", evaluation.recall),
        ("precision", evaluation.precision),
        ("flagged", evaluation.flagged),
        ("rejected", evaluation.rejected),
        ("unlabelled", evaluation.unlabelled),
    ]
    console.table("On the test rows", ("figure", "value"), rows)
