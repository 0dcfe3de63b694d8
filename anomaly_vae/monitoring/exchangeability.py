"""Test whether scored rows still look like the calibration rows, as the guarantee assumes.

Null hypothesis: each row is exchangeable with the calibration rows, or, with probability
``anomaly_share`` or less, an anomaly, whose score may be anything. Then the shares of normal rows
between given ranks of n calibration scores are Dirichlet distributed, and the counts of later rows
between them are Dirichlet-multinomial: a Pólya urn whose initial content is the number of
calibration ranks per bin. The null hypothesis thus includes the error of a finite calibration
sample, and nothing is estimated.

*The martingale* bets against that urn: it is the likelihood of the counts under shares drawn at
random around the calibrated ones, divided by their likelihood under the null hypothesis (a
conformal test martingale, Vovk, Nouretdinov & Gammerman 2003, of binned p-values). *The number of
flags* is beta-binomial under the null hypothesis (Vovk 2012, prop. 2a). Before each test, the
largest plausible number of anomalies is removed from the rows: those that contradict the null
hypothesis most. The tests cover the
newest block, the newest two blocks, and so on up to the whole window, so that a shift within the
window is detected early and rows outside it have no influence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, effective_rows, guaranteed_ranks
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.monitoring.drift import ColumnSketch, Counts, Drift, Sketches, fit_sketches
from anomaly_vae.scoring.modality import Encoding

Floats = NDArray[np.float64]
Status = Literal["holding", "doubtful", "broken"]
"""State of the guarantee.

``holding``: no evidence against it. ``doubtful``: the rows differ from the calibration rows.
``broken``: more rows are flagged than the guarantee and the known share of anomalies explain.
"""
STATUSES: tuple[Status, ...] = ("holding", "doubtful", "broken")
"""States of the guarantee, from best to worst."""

DOUBT_LEVEL, BREACH_LEVEL = 0.01, 0.001
"""Maximum probability, at any moment, of a false report of doubtful, and of broken."""
BLOCKS = 16
"""Number of blocks per window; the oldest block is dropped when a new one begins."""
BLOCK_FLAGS, BLOCK_ROWS = 2.5, (128, 4096)
"""Expected number of flags per block, and minimum and maximum number of its rows."""
P_VALUES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Upper ends of the bins of p-values; bins too fine for the calibration rows are merged."""
MIN_RANKS = 5
"""Minimum number of calibration ranks in a bin."""
CONCENTRATIONS = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""Concentrations of the Dirichlet distributions that the martingale bets on.

A larger concentration means a bet on a smaller shift.
"""
BISECTION_STEPS = 30
"""Number of bisection steps, each of which halves the interval."""
MAX_EXACT_ROWS = 100_000
"""Maximum number of rows for which the limit on flags is computed exactly.

For more rows, the limit is extrapolated and slightly too high.
"""
ROWS, FLAGGED, FIRST_BIN = 0, 1, 2
"""Positions in an array of counts: number of rows, of flagged rows, first bin of p-values."""


@dataclass(frozen=True)
class Reference:
    """Properties of the calibration rows, other than their scores."""

    anomaly_share: float = 0.0
    """Upper bound on the share of anomalies among scored rows."""
    columns: tuple[ColumnSketch, ...] | None = None
    """Sketches of the columns; None if columns are not monitored (images)."""

    def to_json(self) -> dict[str, Any]:
        """Return the reference as plain JSON values, for the manifest."""
        columns = self.columns and [column.model_dump(mode="json") for column in self.columns]
        return {"anomaly_share": self.anomaly_share, "columns": columns}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a reference from the result of `to_json`."""
        columns = content["columns"]
        sketches = None if columns is None else tuple(map(ColumnSketch.model_validate, columns))
        return cls(content["anomaly_share"], sketches)


def fit_reference(encoding: Encoding, batch: RawBatch, anomaly_share: float = 0.0) -> Reference:
    """Summarise calibration rows, so that a `Monitor` can compare other rows with them."""
    if not encoding.columns:
        return Reference(anomaly_share)
    return Reference(anomaly_share, fit_sketches(encoding, encoding.encode(batch)))


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
        self._flagged_ranks = guaranteed_ranks(calibration) * self._urn.sum() / self._edges[-1]
        self._last_bin = FIRST_BIN + len(self._urn)
        self._sketches = None
        if reference.columns is not None:
            self._sketches = Sketches(encoding, reference.columns)
        width = len(self._sketches.count(_empty_matrix(encoding))) if self._sketches else 0
        self.cells = self._last_bin + width
        self.block_rows = int(np.clip(BLOCK_FLAGS / calibration.alpha, *BLOCK_ROWS))

    def count(self, scores: Floats, flags: NDArray[np.bool_], x: Matrix | None) -> Counts:
        """Count N rows by score and, if columns are monitored, by encoded columns ``x`` (N, F).

        Scores are ranked among all calibration rows, even if a group's calibration decided.
        """
        counts = self.empty_counts
        counts[ROWS], counts[FLAGGED] = len(flags), flags.sum()
        ranks = self._edges[-1] - self._scores.searchsorted(scores)
        bins = self._edges.searchsorted(ranks)
        counts[FIRST_BIN : self._last_bin] = np.bincount(bins, minlength=len(self._urn))
        if self._sketches and x is not None:
            counts[self._last_bin :] = self._sketches.count(x)
        return counts

    @property
    def empty_counts(self) -> Counts:
        """Counts of zero rows."""
        return np.zeros(self.cells, np.int64)

    def report(self, blocks: Counts) -> Report:
        """Test the counts (S, cells) of a window's blocks, the newest block first."""
        recent = np.cumsum(blocks, axis=0)
        rows = recent[:, ROWS]
        anomalies = _max_anomalies(rows, self.reference.anomaly_share)
        martingale = _log10_martingale(recent[:, FIRST_BIN : self._last_bin], self._urn, anomalies)
        limits = [self._limit(int(n), int(m)) for n, m in zip(rows, anomalies, strict=True)]
        broken = (recent[:, FLAGGED] > limits).any()
        doubtful = martingale >= -math.log10(DOUBT_LEVEL)
        whole = recent[-1]
        return Report(
            "broken" if broken else "doubtful" if doubtful else "holding",
            int(whole[ROWS]),
            int(whole[FLAGGED]),
            limits[-1],
            martingale,
            self._sketches.drift(whole[self._last_bin :]) if self._sketches else None,
        )

    def _limit(self, rows: int, anomalies: int) -> int:
        """Return the largest number of flags compatible with the guarantee."""
        exact = min(rows, MAX_EXACT_ROWS)
        flags = _max_flags(exact, self._flagged_ranks, float(self._urn.sum()))
        return anomalies + math.ceil(flags * max(rows / MAX_EXACT_ROWS, 1.0))


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


