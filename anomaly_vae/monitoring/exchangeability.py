"""Whether what is scored still looks like the calibration rows: a promise that is watched.

Null hypothesis: each row is, with probability ``anomaly_share`` at most, an anomaly of any score,
and otherwise exchangeable with the calibration rows. Then the shares of normal rows between given
ranks of n calibration scores are Dirichlet, and how many of later rows lie there is
Dirichlet-multinomial: a Pólya urn that begins with the calibration ranks. So the error of a finite
calibration sample is part of the null, and nothing is estimated.

*The martingale* bets against that urn: the likelihood of the counts if the shares were drawn anew
around the calibrated ones, over that under the null (a conformal test martingale, Vovk, Nouretdinov
& Gammerman 2003, of binned p-values). *The flags* are beta-binomial under the null (Vovk 2012,
prop. 2a). Both first set aside as many rows as may be anomalies, those that speak most against the
null. The last rows, the last but a few, … up to the whole window are each tested, so that what
begins within the window is seen early and what has left it is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, effective_rows, promised_ranks
from anomaly_vae.data.encoding import Matrix, TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.monitoring.drift import ColumnSketch, Counts, Drift, Sketches, fit_sketches
from anomaly_vae.scoring.modality import Encoding

Floats = NDArray[np.float64]
Status = Literal["holding", "doubtful", "broken"]
"""Nothing speaks against the promise; the rows are not like the calibration rows; more of them are
flagged than a kept promise and the known share of anomalies explain."""
STATUSES: tuple[Status, ...] = ("holding", "doubtful", "broken")

DOUBT, BREACH = 0.01, 0.001
"""How often, at any moment, kept promises are called doubtful or broken, at most."""
BLOCKS = 16
"""Parts of a window; the oldest is forgotten as a new one begins."""
BLOCK_FLAGS, BLOCK_ROWS = 2.5, (128, 4096)
"""A block is of so many expected flags, within these numbers of rows."""
P_VALUES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Bins of p-values, each up to here, where the calibration rows resolve them."""
FEWEST_RANKS = 5
"""Calibration ranks in a bin, at least."""
CONCENTRATIONS = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""How close to the calibrated shares the martingale bets that those of a shift lie."""
HALVINGS = 30
"""Steps of a bisection."""
MOST_DRAWS = 100_000
"""Rows whose number of flags is worked out exactly; for more, the limit is a little too high."""
ROWS, FLAGGED, FIRST_BIN = 0, 1, 2
"""Where counts have the number of rows, of flagged ones, and the first bin of p-values."""


@dataclass(frozen=True)
class Reference:
    """What is known of the calibration rows beside their scores."""

    anomaly_share: float = 0.0
    """so many of other rows may be anomalies"""
    columns: tuple[ColumnSketch, ...] | None = None
    """None: not watched, as of images"""

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        columns = self.columns and [column.model_dump(mode="json") for column in self.columns]
        return {"anomaly_share": self.anomaly_share, "columns": columns}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        columns = content["columns"]
        sketches = None if columns is None else tuple(map(ColumnSketch.model_validate, columns))
        return cls(content["anomaly_share"], sketches)


def fit_reference(encoding: Encoding, batch: RawBatch, anomaly_share: float = 0.0) -> Reference:
    """What is to be known of these calibration rows."""
    if not isinstance(encoding, TabularEncoding):
        return Reference(anomaly_share)
    return Reference(anomaly_share, fit_sketches(encoding, encoding.encode(batch)))


@dataclass(frozen=True)
class Report:
    """What the rows of a window say of the promise."""

    status: Status
    rows: int
    flagged: int
    flagged_limit: int
    """the most that a kept promise explains among so many rows"""
    martingale_log10: float
    columns: tuple[Drift, ...] | None
    """None: not watched"""

    @property
    def flagged_ratio(self) -> float:
        """The share of the rows that is flagged."""
        return self.flagged / max(self.rows, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        columns = None if self.columns is None else list(map(asdict, self.columns))
        return {**asdict(self), "flagged_ratio": self.flagged_ratio, "columns": columns}


class Monitor:
    """What is counted of the rows that one model scores, and what the counts say.

    Counts are (cells,) and add up, whoever counted.
    """

    def __init__(self, calibration: Calibration, encoding: Encoding, reference: Reference) -> None:
        self.reference = reference
        self._scores = calibration.scores
        self._edges = bin_edges(self._scores)
        self._urn = _urn(self._edges, calibration.weights)
        self._flagged_ranks = promised_ranks(calibration) * self._urn.sum() / self._edges[-1]
        self._last_bin = FIRST_BIN + len(self._urn)
        self._sketches = None
        if reference.columns is not None and isinstance(encoding, TabularEncoding):
            self._sketches = Sketches(encoding, reference.columns)
        width = len(self._sketches.count(_no_rows(encoding))) if self._sketches else 0
        self.cells = self._last_bin + width
        self.block_rows = int(np.clip(BLOCK_FLAGS / calibration.alpha, *BLOCK_ROWS))

    def count(self, scores: Floats, flags: NDArray[np.bool_], x: Matrix | None) -> Counts:
        """N rows, of a table encoded as ``x`` (N, F) → (cells,)

        Ranks are among all calibration rows, whatever the group that decided.
        """
        counts = self.nothing
        counts[ROWS], counts[FLAGGED] = len(flags), flags.sum()
        ranks = self._edges[-1] - self._scores.searchsorted(scores)
        bins = self._edges.searchsorted(ranks)
        counts[FIRST_BIN : self._last_bin] = np.bincount(bins, minlength=len(self._urn))
        if self._sketches and x is not None:
            counts[self._last_bin :] = self._sketches.count(x)
        return counts

    @property
    def nothing(self) -> Counts:
        """The counts of no rows."""
        return np.zeros(self.cells, np.int64)

    def report(self, blocks: Counts) -> Report:
        """What the counts of a window's blocks (S, cells), the newest first, say."""
        recent = np.cumsum(blocks, axis=0)
        spare = _most_anomalies(recent[:, ROWS], self.reference.anomaly_share)
        martingale = _evidence(recent[:, FIRST_BIN : self._last_bin], self._urn, spare)
        limits = [self._limit(int(n), int(m)) for n, m in zip(recent[:, ROWS], spare, strict=True)]
        broken = (recent[:, FLAGGED] > limits).any()
        doubtful = martingale >= -math.log10(DOUBT)
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
        most = _most_flags(min(rows, MOST_DRAWS), self._flagged_ranks, float(self._urn.sum()))
        return anomalies + math.ceil(most * max(rows / MOST_DRAWS, 1.0))


