"""Test whether scored rows still look like the calibration rows, as the guarantee assumes.

Null hypothesis: each row is exchangeable with the calibration rows of the same hour and weekday,
up to the variation from day to day that was seen among them, or, with probability
``anomaly_share`` or less, an anomaly, whose score may be anything. `martingale` tests counts of
p-values, of flags and of the values of each column against this hypothesis; `cycles` says what to
expect at which time. Without times, rows are exchangeable with all calibration rows: the urn of
p-values then starts with the number of calibration ranks per bin, and nothing is estimated.

The tests cover the newest block, the newest two blocks, and so on up to the whole window, so that a
shift within the window is detected early and rows outside it have no influence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, effective_rows, guaranteed_ranks
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.monitoring.cycles import (
    MIN_DAYS,
    WEEK_CELLS,
    Cycle,
    Timeline,
    fit_cycle,
    week_cells,
)
from anomaly_vae.monitoring.drift import CELLS, ColumnSketch, Drift, Sketches, fit_sketches
from anomaly_vae.monitoring.entities import Bins
from anomaly_vae.monitoring.martingale import (
    MAX_TESTS,
    Counts,
    Floats,
    log10_martingale,
    log10_martingales_of_columns,
    max_anomalies,
    max_flags,
    rows_until_noticed,
)
from anomaly_vae.scoring.modality import Encoding

Status = Literal["holding", "unknown", "doubtful", "broken"]
"""State of the guarantee.

``holding``: no evidence against it. ``unknown``: too few rows to tell. ``doubtful``: the rows
differ from the calibration rows. ``broken``: more rows are flagged than the guarantee and the known
share of anomalies explain.
"""
Lack = Literal["rows", "calibration"]
"""What is missing to tell more than ``unknown``: scored rows, or days, rows or entities of the
calibration, from which it is known how the number of flagged rows varies by itself."""
LACKS: tuple[Lack, ...] = ("rows", "calibration")
"""What may be missing."""
STATUSES: tuple[Status, ...] = ("holding", "unknown", "doubtful", "broken")
"""States of the guarantee, from best to worst."""

DOUBT_LEVEL = 0.05
"""Maximum probability, at any moment, of a false report of doubtful; about 0.5% were measured."""
BLOCKS = MAX_TESTS
"""Number of blocks per window; the oldest block is dropped when a new one begins."""
COLUMN_TESTS = (1, 4, 7, 15)
"""Windows that columns are tested in: the newest 2, 5, 8 and 16 blocks."""
BLOCK_FLAGS, BLOCK_ROWS = 2.5, (128, 4096)
"""Expected number of flags per block, and minimum and maximum number of its rows."""
TELLING_RATIO = 10
"""A window tells enough if flags at this multiple of alpha would break the guarantee."""
P_VALUES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Upper ends of the bins of p-values; bins too fine for the calibration rows are merged."""
MIN_RANKS = 5
"""Minimum number of calibration ranks in a bin."""
MAX_EXACT_ROWS = 100_000
"""Maximum number of rows for which the limit on flags is computed exactly.

For more rows, the limit is extrapolated and slightly too high.
"""
MANY_ROWS = 10_000
"""Number of rows that tell as much as any further ones would."""
HARMLESS_FLAGS = 12
"""Number of flags that never break the guarantee, and of rows that never raise doubts about it: a
few related rows may come together."""
FLAG_DIGITS = 3
"""Number of digits of the expected share of flags, relative to alpha; limits are cached."""
ROWS, FLAGGED, FIRST_BIN = 0, 1, 2
"""Positions in an array of counts: number of rows, of flagged rows, first bin of p-values."""
IS_FLAGGED = 1
"""Bin of flagged rows in the stream of flags."""
FIRST_COLUMN = 2
"""Position of the first column's stream, after those of p-values and of flags."""


@dataclass(frozen=True)
class Reference:
    """Properties of the calibration rows, other than their scores."""

    anomaly_share: float = 0.0
    """Upper bound on the share of anomalies among scored rows."""
    columns: tuple[ColumnSketch, ...] | None = None
    """Sketches of the columns; None if columns are not monitored (images)."""
    cycle: Cycle | None = None
    """Variation of the rows over time; None if their times are unknown or cover too few days."""

    def to_json(self) -> dict[str, Any]:
        """Return the reference without the cycle's arrays as plain JSON values, for the manifest.

        The time column is included if there is a cycle.
        """
        columns = self.columns and [column.model_dump(mode="json") for column in self.columns]
        content = {"anomaly_share": self.anomaly_share, "columns": columns}
        return content | ({"time": self.cycle.column} if self.cycle else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any], cycle: Cycle | None = None) -> Self:
        """Restore a reference from the result of `to_json` and its cycle."""
        columns = content["columns"]
        sketches = None if columns is None else tuple(map(ColumnSketch.model_validate, columns))
        return cls(content["anomaly_share"], sketches, cycle)


