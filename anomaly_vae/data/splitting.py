"""Which row trains, validates, calibrates or tests: disjoint, seeded, recorded.

The false positive guarantee rests on exchangeable units, so a group (customer, patient) is
never cut; and on calibration rows that trained nothing. Labelled anomalies are tested on, or
show a threshold what it would miss. Rows that no split may use are counted, not lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config import Splits, utc
from anomaly_vae.errors import DataError

UNUSED, TRAIN, VALIDATION, CALIBRATION, TEST = range(5)
NAMES = ("unused", "train", "validation", "calibration", "test")
MIN_TRAIN = 10
"""The fewest rows that a model is fitted on."""
DAY = 86_400.0

Codes = NDArray[np.int8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """What a split looks at, each (N,).

    Masks of labelled anomalies and of rows without a label; ``time`` in seconds (NaN unknown);
    ``group`` codes.
    """

    anomaly: Mask
    unlabelled: Mask
    time: NDArray[np.float64] | None = None
    group: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.anomaly)


@dataclass(frozen=True, eq=False)
class Assignment:
    """A split code for each row (N,), and why rows are unused."""

    codes: Codes
    unused: Mapping[str, int]
    known: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """positions of the anomalies that belong to the calibration split, had they been normal: they
    are unused, unless the threshold is chosen by labels"""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the codes."""
        return hashlib.sha256(self.codes.tobytes()).hexdigest()

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows in each split."""
        counts = np.bincount(self.codes, minlength=len(NAMES))
        return dict(zip(NAMES, counts.tolist(), strict=True))

    def without(self, mask: Mask, reason: str) -> Assignment:
        """The same, but the rows of a mask (N,) are unused.

        Raises:
            DataError: that leaves a split empty.
        """
        known = self.known[~mask[self.known]]
        count = int((mask & (self.codes != UNUSED)).sum())
        if not count:
            return self if len(known) == len(self.known) else replace(self, known=known)
        unused = {**self.unused, reason: count}
        codes = np.where(mask, UNUSED, self.codes).astype(np.int8)
        _check(codes, unused)
        return Assignment(codes, unused, known)

    def rows(self, split: int) -> NDArray[np.intp]:
        """Positions of a split's rows, in file order."""
        return np.flatnonzero(self.codes == split)


def assign(rows: Rows, config: Splits) -> Assignment:
    """Assign every row.

    Raises:
        DataError: a split would be empty, or dates are given without a time column.
    """
    if config.by_interval and rows.time is None:
        raise DataError("data.splits are intervals of time, but data.time names no column")
    codes = _by_time(rows, config) if rows.time is not None else _at_random(rows, config)
    reasons = {
        "outside every split": codes == UNUSED,
        "their group belongs to another split": _out_of_group(codes, rows, config),
        "anomalies outside the test split": rows.anomaly & (codes != TEST),
        "unlabelled in the test split": rows.unlabelled & (codes == TEST),
    }
    known = np.flatnonzero(
        rows.anomaly & (codes == CALIBRATION) & ~_out_of_group(codes, rows, config)
    )
    unused: dict[str, int] = {}
    claimed = np.ones(len(rows), bool)
    for reason, mask in reasons.items():
        if count := int((mask & claimed).sum()):
            unused[reason] = count
        claimed &= ~mask
    codes = _hold_out_validation(np.where(claimed, codes, UNUSED).astype(np.int8), rows, config)
    _check(codes, unused)
    return Assignment(codes, unused, known)


def _fractions(config: Splits) -> tuple[float, float, float]:
    calibration, test = config.calibration, config.test
    assert isinstance(calibration, float), "intervals go by time"
    assert isinstance(test, float), "intervals go by time"
    train = config.train if isinstance(config.train, float) else 1 - calibration - test
    return train, calibration, test


def _at_random(rows: Rows, config: Splits) -> Codes:
    """Normal rows by fractions, anomalies to the test split but for the share that is asked for.

    Where there are groups, each anomaly stays with the normal rows of its own.
    """
    rng = np.random.default_rng(config.seed)
    if rows.group is not None:
        return _by_group(rows.group, rows.anomaly, config)
    codes = np.full(len(rows), TEST, np.int8)
    normal = rng.permutation(np.flatnonzero(~rows.anomaly))
    codes[normal] = _blocks(len(normal), config)
    codes[_share(rng, np.flatnonzero(rows.anomaly), config.anomalies)] = CALIBRATION
    return codes


def _share(rng: np.random.Generator, some: NDArray[Any], share: float) -> NDArray[Any]:
    """That share of them, at random."""
    return np.asarray(rng.permutation(some)[: round(share * len(some))])


def _by_group(group: NDArray[np.int32], anomaly: Mask, config: Splits) -> Codes:
    """Groups by fractions; those without a normal row are tested on, like single anomalies."""
    codes = np.full(len(group), TEST, np.int8)
    mixed = np.isin(group, group[~anomaly])
    compact = np.unique(group[mixed], return_inverse=True)[1].astype(np.int32)
    codes[mixed] = _group_codes(compact, config)[compact]
    alone = np.unique(group[~mixed])
    chosen = _share(np.random.default_rng([config.seed, 2]), alone, config.anomalies)
    codes[np.isin(group, chosen)] = CALIBRATION
    return codes