class Window:
    """The counts of the last rows, in `BLOCKS` that are forgotten one after another.

    ``memory`` (1 + `BLOCKS`, cells) holds all there is, the newest block's number first.
    """

    def __init__(self, monitor: Monitor, memory: Counts | None = None) -> None:
        self._rows = monitor.block_rows
        self.memory: Counts = np.zeros(shape(monitor), np.int64) if memory is None else memory

    def add(self, counts: Counts) -> None:
        """Add the counts of some rows to the newest block, and begin another where it is full."""
        newest = int(self.memory[0, 0])
        self.memory[1 + newest] += counts
        if self.memory[1 + newest, ROWS] >= self._rows:
            newest = (newest + 1) % BLOCKS
            self.memory[1 + newest] = 0
            self.memory[0, 0] = newest

    @property
    def blocks(self) -> Counts:
        """(S, cells), the newest first; one at least, empty where there are no rows yet."""
        newest = int(self.memory[0, 0])
        recent = np.roll(self.memory[1:], -1 - newest, axis=0)[::-1]
        return np.array(recent[(recent[:, ROWS] > 0) | (np.arange(BLOCKS) == 0)])


def shape(monitor: Monitor) -> tuple[int, int]:
    """That of the memory of a window."""
    return 1 + BLOCKS, monitor.cells


def bin_edges(scores: Floats) -> NDArray[np.intp]:
    """The last rank, 1 to n + 1, of each bin of p-values, for sorted calibration scores (n,).

    Equal scores are never parted: p-values of rows that equal them stand for all of their ranks.
    """
    n = len(scores)
    distinct = np.unique(n + 1 - np.searchsorted(scores, scores, side="left"))
    attained = np.concatenate([[1], distinct])
    wanted = np.searchsorted(attained, np.round(np.array(P_VALUES) * (n + 1)), side="right") - 1
    edges = [0]
    for edge in attained[wanted.clip(0)].tolist():
        if edge - edges[-1] >= FEWEST_RANKS and n + 1 - edge >= FEWEST_RANKS:
            edges.append(edge)
    return np.array([*edges[1:], n + 1], np.intp)