def fit_reference(encoding: Encoding, x: Matrix, anomaly_share: float = 0.0) -> Reference:
    """Summarise encoded calibration rows (N, F), which a `Monitor` compares other rows with."""
    if not encoding.columns:
        return Reference(anomaly_share)
    return Reference(anomaly_share, fit_sketches(encoding, x))


@dataclass(frozen=True, eq=False)
class TimedRows:
    """N scored rows of the calibration period."""

    scores: Floats
    """Scores (N,)."""
    x: Matrix
    """Encoded rows (N, F)."""
    timeline: Timeline
    """Times (N,)."""

    def first(self, count: int) -> TimedRows:
        """Return the first rows."""
        return TimedRows(self.scores[:count], self.x[:count], self.timeline.first(count))


def fit_times(
    calibration: Calibration,
    encoding: Encoding,
    reference: Reference,
    normal: TimedRows,
    traffic: TimedRows,
) -> Reference:
    """Add to a reference how rows of the calibration period vary over time.

    The reference stays as it is if the rows cover too few days, or have weights.

    Args:
        calibration: the threshold and the calibration scores.
        encoding: the encoding of the rows.
        reference: the reference to add to.
        normal: the normal rows of the period, whose scores and flags are expected of later rows.
            They include the calibration rows, and all others of their groups.
        traffic: these and the known anomalies of the period, whose columns are expected.
    """
    if calibration.weights is not None or normal.timeline.n_days < MIN_DAYS:
        return reference
    monitor = Monitor(calibration, encoding, reference)

    def fit(rows: TimedRows, streams: slice, **options: bool) -> Cycle:
        bins = monitor.bins(rows.scores, calibration.flags(rows.scores), rows.x)[:, streams]
        widths = monitor.widths[streams]
        return fit_cycle(rows.timeline, bins, widths, monitor.block_rows, **options)

    p_values, flags, columns = slice(1), slice(1, FIRST_COLUMN), slice(FIRST_COLUMN, None)
    cycle = fit(normal, p_values).beside(fit(normal, flags, rare=True))
    if len(monitor.widths) > FIRST_COLUMN:
        cycle = cycle.beside(fit(traffic, columns, trends=True))
    return replace(reference, cycle=cycle)