def _blocks(n: int, config: Splits) -> Codes:
    """Train, calibration, unclaimed, test: codes of n rows in order, by fractions."""
    train, calibration, test = _fractions(config)
    ends = np.round(np.array([train, train + calibration, 1 - test, 1]) * n).astype(int)
    return np.repeat(
        np.array([TRAIN, CALIBRATION, UNUSED, TEST], np.int8), np.diff(ends, prepend=0).clip(0)
    )[:n]


def _by_time(rows: Rows, config: Splits) -> Codes:
    assert rows.time is not None
    codes = np.full(len(rows), UNUSED, np.int8)
    known = np.flatnonzero(~np.isnan(rows.time))
    if config.by_interval:
        for code, interval in (
            (TRAIN, config.train),
            (CALIBRATION, config.calibration),
            (TEST, config.test),
        ):
            codes[_within(rows.time, interval)] = code
    else:
        order = known[np.argsort(rows.time[known], kind="stable")]
        codes[order] = _blocks(len(order), config)
    tested = rows.time[codes == TEST]
    if config.gap_days and len(tested):
        near = rows.time >= tested.min() - config.gap_days * DAY
        codes[near & (codes != TEST)] = UNUSED
    return codes


def _within(time: NDArray[np.float64], interval: Any) -> Mask:
    start, stop = (utc(moment).timestamp() for moment in interval)
    return np.asarray((time >= start) & (time < stop))


def _out_of_group(codes: Codes, rows: Rows, config: Splits) -> Mask:
    """Rows may stay only where their group is: in time order, both must agree."""
    if rows.group is None or rows.time is None:
        return np.zeros(len(rows), bool)
    return np.asarray(codes != _group_codes(rows.group, config)[rows.group])


def _group_codes(group: NDArray[np.int32], config: Splits) -> Codes:
    """A split for every group, at random, by the fractions of the rows they hold."""
    if config.by_interval:
        config = Splits(validation=config.validation, seed=config.seed)
    sizes = np.bincount(group)
    order = np.random.default_rng(config.seed).permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] // 2 - 1
    codes = np.empty(len(sizes), np.int8)
    codes[order] = _blocks(len(group), config)[middle.clip(0)]
    return codes


def _hold_out_validation(codes: Codes, rows: Rows, config: Splits) -> Codes:
    """A share of the training rows (or of their groups) decides when to stop."""
    train = np.flatnonzero(codes == TRAIN)
    units = rows.group[train] if rows.group is not None else np.arange(len(train))
    names, unit = np.unique(units, return_inverse=True)
    rng = np.random.default_rng([config.seed, 1])
    held = np.zeros(len(names), bool)
    held[rng.permutation(len(names))[: max(1, round(config.validation * len(names)))]] = True
    codes = codes.copy()
    codes[train[held[unit]]] = VALIDATION
    return codes


def _check(codes: Codes, unused: Mapping[str, int]) -> None:
    why = "".join(f"; {count} {reason}" for reason, count in unused.items())
    counts = np.bincount(codes, minlength=len(NAMES))
    if counts[TRAIN] < MIN_TRAIN:
        raise DataError(
            f"{counts[TRAIN]} of {len(codes)} rows are left to train on, at least {MIN_TRAIN} "
            f"normal ones are needed; give more rows or change data.splits{why}"
        )
    for code in (VALIDATION, CALIBRATION, TEST):
        if not counts[code]:
            raise DataError(
                f"the {NAMES[code]} split has no rows (of {len(codes)}); "
                f"give more rows or change data.splits.{NAMES[code]}{why}"
            )


def one_of_each(rows: NDArray[np.intp], group: NDArray[Any] | None) -> NDArray[np.intp]:
    """One row of each group, chosen by a fixed seed; ``rows`` are positions, ``group`` is (N,).

    Without groups each row is one.
    Rows of one group are not exchangeable with those of another, but one random row of each is
    (Dunn, Wasserman & Ramdas 2023, sec. 3.2).
    """
    if group is None:
        return rows
    shuffled = np.random.default_rng(0).permutation(rows)
    _, first = np.unique(group[shuffled], return_index=True)
    return np.sort(shuffled[first])


def thinned(ratios: NDArray[np.float64]) -> Mask:
    """Which rows to keep so that those kept are as dense as the ratios (N,) say, up to a factor.

    Each is kept with probability ratio / largest (rejection sampling: von Neumann 1951), drawn by a
    fixed seed; one whose ratio is not known, NaN, is kept.
    """
    largest = np.nanmax(ratios, initial=0.0) or 1.0
    shares = np.nan_to_num(ratios / largest, nan=1.0)
    return np.asarray(np.random.default_rng(0).random(len(ratios)) < shares)


def twins(rows: NDArray[Any], others: NDArray[Any]) -> Mask:
    """Which ``rows`` (N, F) are equal to one of ``others`` (M, F); NaN equals NaN. (N,)"""
    return np.isin(_row_keys(rows), _row_keys(others))


def _row_keys(x: NDArray[Any]) -> NDArray[Any]:
    same = np.where(np.isnan(x), x.dtype.type(np.nan), x + x.dtype.type(0))  # one NaN; −0 is 0
    rows = np.ascontiguousarray(same)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
