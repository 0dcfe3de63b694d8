"""Share the options, counts and columns of scoring tables and images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

T = TypeVar("T")

CONTRIBUTION = pa.struct(
    [
        ("feature", pa.string()),
        ("nats", pa.float64()),
        ("observed", pa.string()),
        ("expected", pa.string()),
    ]
)


Explain = int | str | None
"""Number of contributions to list per row: K, "all", or None for no explanation."""

UNREADABLE = "(unreadable)"
"""Key under which rejects that no column causes are counted."""
RESULT_COLUMNS = ("score", "p_value", "is_anomaly", "contributions", "rest", "kl")
GROUP_COLUMNS = ("group", "threshold")
"""Further result columns of a model that is calibrated by group."""


@dataclass(frozen=True)
class HeatmapOptions:
    """The formats in which the heatmap of each flagged image is written."""

    png: bool = False
    dicom: bool = False


NO_HEATMAPS = HeatmapOptions()


class Tally:
    """Running counts of scored, flagged and rejected rows; scored + rejected = rows."""

    def __init__(self, monitor: Monitor) -> None:
        self.scored = self.flagged = 0
        self.rejects_by_column: Counter[str] = Counter()
        """Number of rejected rows, lines and files, by column or as `UNREADABLE`."""
        self._monitor, self._counts = monitor, monitor.empty_counts

    def count(self, found: Detections, x: Matrix | None = None) -> None:
        """Count scored rows; ``x`` (N, F) are the encoded rows of a table."""
        self.scored += len(found.score)
        self.flagged += int(found.is_anomaly.sum())
        self._counts += self._monitor.count(found.score, found.is_anomaly, x)

    def report(self) -> Report:
        """Report whether the scored rows look like the calibration rows."""
        return self._monitor.report(self._counts[None])

    @property
    def rejected(self) -> int:
        """Number of rows, lines and files that could not be scored."""
        return self.rejects_by_column.total()


def exclude_output(
    paths: Sequence[str], found: Sequence[T], output: Path, file_of: Callable[[T], Path]
) -> list[T]:
    """Return the inputs that lie outside the output folder, which may hold an earlier result.

    Args:
        paths: the paths of the command line.
        found: the inputs that were found behind them.
        output: the output folder.
        file_of: returns the file of an input.

    Raises:
        DataError: a path lies in ``output``, or no input lies outside it.
    """
    folder = _resolved(output)
    for path in paths:
        if folder in (_resolved(path), *_resolved(path).parents):
            raise DataError(f"--input '{path}' lies in --output '{output}'; choose another folder")
    kept = [one for one in found if folder not in _resolved(file_of(one)).parents]
    if not kept:
        raise DataError(f"no file to score lies outside --output '{output}'")
    return kept


def _resolved(path: str | Path) -> Path:
    """Return the target of a path; circular links are left as they are."""
    return Path(os.path.realpath(path))


def max_contributions(explain: Explain) -> int | None:
    """Return the maximum number of contributions per row, None for all."""
    return explain if isinstance(explain, int) else None


def result_table(
    keys: Mapping[str, pa.Array], found: Detections, explanations: Sequence[Explanation]
) -> pa.Table:
    """Build result rows from keys, decisions and explanations, if there are any."""
    columns = {
        **keys,
        "score": pa.array(found.score),
        "p_value": pa.array(found.p_value),
        "is_anomaly": pa.array(found.is_anomaly),
    }
    if found.group is not None:
        columns["group"] = pa.array(found.group, pa.string())
        columns["threshold"] = pa.array(found.threshold)
    if explanations:
        columns["contributions"] = pa.array(
            [list(_contributions(one)) for one in explanations], pa.list_(CONTRIBUTION)
        )
        columns["rest"] = pa.array([one.rest for one in explanations])
        columns["kl"] = pa.array([one.kl for one in explanations])
    return pa.table(columns)


def _contributions(explanation: Explanation) -> Iterator[dict[str, Any]]:
    for c in explanation.contributions:
        observed, expected = _text(c.observed), _text(c.expected)
        yield {"feature": c.feature, "nats": c.nats, "observed": observed, "expected": expected}


def _text(value: Any) -> str | None:
    return f"{value:.6g}" if isinstance(value, float) else value


def summary_of(source: LoadedModel, files: int, tally: Tally, sink: Sink) -> dict[str, Any]:
    """Summarise a result: the model, its threshold, and counts that add up to the input."""
    calibration = source.bundle.detector.calibration
    report = tally.report()
    show_guarantee(report)
    return {
        "model": source.to_json(),
        "fdr": None,
        "alpha": calibration.alpha,
        "threshold": calibration.threshold,
        **group_thresholds(calibration),
        "unit": source.bundle.detector.unit,
        "files": files,
        "rows": tally.scored + tally.rejected,
        "scored": tally.scored,
        "flagged": tally.flagged,
        "rejected": tally.rejected,
        "rejected_by_column": dict(tally.rejects_by_column.most_common()),
        "guarantee": report.to_json(),
        "parts": sink.parts,
    }


def warn_missing_group(calibration: Calibration, columns: Collection[str]) -> None:
    """Warn if the column is missing that selects the threshold of each row."""
    if calibration.groups and calibration.groups.column not in columns:
        console.info(
            f"there is no column '{calibration.groups.column}', by which the model is calibrated: "
            "every row gets the threshold of all rows, which guarantees nothing for a single group"
        )


def group_thresholds(calibration: Calibration) -> dict[str, Any]:
    """Return the summary's entries about groups; empty for a model without groups."""
    if calibration.groups is None:
        return {}
    own = {level: one.threshold for level, one in calibration.groups.by_level.items()}
    return {"group": calibration.groups.column, "group_thresholds": own}
