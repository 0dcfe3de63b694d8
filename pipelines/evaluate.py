"""A detector on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from anomaly_vae.detector import Detections, Detector
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation import Evaluation, evaluate
from anomaly_vae.schema import listed
from pipelines import console
from pipelines.data import anomaly_mask
from pipelines.io import find_files, read_table


def evaluate_files(
    detector: Detector, paths: Sequence[str], label: str, positive: Any = 1
) -> dict[str, Any]:
    """The command's answer: metrics over every row that can be scored."""
    table = read_table(find_files(paths))
    evaluation, found, rejected = evaluate_table(detector, table, label, positive)
    show(evaluation)
    return {
        "metrics": {**evaluation.to_json(), "rejected": rejected},
        "rows": len(table),
        "scored": len(found.score),
    }


def evaluate_table(
    detector: Detector, table: pa.Table, label: str, positive: Any
) -> tuple[Evaluation, Detections, int]:
    """Score a labelled table; also the decisions, and how many rows could not be scored.

    Raises:
        DataError: no such label column, or nothing to score.
    """
    if label not in table.column_names:
        raise DataError(
            f"the label column '{label}' is not there; found {listed(table.column_names)}",
            column=label,
        )
    batch = detector.scorer.schema.from_arrow(table)
    if not batch.usable.any():
        raise DataError(f"none of the {len(table)} rows can be scored: {batch.problems[0]}")
    anomaly = anomaly_mask(table.column(label), positive, label)[batch.usable]
    found = detector.detect(batch.take(batch.usable))
    calibration = detector.calibration
    evaluation = evaluate(found, anomaly, calibration.alpha, calibration.threshold)
    return evaluation, found, int((~batch.usable).sum())


def show(evaluation: Evaluation) -> None:
    """The figures as a table."""
    interval = evaluation.fpr_interval
    rows = [
        ("rows", evaluation.rows),
        ("anomalies", evaluation.anomalies),
        ("AUROC", evaluation.auroc),
        ("average precision", evaluation.average_precision),
        (f"false positive rate (alpha {evaluation.alpha:g})", evaluation.fpr),
        ("  its 95% interval", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else None),
        ("recall", evaluation.recall),
        ("precision", evaluation.precision),
        ("flagged", evaluation.flagged),
    ]
    console.table("On the test rows", ("figure", "value"), rows)