def _urn(edges: NDArray[np.intp], weights: Floats | None) -> Floats:
    """The ranks in each bin; weighted rows are as many as they are worth (`effective_rows`)."""
    if weights is None:
        return np.diff(edges, prepend=0).astype(np.float64)
    falling = np.append(weights.max(), weights[::-1])
    mass = np.add.reduceat(falling, np.concatenate([[0], edges[:-1]]))
    return np.asarray(mass / mass.sum() * (effective_rows(weights) + 1))


def _evidence(counts: Counts, urn: Floats, spare: Floats) -> float:
    """log10 of the martingale, of the counts (S, B) of bins in the last rows, the last but few, …

    The mean over where a shift may have begun and over how large it may be (K), each a ratio of
    the likelihoods of two Pólya urns, without the rows that may be anomalies.
    """
    total = urn.sum()
    bets = np.array([k for k in CONCENTRATIONS if k < total])[:, None]
    if not len(bets):
        return 0.0
    others = (bets * urn / total)[:, None, :]
    kept = _without_worst(counts, urn, others, spare)
    n = kept.sum(axis=2)
    logs = (_log_rising(others, kept) - _log_rising(urn, kept)).sum(axis=2)
    logs += _log_rising(total, n) - _log_rising(bets, n)
    highest = logs.max()
    return float((highest + np.log(np.exp(logs - highest).mean())) / math.log(10))


def _without_worst(counts: Counts, urn: Floats, others: Floats, spare: Floats) -> Floats:
    """(K, S, B) what is left without ``spare`` (S,) rows, those that raise the ratio most.

    The last of c rows in a bin multiplies the ratio by (other + c − 1) / (urn + c − 1), which
    rises with c: bins are cut down to one level of that, but not to where it stops helping. A row
    or two more than may be are set aside rather than fewer.
    """

    def left(level: Floats) -> Floats:
        return np.clip(np.floor(1 + (level * urn - others) / (1 - level)), 0, counts)

    if not spare.any():
        return np.repeat(counts[None].astype(np.float64), len(others), axis=0)
    rows, most = counts.sum(axis=1, keepdims=True), spare[:, None]
    ours, total = others.sum(axis=2, keepdims=True), urn.sum()
    low, high = ours / total + np.zeros_like(most), np.ones((len(others), len(counts), 1))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        n = left(middle).sum(axis=2, keepdims=True)
        lower = (rows - n <= most) & (middle >= (ours + n) / (total + n))
        low, high = np.where(lower, low, middle), np.where(lower, middle, high)
    return left(low)


def _log_rising(start: Floats | float, count: Floats) -> Floats:
    """log of start · (start + 1) ⋯ (start + count − 1), by broadcasting."""
    return np.asarray(_log_gamma(start + count) - _log_gamma(start))


_log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])


def _most_anomalies(rows: Counts, share: float) -> Floats:
    """(S,) how many of so many rows (S,) are anomalies at most, of a share (Bernstein 1924).

    All bounds hold but for half of `BREACH`.
    """
    if not share:
        return np.zeros(len(rows))
    level = math.log(2 * BLOCKS / BREACH)
    spread = np.sqrt(level**2 / 9 + 2 * level * rows * share * (1 - share))
    return np.asarray(np.minimum(np.floor(rows * share + level / 3 + spread), rows))


@lru_cache(maxsize=1024)
def _most_flags(rows: int, flagged: float, ranks: float) -> int:
    """The most of ``rows`` normal ones that a kept promise flags, but for a share of `BREACH`.

    The number is beta-binomial (flagged, ranks − flagged), as in `evaluation.highest_kept_rate`.
    """
    rest, level = ranks - flagged, 1 - BREACH / (2 * BLOCKS)
    none = math.lgamma(rows + rest) - math.lgamma(rest) + math.lgamma(ranks)
    logs, reached = np.array([none - math.lgamma(rows + ranks)]), np.zeros(1)
    while reached[-1] < level and len(logs) <= rows:
        j = np.arange(min(4 * len(logs) + 60, rows))
        steps = np.log((rows - j) * (j + flagged) / ((j + 1.0) * (rows - j - 1 + rest)))
        logs = logs[0] + np.concatenate([[0.0], np.cumsum(steps)])
        reached = np.cumsum(np.exp(logs))
    return int(np.searchsorted(reached, level))


def _no_rows(encoding: Encoding) -> Matrix:
    return np.zeros((0, encoding.layout.n_columns), np.float32)