@dataclass(frozen=True)
class Report:
    """The result of testing the rows of a window."""

    status: Status
    rows: int
    flagged: int
    flagged_limit: int
    """Largest number of flagged rows that is compatible with the guarantee."""
    martingale_log10: float
    """Evidence that the rows differ from the calibration rows, as log10 of the martingale."""
    columns: tuple[Drift, ...] | None
    """Drift of each column; None if columns are not monitored."""
    lacks: Lack | None = None
    """What is missing to tell, if the status is ``unknown``."""

    @property
    def flagged_ratio(self) -> float:
        """Share of flagged rows."""
        return self.flagged / max(self.rows, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        columns = None if self.columns is None else list(map(asdict, self.columns))
        return {**asdict(self), "flagged_ratio": self.flagged_ratio, "columns": columns}


class Monitor:
    """Tests of the rows that one model scores, computed from additive counts.

    Counts (cells,) of different rows, also from different processes, can be added up.

    >>> import numpy as np
    >>> import pandas as pd
    >>> from anomaly_vae import TabularVAEDetector
    >>> rng = np.random.default_rng(0)
    >>> rows = pd.DataFrame(rng.normal(size=(200, 2)), columns=["a", "b"])
    >>> bundle = TabularVAEDetector(epochs=1, random_state=0).fit(rows).bundle_
    >>> batch = bundle.scorer.schema.from_columns({"a": [9.0] * 50, "b": [0.0] * 50}, 50)
    >>> detections = bundle.detector.detect(batch)
    >>> monitor, encoded = bundle.monitor, bundle.scorer.encoding.encode(batch)
    >>> counts = monitor.count(detections.score, detections.is_anomaly, encoded)
    >>> report = monitor.report(np.array([counts]))
    >>> report.status, report.flagged
    ('broken', 50)
    """

    def __init__(self, calibration: Calibration, encoding: Encoding, reference: Reference) -> None:
        self.reference = reference
        self._scores = calibration.scores
        self._edges = bin_edges(self._scores)
        self._urn = _initial_urn(self._edges, calibration.weights)
        self._total = float(self._urn.sum())
        self._alpha = guaranteed_ranks(calibration) / self._edges[-1]
        self._last_bin = FIRST_BIN + len(self._urn)
        self._sketches = None
        if reference.columns is not None:
            self._sketches = Sketches(encoding, reference.columns)
        self._first_week_cell = self._last_bin + self._n_columns * CELLS
        self._ages = self._first_week_cell + WEEK_CELLS
        self.cells = self._ages + 1 if reference.cycle else self._first_week_cell
        self.block_rows = int(np.clip(BLOCK_FLAGS / calibration.alpha, *BLOCK_ROWS))

    @property
    def _n_columns(self) -> int:
        return len(self._sketches.columns) if self._sketches else 0

    @cached_property
    def noticed_after(self) -> dict[str, int | None]:
        """Rows after which a change of a tenth of them is usually noticed, by tested column."""
        cycle, columns = self.reference.cycle, self.reference.columns
        if not cycle or columns is None:
            return {}
        totals = cycle.concentrations()[1:, FIRST_COLUMN:].min(axis=0)
        rows = map(rows_until_noticed, totals.tolist())
        return dict(zip((column.name for column in columns), rows, strict=True))

    @property
    def window_rows(self) -> int:
        """Number of rows in a full window."""
        return BLOCKS * self.block_rows

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of bins of each stream: p-values, flags, and each column."""
        return (len(self._urn), 2, *(CELLS for _ in range(self._n_columns)))

    def bins(self, scores: Floats, flags: NDArray[np.bool_], x: Matrix) -> Bins:
        """Return the bin (N, streams) of N rows in each stream."""
        columns = self._sketches.bins(x) if self._sketches else np.zeros((0, len(x)), np.uint8)
        return np.vstack([self._p_value_bins(scores), flags, columns]).T.astype(np.int64)

    def _p_value_bins(self, scores: Floats) -> NDArray[np.intp]:
        """Return the bin (N,) of p-values; rows are ranked among all calibration rows."""
        ranks = self._edges[-1] - self._scores.searchsorted(scores)
        return np.asarray(self._edges.searchsorted(ranks))

    def seconds(self, batch: RawBatch) -> Floats | None:
        """Return the times (N,) of rows, in seconds since 1970; None if they are unknown."""
        cycle = self.reference.cycle
        return batch.values.get(cycle.column) if cycle else None  # type: ignore[return-value]  # times

    def count(
        self,
        scores: Floats,
        flags: NDArray[np.bool_],
        x: Matrix | None,
        seconds: Floats | None = None,
    ) -> Counts:
        """Count N rows.

        Args:
            scores: (N,); they are ranked among all calibration rows, even if a group's calibration
                decided.
            flags: (N,).
            x: encoded rows (N, F); None if columns are not monitored.
            seconds: times (N,), from `seconds`.
        """
        counts = self.empty_counts
        counts[ROWS], counts[FLAGGED] = len(flags), flags.sum()
        bins = self._p_value_bins(scores)
        counts[FIRST_BIN : self._last_bin] = np.bincount(bins, minlength=len(self._urn))
        if self._sketches and x is not None:
            counts[self._last_bin : self._first_week_cell] = self._sketches.count(x)
        if self.reference.cycle:
            times = np.full(len(flags), np.nan) if seconds is None else seconds
            cells = week_cells(times)
            counts[self._ages] = self.reference.cycle.ages(times).sum()
            counts[self._first_week_cell : self._ages] = np.bincount(cells, minlength=WEEK_CELLS)
        return counts

    @property
    def empty_counts(self) -> Counts:
        """Counts of zero rows."""
        return np.zeros(self.cells, np.int64)

    def report(self, blocks: Counts) -> Report:
        """Test the counts (S, cells) of a window's blocks, the newest block first."""
        recent = np.cumsum(blocks, axis=0)
        (expected, trends), whole = self._expected(recent), recent[-1]
        anomalies = max_anomalies(recent[:, ROWS], self.reference.anomaly_share)
        limits = self._limits(recent[:, ROWS], expected[1])
        drift = self._drift(recent, expected[FIRST_COLUMN:], trends)
        p_values = recent[:, FIRST_BIN : self._last_bin]
        martingale = _mean_log10(log10_martingale(p_values, expected[0], anomalies), drift)
        broken = bool((recent[:, FLAGGED] > limits).any())
        rows, flagged = int(whole[ROWS]), int(whole[FLAGGED])
        status = self._status(rows, limits[-1], martingale, broken)
        lacks = self._lacks(rows, expected[1][-1]) if status == "unknown" else None
        return Report(status, rows, flagged, limits[-1], martingale, drift, lacks)

    def _status(self, rows: int, limit: int, martingale: float, broken: bool) -> Status:
        """Return the status for the whole window's limit on flags and the evidence."""
        if rows <= HARMLESS_FLAGS:
            return "unknown"
        if broken:
            return "broken"
        if martingale >= -math.log10(DOUBT_LEVEL):
            return "doubtful"
        return "holding" if self._tells(rows, limit) else "unknown"

    def _tells(self, rows: int, limit: int) -> bool:
        """Return whether flags at `TELLING_RATIO` times alpha would exceed the limit."""
        return bool(limit < rows * min(TELLING_RATIO * self._alpha, 1.0))

    def _lacks(self, rows: int, urn: Floats) -> Lack:
        """Return what is missing to tell more of ``rows`` rows, given the urn (2,) of flags."""
        if rows <= HARMLESS_FLAGS:
            return "rows"
        return "rows" if self._tells(MANY_ROWS, self._limit(MANY_ROWS, urn)) else "calibration"

    @cached_property
    def _shares(self) -> tuple[Floats, ...]:
        """Expected shares (`WEEK_CELLS`, B) of the bins of each stream, given a cycle."""
        assert self.reference.cycle
        shares = self.reference.cycle.shares(self.widths)
        return tuple(np.split(shares, np.cumsum(self.widths)[:-1], axis=1))

    def _expected(self, recent: Counts) -> tuple[list[Floats], Floats]:
        """Return the urn (S, B) of p-values, of flags and of each column for S windows.

        The total of an urn is its concentration. Columns are only tested given a cycle. The second
        result is the concentration (K, F, S) of the score of either end of F columns.
        """
        if not self.reference.cycle:
            same = np.ones(len(recent))
            return [self._urn, self._flag_urn(same, self._total * same)], np.empty(0)
        times = recent[:, self._first_week_cell : self._ages].copy()
        times[:, -1] += times.sum(axis=1) == 0  # no rows are like rows of an unknown time
        weights = times / times.sum(axis=1, keepdims=True)
        ages = recent[:, self._ages] / np.maximum(recent[:, ROWS], 1)
        found = self.reference.cycle.totals(times, ages, self.widths)
        found[:, :FIRST_COLUMN] = np.minimum(found[:, :FIRST_COLUMN], self._total)
        totals, trends = found.min(axis=0), found[1:, FIRST_COLUMN:]
        pairs = zip(self._shares, totals[..., None], strict=True)
        urns = [total * (weights @ shares) for shares, total in pairs]
        flags = self._flag_urn(self._flag_ratio(urns[1]), totals[1])
        return [urns[0], flags, *urns[2:]], trends

    def _flag_ratio(self, urn: Floats) -> Floats:
        """Return the expected share (S,) of flags relative to that among the calibration rows."""
        assert self.reference.cycle
        first = len(self._urn)
        flags = self.reference.cycle.hours[:, first : first + 2].sum(axis=0) + 0.5
        share = urn[:, IS_FLAGGED] / urn.sum(axis=1)
        return np.asarray(share / (flags[IS_FLAGGED] / flags.sum()))

    def _flag_urn(self, ratio: Floats, total: Floats) -> Floats:
        """Return the urn (S, 2) of flags that the guarantee allows, for this ratio (S,) of them."""
        share = np.minimum(self._alpha * np.round(ratio, FLAG_DIGITS), 1.0)
        return np.asarray(total[:, None] * np.column_stack([1 - share, share]))

    def _limits(self, rows: Counts, urns: Floats) -> list[int]:
        """Return the largest number of flags compatible with the guarantee, for S windows."""
        return [self._limit(*pair) for pair in zip(rows.tolist(), urns, strict=True)]

    def _limit(self, rows: int, urn: Floats) -> int:
        """Return the largest number of flags among ``rows`` rows, for an urn (2,)."""
        exact, share = min(rows, MAX_EXACT_ROWS), self.reference.anomaly_share
        flags = max_flags(exact, float(urn[IS_FLAGGED]), float(urn.sum()), share)
        return max(math.ceil(flags * max(rows / MAX_EXACT_ROWS, 1.0)), min(rows, HARMLESS_FLAGS))

    def _drift(
        self, recent: Counts, urns: list[Floats], trends: Floats
    ) -> tuple[Drift, ...] | None:
        """Compare the columns with those of the calibration rows, and test them given a cycle."""
        if not self._sketches:
            return None
        counts = recent[:, self._last_bin : self._first_week_cell]
        drift = self._sketches.drift(counts[-1])
        if not self.reference.cycle:
            return drift
        tests = sorted({min(test, len(recent) - 1) for test in COLUMN_TESTS})
        by_column = np.stack(np.split(counts[tests], self._n_columns, axis=1))
        urn, totals = np.stack(urns)[:, tests], trends[..., tests]
        logs = log10_martingales_of_columns(by_column, urn, totals).tolist()
        triples = zip(drift, logs, self.noticed_after.values(), strict=True)
        return tuple(
            replace(column, martingale_log10=log, noticed_after=rows)
            for column, log, rows in triples
        )


def _mean_log10(p_values: float, drift: tuple[Drift, ...] | None) -> float:
    """Return log10 of the mean of the martingales of p-values and of the columns together."""
    logs = [column.martingale_log10 for column in drift or ()]
    tested = [log for log in logs if log is not None]
    if not tested:
        return p_values
    parts = np.array([p_values, *tested])
    weights = np.array([1.0, *(1 / len(tested) for _ in tested)]) / 2
    highest = parts.max()
    return float(highest + np.log10((weights * 10 ** (parts - highest)).sum()))


class Window:
    """The counts of the most recent rows, in a ring of `BLOCKS` blocks.

    ``memory`` (1 + `BLOCKS`, cells) is the complete state: the first entry of its first row is the
    index of the newest block, the other rows are the blocks.
    """

    def __init__(self, monitor: Monitor, memory: Counts | None = None) -> None:
        self._rows = monitor.block_rows
        self.memory: Counts = (
            np.zeros(window_shape(monitor), np.int64) if memory is None else memory
        )

    def add(self, counts: Counts) -> None:
        """Add counts to the newest block, and begin a new block once it is full."""
        newest = int(self.memory[0, 0])
        self.memory[1 + newest] += counts
        if self.memory[1 + newest, ROWS] >= self._rows:
            newest = (newest + 1) % BLOCKS
            self.memory[1 + newest] = 0
            self.memory[0, 0] = newest

    @property
    def blocks(self) -> Counts:
        """Counts (S, cells) of the blocks that have rows, newest first; at least one block."""
        newest = int(self.memory[0, 0])
        recent = np.roll(self.memory[1:], -1 - newest, axis=0)[::-1]
        return np.array(recent[(recent[:, ROWS] > 0) | (np.arange(BLOCKS) == 0)])


def window_shape(monitor: Monitor) -> tuple[int, int]:
    """Return the shape of a window's memory."""
    return 1 + BLOCKS, monitor.cells


def bin_edges(scores: Floats) -> NDArray[np.intp]:
    """Return the last rank, from 1 to n + 1, of each bin of p-values for sorted scores (n,).

    Equal scores have the same p-value and therefore share a bin.
    """
    n = len(scores)
    distinct = np.unique(n + 1 - np.searchsorted(scores, scores, side="left"))
    attained = np.concatenate([[1], distinct])
    nearest = np.searchsorted(attained, np.round(np.array(P_VALUES) * (n + 1)), side="right") - 1
    edges = [0]
    for edge in attained[nearest.clip(0)].tolist():
        if edge - edges[-1] >= MIN_RANKS and n + 1 - edge >= MIN_RANKS:
            edges.append(edge)
    return np.array([*edges[1:], n + 1], np.intp)


def _initial_urn(edges: NDArray[np.intp], weights: Floats | None) -> Floats:
    """Return the initial content of the urn: the number of ranks in each bin.

    If rows are weighted, the total is their effective number (`effective_rows`) plus 1.
    """
    if weights is None:
        return np.diff(edges, prepend=0).astype(np.float64)
    falling = np.append(weights.max(), weights[::-1])
    mass = np.add.reduceat(falling, np.concatenate([[0], edges[:-1]]))
    return np.asarray(mass / mass.sum() * (effective_rows(weights) + 1))