def _log10_martingale(counts: Counts, urn: Floats, anomalies: Floats) -> float:
    """Return log10 of the martingale, given counts (S, B) of the newest 1 to S blocks.

    The martingale is the mean over S possible starting points and K possible sizes of a shift. Each
    term is the likelihood ratio of two Pólya urns after the possible anomalies were removed.
    """
    total = urn.sum()
    concentrations = np.array([k for k in CONCENTRATIONS if k < total])[:, None]
    if not len(concentrations):
        return 0.0
    bets = (concentrations * urn / total)[:, None, :]
    remaining_counts = _without_most_extreme(counts, urn, bets, anomalies)
    n = remaining_counts.sum(axis=2)
    logs = (_log_rising(bets, remaining_counts) - _log_rising(urn, remaining_counts)).sum(axis=2)
    logs += _log_rising(total, n) - _log_rising(concentrations, n)
    highest = logs.max()
    return float((highest + np.log(np.exp(logs - highest).mean())) / math.log(10))


def _without_most_extreme(counts: Counts, urn: Floats, bets: Floats, anomalies: Floats) -> Floats:
    """Return counts (K, S, B) without the rows that raise the likelihood ratio most.

    The last of c rows in a bin multiplies the ratio by (bet + c − 1) / (urn + c − 1), which rises
    with c. The counts of all bins are therefore reduced until this factor is at the same level in
    each bin, but no further than removing rows lowers the ratio. About ``anomalies`` (S,) rows are
    removed, possibly one or two more.
    """

    def remaining(level: Floats) -> Floats:
        return np.clip(np.floor(1 + (level * urn - bets) / (1 - level)), 0, counts)

    if not anomalies.any():
        return np.repeat(counts[None].astype(np.float64), len(bets), axis=0)
    rows, removable = counts.sum(axis=1, keepdims=True), anomalies[:, None]
    bet_total, total = bets.sum(axis=2, keepdims=True), urn.sum()
    low = bet_total / total + np.zeros_like(removable)
    high = np.ones((len(bets), len(counts), 1))
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        n = remaining(middle).sum(axis=2, keepdims=True)
        lower = (rows - n <= removable) & (middle >= (bet_total + n) / (total + n))
        low, high = np.where(lower, low, middle), np.where(lower, middle, high)
    return remaining(low)


def _log_rising(start: Floats | float, count: Floats) -> Floats:
    """Return log(start · (start + 1) ⋯ (start + count − 1)); arguments are broadcast."""
    return np.asarray(_log_gamma(start + count) - _log_gamma(start))


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def _max_anomalies(rows: Counts, share: float) -> Floats:
    """Return the largest plausible number of anomalies (S,) among ``rows`` (S,).

    All S bounds hold together with probability 1 − `BREACH_LEVEL` / 2 (Bernstein 1924).
    """
    if not share:
        return np.zeros(len(rows))
    level = math.log(2 * BLOCKS / BREACH_LEVEL)
    spread = np.sqrt(level**2 / 9 + 2 * level * rows * share * (1 - share))
    return np.asarray(np.minimum(np.floor(rows * share + level / 3 + spread), rows))


@lru_cache(maxsize=1024)
def _max_flags(rows: int, flagged: float, ranks: float) -> int:
    """Return the largest number of flags among ``rows`` normal rows under the guarantee.

    The number is beta-binomial (flagged, ranks − flagged), as in `max_fpr_under_guarantee`; it
    exceeds the limit with probability `BREACH_LEVEL` / (2 · `BLOCKS`).
    """
    rest, level = ranks - flagged, 1 - BREACH_LEVEL / (2 * BLOCKS)
    none = math.lgamma(rows + rest) - math.lgamma(rest) + math.lgamma(ranks)
    logs, reached = np.array([none - math.lgamma(rows + ranks)]), np.zeros(1)
    while reached[-1] < level and len(logs) <= rows:
        j = np.arange(min(4 * len(logs) + 60, rows))
        steps = np.log((rows - j) * (j + flagged) / ((j + 1.0) * (rows - j - 1 + rest)))
        logs = logs[0] + np.concatenate([[0.0], np.cumsum(steps)])
        reached = np.cumsum(np.exp(logs))
    return int(np.searchsorted(reached, level))


def _empty_matrix(encoding: Encoding) -> Matrix:
    return np.zeros((0, encoding.layout.n_columns), np.float32)
