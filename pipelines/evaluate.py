"""A detector on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from anomaly_vae.detector import Detector
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation import Evaluation, evaluate
from anomaly_vae.schema import listed
from pipelines import console
from pipelines.data import anomaly_mask, unlabelled_mask
from pipelines.io import find_files, read_table


def evaluate_files(
    detector: Detector, paths: Sequence[str], label: str, positive: Any = 1
) -> dict[str, Any]:
    """The command's answer: metrics over every labelled row that can be scored."""
    table = read_table(find_files(paths))
    evaluation, left_out = evaluate_table(detector, table, label, positive)
    show(evaluation)
    for why, count in left_out.items():
        if count:
            console.say(f"{count:,} rows left out: {why}")
    return {
        "metrics": {**evaluation.to_json(), **left_out},
        "rows": len(table),
        "scored": evaluation.rows,
    }


def evaluate_table(
    detector: Detector, table: pa.Table, label: str, positive: Any
) -> tuple[Evaluation, dict[str, int]]:
    """Score a labelled table; also how many rows were left out, rejected or unlabelled.

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
    anomaly = anomaly_mask(table.column(label), positive, label)
    unlabelled = batch.usable & unlabelled_mask(table.column(label), label)
    rows = batch.usable & ~unlabelled
    calibration = detector.calibration
    evaluation = evaluate(
        detector.detect(batch.take(rows)), anomaly[rows], calibration.alpha, calibration.threshold
    )
    left_out = {"rejected": int((~batch.usable).sum()), "unlabelled": int(unlabelled.sum())}
    return evaluation, left_out


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
        ("recall", evaluation.recall),
        ("precision", evaluation.precision),
        ("flagged", evaluation.flagged),
    ]
    console.table("On the test rows", ("figure", "value"), rows)
