"""Provide the options, counts and result columns that scoring tables and images share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.messages import NOUNS, plain_number
from anomaly_vae.monitoring.exchangeability import Monitor
from anomaly_vae.review.p_values import bin_counts
from anomaly_vae.scoring.detector import Detections, Explanation
from pipelines import console
from pipelines.batch import ExplainedRows, MapFormat
from pipelines.batch.drift_report import show_guarantee
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import Record, part_reject_schema
from pipelines.registry.model_uri import LoadedModel

if TYPE_CHECKING:
    from anomaly_vae.images.geometry import Box

T = TypeVar("T")

CONTRIBUTION = pa.struct(
    [
        ("feature", pa.string()),
        ("nats", pa.float64()),
        ("observed", pa.string()),
        ("expected", pa.string()),
    ]
)
REGION = pa.struct(
    [
        ("box", pa.list_(pa.int32())),
        ("nats", pa.float64()),
        ("share", pa.float64()),
        ("source_box", pa.list_(pa.int32())),
    ]
)

Explain = int | str | None
"""Number of contributions to list per row: K, "all", or None for no explanation."""

UNREADABLE = "(unreadable)"
"""Key under which rejects are counted that are not caused by a column."""
EXPLANATION_COLUMNS = ("contributions", "regions", "rest", "kl")
"""Columns of the explanations of tables or images."""
RESULT_COLUMNS = ("score", "p_value", "is_anomaly", "unusual_input", "contributions", "rest", "kl")
"""Result columns of every model."""
GROUP_COLUMNS = ("group", "threshold")
"""Additional result columns of a model that is calibrated by group."""


@dataclass(frozen=True)
class HeatmapOptions:
    """The formats in which the heatmap of each flagged image is written."""

    png: bool = False
    dicom: bool = False
    maps: MapFormat | None = None
    """Format of maps in the pixels of the file; None for no such maps."""

    @property
    def in_plan(self) -> dict[str, Any]:
        """The options by their names on the command line."""
        maps = {"--maps": self.maps} if self.maps else {}
        return {"--heatmaps": self.png, "--dicom-out": self.dicom, **maps}


NO_HEATMAPS = HeatmapOptions()


@dataclass(frozen=True)
class ImageRows:
    """Further columns and source pixels of the result rows of N images."""

    columns: Mapping[str, pa.Array]
    """Further columns (N,)."""
    to_source: Callable[[int, Box], Box | None]
    """Function that returns the box in the pixels of the i-th image that covers a box in the
    square that the model sees."""


@dataclass(frozen=True)
class Explaining:
    """How many contributions are listed, and of which rows."""

    most: Explain = None
    rows: ExplainedRows = ExplainedRows.FLAGGED
    fdr: float | None = None
    """False discovery rate; rows with a higher p-value are certain not to be flagged."""

    @property
    def in_plan(self) -> dict[str, Any]:
        """The options by their names on the command line; None where they are not given."""
        return {
            "--explain": self.most,
            "--explain-rows": self.rows if self.most else None,
            "--fdr": self.fdr,
        }

    def of(self, detections: Detections) -> NDArray[np.intp]:
        """Return the positions of the rows to explain."""
        if self.most is None:
            return np.zeros(0, np.intp)
        if self.rows == ExplainedRows.ALL:
            return np.arange(len(detections.score))
        chosen = detections.is_anomaly if self.fdr is None else detections.p_value <= self.fdr
        return np.flatnonzero(chosen)

    def column(
        self, detections: Detections, explanations: Mapping[int, Explanation]
    ) -> list[Explanation | None] | None:
        """Return the explanation (N,) of each row, None for others; None without explanations."""
        if self.most is None:
            return None
        return [explanations.get(row) for row in range(len(detections.score))]


def counts_of(
    monitor: Monitor, detections: Detections, x: Matrix | None = None, batch: RawBatch | None = None
) -> Counts:
    """Count N scored rows; ``x`` (N, F) and ``batch`` are the rows of a table."""
    seconds = monitor.seconds(batch) if batch else None
    counts = Counts(len(detections.score), int(detections.is_anomaly.sum()))
    counts.unusual = detections.unusual
    counts.monitor = monitor.count(detections.score, detections.is_anomaly, x, seconds)
    counts.scores.count(detections.score)
    bins = bin_counts(detections.p_value)
    used = np.flatnonzero(bins)
    counts.p_values.update(dict(zip(used.tolist(), bins[used].tolist(), strict=True)))
    return counts


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
    explanations: Sequence[Explanation | None] | None = None,
    images: ImageRows | None = None,
) -> pa.Table:
    """Build N result rows from keys, decisions and explanations, if rows are explained at all.

    Explanations list contributions of columns or, of images, regions. A row without an explanation
    has nulls. ``images`` is what only images have; None for rows of a table.
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
    columns |= images.columns if images else {}
    if explanations is not None:
        columns |= _regions(explanations, images) if images else _contribution_lists(explanations)
        columns["rest"] = pa.array([row and row.rest for row in explanations], pa.float64())
        columns["kl"] = pa.array([row and row.kl for row in explanations], pa.float64())
    return pa.table(columns)


def _regions(explanations: Sequence[Explanation | None], images: ImageRows) -> dict[str, pa.Array]:
    rows = [
        row and [{**asdict(one), "source_box": images.to_source(i, one.box)} for one in row.regions]
        for i, row in enumerate(explanations)
    ]
    return {"regions": pa.array(rows, pa.list_(REGION))}


def _contribution_lists(explanations: Sequence[Explanation | None]) -> dict[str, pa.Array]:
    rows = [row and list(_contributions(row)) for row in explanations]
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


class Reject(NamedTuple):
    """A row, line or file that cannot be scored."""

    file: int
    """Index of the file."""
    row: int | None
    """Position in the file; None for a file."""
    name: Any
    """Id; None if there is none."""
    column: str | None
    reason: str


def reject_table(rejects: Sequence[Reject], key: pa.Field | None) -> pa.Table | None:
    """Build the rejects of a part; None without any."""
    if not rejects:
        return None
    schema = part_reject_schema(key)
    columns = list(zip(*rejects, strict=True))
    if key is None:
        del columns[2]
    arrays = [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def model_entry(source: LoadedModel) -> dict[str, Any]:
    """Return the model as a plan stores it."""
    return {"uri": source.uri, **source.to_json()}


def summary_of(
    source: LoadedModel, files: int, counts: Counts, records: Sequence[Record]
) -> dict[str, Any]:
    """Summarise a result: the model, its threshold, and counts that add up to the input."""
    calibration, monitor = source.bundle.detector.calibration, source.bundle.monitor
    blocks = monitor.empty_counts if counts.monitor is None else counts.monitor
    report = monitor.report(blocks[None])
    show_guarantee(report, source.kind)
    return {
        "model": source.to_json(),
        "fdr": None,
        "alpha": calibration.alpha,
        "threshold": calibration.threshold,
        **group_thresholds(calibration),
        "unit": source.bundle.detector.unit,
        "files": files,
        "rows": counts.scored + counts.rejected,
        "scored": counts.scored,
        "flagged": counts.flagged,
        "unusual": counts.unusual,
        "rejected": counts.rejected,
        "rejected_by_column": dict(counts.rejects_by_column.most_common()),
        "score_quantiles": counts.scores.quantiles(),
        "guarantee": report.to_json(),
        "parts": [name for record in records for name in record.parts],
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
