"""Share what scoring tables and images have in common."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.errors import DataError
from anomaly_vae.monitoring.exchangeability import Monitor, Report
from anomaly_vae.scoring.detector import Detections, Explanation
from pipelines import console
from pipelines.batch.drift_report import show_guarantee
from pipelines.batch.results import Sink
from pipelines.registry.model_uri import LoadedModel

CONTRIBUTION = pa.struct(
    [
        ("feature", pa.string()),
        ("nats", pa.float64()),
        ("observed", pa.string()),
        ("expected", pa.string()),
    ]
)


Explain = int | str | None
"""How many contributions to list: K, "all", or None."""


UNREADABLE = "(unreadable)"


ANSWERS = ("score", "p_value", "is_anomaly", "contributions", "rest", "kl")


OF_GROUPS = ("group", "threshold")
"""Answers of a model with groups only."""


class Tally:
    """Counts that add up: rows = scored + rejected."""

    def __init__(self, monitor: Monitor) -> None:
        self.scored = self.flagged = 0
        self.places: Counter[str] = Counter()
        """rejected rows, lines and files by column, or as unreadable"""
        self._monitor, self._counts = monitor, monitor.empty_counts

    def take(self, found: Detections, x: Matrix | None = None) -> None:
        """Count scored rows; of a table, encoded as ``x`` (N, F)."""
        self.scored += len(found.score)
        self.flagged += int(found.is_anomaly.sum())
        self._counts += self._monitor.count(found.score, found.is_anomaly, x)

    def report(self) -> Report:
        """Whether all that was scored looks like the calibration rows."""
        return self._monitor.report(self._counts[None])

    @property
    def rejected(self) -> int:
        """Rows, lines and files that could not be scored."""
        return self.places.total()


def outside(
    paths: Sequence[str], found: Sequence[T], output: Path, file_of: Callable[[T], Path]
) -> list[T]:
    """What is to be scored; a previous result that lies among it is no input.

    Raises:
        DataError: a path lies in ``output``, or nothing lies outside it.
    """
    place = _resolved(output)
    for path in paths:
        if place in (_resolved(path), *_resolved(path).parents):
            raise DataError(f"--input '{path}' lies in --output '{output}'; choose another folder")
    kept = [one for one in found if place not in _resolved(file_of(one)).parents]
    if not kept:
        raise DataError(f"no file to score lies outside --output '{output}'")
    return kept


T = TypeVar("T")


def _resolved(path: str | Path) -> Path:
    """Where a path leads to; links in a circle lead nowhere and stay."""
    return Path(os.path.realpath(path))


def most_of(explain: Explain) -> int | None:
    """How many contributions are listed, None for all."""
    return explain if isinstance(explain, int) else None


def answer_columns(
    keys: Mapping[str, pa.Array], found: Detections, reasons: Sequence[Explanation]
) -> pa.Table:
    """The rows of an answer: keys, decisions and, where there are any, reasons."""
    columns = {
        **keys,
        "score": pa.array(found.score),
        "p_value": pa.array(found.p_value),
        "is_anomaly": pa.array(found.is_anomaly),
    }
    if found.group is not None:
        columns["group"] = pa.array(found.group, pa.string())
        columns["threshold"] = pa.array(found.threshold)
    if reasons:
        columns["contributions"] = pa.array(
            [list(_contributions(reason)) for reason in reasons], pa.list_(CONTRIBUTION)
        )
        columns["rest"] = pa.array([reason.rest for reason in reasons])
        columns["kl"] = pa.array([reason.kl for reason in reasons])
    return pa.table(columns)


def _contributions(reason: Explanation) -> Iterator[dict[str, Any]]:
    for c in reason.contributions:
        observed, expected = _text(c.observed), _text(c.expected)
        yield {"feature": c.feature, "nats": c.nats, "observed": observed, "expected": expected}


def _text(value: Any) -> str | None:
    return f"{value:.6g}" if isinstance(value, float) else value


def summary_of(source: LoadedModel, files: int, tally: Tally, sink: Sink) -> dict[str, Any]:
    """The model, its threshold, and counts that add up to the input."""
    calibration = source.bundle.detector.calibration
    report = tally.report()
    show_guarantee(report)
    return {
        "model": source.to_json(),
        "fdr": None,
        "alpha": calibration.alpha,
        "threshold": calibration.threshold,
        **thresholds_of(calibration),
        "unit": source.bundle.detector.unit,
        "files": files,
        "rows": tally.scored + tally.rejected,
        "scored": tally.scored,
        "flagged": tally.flagged,
        "rejected": tally.rejected,
        "rejected_by_column": dict(tally.places.most_common()),
        "guarantee": report.to_json(),
        "parts": sink.parts,
    }


def tell_without_groups(calibration: Calibration, columns: Collection[str]) -> None:
    """Say so where the column is not there that tells which threshold is a row's."""
    if calibration.groups and calibration.groups.column not in columns:
        console.say(
            f"there is no column '{calibration.groups.column}', by which the model is calibrated: "
            "every row gets the threshold of all rows, which promises nothing of one group alone"
        )


def thresholds_of(calibration: Calibration) -> dict[str, Any]:
    """Those of the groups, where there are any."""
    if calibration.groups is None:
        return {}
    own = {level: one.threshold for level, one in calibration.groups.own.items()}
    return {"group": calibration.groups.column, "group_thresholds": own}
