"""Provide the options, counts and result columns that scoring tables and images share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.messages import NOUNS, plain_number
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
REGION = pa.struct([("box", pa.list_(pa.int32())), ("nats", pa.float64()), ("share", pa.float64())])

Explain = int | str | None
"""Number of contributions to list per row: K, "all", or None for no explanation."""

UNREADABLE = "(unreadable)"
"""Key under which rejects are counted that are not caused by a column."""
RESULT_COLUMNS = ("score", "p_value", "is_anomaly", "unusual_input", "contributions", "rest", "kl")
"""Result columns of every model."""
GROUP_COLUMNS = ("group", "threshold")
"""Additional result columns of a model that is calibrated by group."""


@dataclass(frozen=True)
class HeatmapOptions:
    """The formats in which the heatmap of each flagged image is written."""

    png: bool = False
    dicom: bool = False


NO_HEATMAPS = HeatmapOptions()


class Tally:
    """Running counts of scored, flagged and rejected rows; scored plus rejected are all rows."""

    def __init__(self, monitor: Monitor) -> None:
        self.scored = self.flagged = self.unusual = 0
        self.rejects_by_column: Counter[str] = Counter()
        """Number of rejected rows, lines and files, by column or as `UNREADABLE`."""
        self._monitor, self._counts = monitor, monitor.empty_counts

    def count(
        self, detections: Detections, x: Matrix | None = None, batch: RawBatch | None = None
    ) -> None:
        """Count N scored rows; ``x`` (N, F) and ``batch`` are the rows of a table."""
        self.scored += len(detections.score)
        self.flagged += int(detections.is_anomaly.sum())
        self.unusual += detections.unusual
        seconds = self._monitor.seconds(batch) if batch else None
        self._counts += self._monitor.count(detections.score, detections.is_anomaly, x, seconds)

    def report(self) -> Report:
        """Assess whether the scored rows look like the calibration rows."""
        return self._monitor.report(self._counts[None])

    @property
    def rejected(self) -> int:
        """Number of rows, lines and files that could not be scored."""
        return self.rejects_by_column.total()


def exclude_output(
    paths: Sequence[str], inputs: Sequence[T], output: Path, file_of: Callable[[T], Path]
) -> list[T]:
    """Return the inputs outside the output folder, which may contain an earlier result.

    Args:
        paths: the paths given on the command line.
        inputs: the inputs found at these paths.
        output: the output folder.
        file_of: function that returns the file of an input.

    Raises:
        DataError: a path lies in ``output``, or no input lies outside it.
    """
    folder = _resolved(output)
    for path in paths:
        if folder in (_resolved(path), *_resolved(path).parents):
            raise DataError(f"--input '{path}' lies in --output '{output}'; choose another folder")
    holds = cache(partial(_contains, folder))
    kept = [item for item in inputs if not holds(_folder_of(file_of(item)))]
    if not kept:
        raise DataError(f"no file to score lies outside --output '{output}'")
    return kept


def _resolved(path: str | Path) -> Path:
    """Return the target of a path; circular links are left as they are."""
    return Path(os.path.realpath(path))


def _folder_of(file: Path) -> Path:
    """Return the folder of a file, or that of the file which it links to."""
    return _resolved(file).parent if file.is_symlink() else file.parent


def _contains(folder: Path, other: Path) -> bool:
    place = _resolved(other)
    return folder in (place, *place.parents)


def max_contributions(explain: Explain) -> int | None:
    """Return the maximum number of contributions per row, None for all."""
    return explain if isinstance(explain, int) else None


def result_table(
    keys: Mapping[str, pa.Array],
    detections: Detections,
    explanations: Sequence[Explanation],
    images: bool = False,
) -> pa.Table:
    """Build N result rows from keys, decisions and explanations; the latter may be empty.

    Explanations list contributions of columns or, of ``images``, regions.
    """
    columns = {
        **keys,
        "score": pa.array(detections.score),
        "p_value": pa.array(detections.p_value),
        "is_anomaly": pa.array(detections.is_anomaly),
    }
    if detections.group is not None:
        columns["group"] = pa.array(detections.group, pa.string())
        columns["threshold"] = pa.array(detections.threshold)
    unusual = detections.unusual_input
    columns["unusual_input"] = pa.array(
        [None] * len(detections.score) if unusual is None else unusual, pa.string()
    )
    if explanations:
        columns |= _regions(explanations) if images else _contribution_lists(explanations)
        columns["rest"] = pa.array([row.rest for row in explanations])
        columns["kl"] = pa.array([row.kl for row in explanations])
    return pa.table(columns)


def _regions(explanations: Sequence[Explanation]) -> dict[str, pa.Array]:
    rows = [[asdict(region) for region in row.regions] for row in explanations]
    return {"regions": pa.array(rows, pa.list_(REGION))}


def _contribution_lists(explanations: Sequence[Explanation]) -> dict[str, pa.Array]:
    rows = [list(_contributions(row)) for row in explanations]
    return {"contributions": pa.array(rows, pa.list_(CONTRIBUTION))}


def _contributions(explanation: Explanation) -> Iterator[dict[str, Any]]:
    for c in explanation.contributions:
        observed, expected = _text(c.observed), _text(c.expected)
        yield {"feature": c.feature, "nats": c.nats, "observed": observed, "expected": expected}


def _text(value: str | float | None) -> str | None:
    """Write an observed or expected value, with six digits or as many as it has."""
    if not isinstance(value, float):
        return value
    text = f"{value:.6g}"
    return text if float(text) == value else repr(value)


def summary_of(source: LoadedModel, files: int, tally: Tally, sink: Sink) -> dict[str, Any]:
    """Summarise a result: the model, its threshold, and counts that add up to the input."""
    calibration = source.bundle.detector.calibration
    report = tally.report()
    show_guarantee(report, source.kind)
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
        "unusual": tally.unusual,
        "rejected": tally.rejected,
        "rejected_by_column": dict(tally.rejects_by_column.most_common()),
        "guarantee": report.to_json(),
        "parts": sink.parts,
    }


def flags_in_words(summary: Mapping[str, Any], kind: str) -> str:
    """Return how many flags a summary has, beside what to expect if nothing were wrong.

    >>> summary = {"scored": 2_000, "flagged": 31, "alpha": 0.01, "fdr": None, "rejected": 2}
    >>> flags_in_words(summary, "tabular")
    'If all 2,000 scored rows were normal, about 20 would be flagged; 31 are. 2 more could not be \
scored; rejects.parquet says why.'
    """
    noun, scored, flagged = NOUNS[kind], summary["scored"], summary["flagged"]
    if not scored:
        return f"None of the {noun} could be scored; rejects.parquet says why."
    expected = f"{scored * summary['alpha']:,.0f}"
    text = (
        f"If all {scored:,} scored {noun} were normal, about {expected} would be flagged; "
        f"{flagged:,} are."
    )
    if summary["fdr"] is not None:
        share = plain_number(100 * summary["fdr"])
        text = f"Of 100 of the {flagged:,} flagged {noun}, at most about {share} are normal."
    rejected = f" {summary['rejected']:,} more could not be scored; rejects.parquet says why."
    return text + (rejected if summary["rejected"] else "")


def warn_missing_group(calibration: Calibration, columns: Collection[str]) -> None:
    """Warn if the column that selects the threshold of each row is missing."""
    if calibration.groups and calibration.groups.column not in columns:
        console.info(
            f"there is no column '{calibration.groups.column}', by which the model is calibrated: "
            "every row gets the overall threshold, which guarantees nothing for a single group"
        )


def group_thresholds(calibration: Calibration) -> dict[str, Any]:
    """Return the summary's entries about groups; empty for a model without groups."""
    if calibration.groups is None:
        return {}
    thresholds = {level: group.threshold for level, group in calibration.groups.by_level.items()}
    return {"group": calibration.groups.column, "group_thresholds": thresholds}
