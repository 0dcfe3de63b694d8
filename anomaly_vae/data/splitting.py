"""Assign each row to the training, validation, calibration or test split.

The bound on the false positive rate assumes exchangeable units, and calibration rows that were held
out of training. A group (customer, patient) is therefore never divided between splits. Labelled
anomalies are used only for testing or to choose a threshold. Rows that no split uses are counted by
reason. The assignment is determined by the configured seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.config.base import utc
from anomaly_vae.config.data import Splits
from anomaly_vae.errors import DataError

UNUSED, TRAIN, VALIDATION, CALIBRATION, TEST = range(5)
NAMES = ("unused", "train", "validation", "calibration", "test")
WARM_UP = "within data.windows_warm_up, they feed windows only"
"""Reason why no split uses rows whose windows lack a past."""
MIN_TRAIN = 10
"""Minimum number of training rows."""
MIN_KNOWN = 30
"""Minimum number of labelled anomalies that a model learns from; fewer are no gain."""
DAY = 86_400.0
"""Length of a day, in seconds."""

Codes = NDArray[np.int8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """The properties of N rows that determine their split.

    ``anomaly`` and ``unlabelled`` are masks (N,) of labelled anomalies and of rows without a label.
    ``time`` (N,) is in seconds since 1970, NaN if unknown. ``group`` (N,) are group codes.
    ``warm_up`` is a mask (N,) of rows that only feed windows.
    ``test`` is a mask (N,) of the rows that come as test split; None if the split is assigned.
    """

    anomaly: Mask
    unlabelled: Mask
    time: NDArray[np.float64] | None = None
    group: NDArray[np.int32] | None = None
    warm_up: Mask | None = None
    test: Mask | None = None

    def __len__(self) -> int:
        return len(self.anomaly)

    @property
    def split_times(self) -> NDArray[np.float64] | None:
        """Times (N,) by which rows are split, NaN for rows of no split; None if there are none."""
        if self.time is None or self.warm_up is None:
            return self.time
        return np.where(self.warm_up, np.nan, self.time)

    def take(self, rows: NDArray[np.intp]) -> Rows:
        """Return the rows at these positions, without a given test split."""
        time = None if self.time is None else self.time[rows]
        group = None if self.group is None else self.group[rows]
        return Rows(self.anomaly[rows], self.unlabelled[rows], time, group)


@dataclass(frozen=True, eq=False)
class Assignment:
    """Split codes of N rows, and the number of unused rows by reason."""

    codes: Codes
    unused: Mapping[str, int]
    calibration_anomalies: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """Positions of the anomalies that would belong to the calibration split if they were normal.

    These rows are unused unless the threshold is chosen by labels.
    """
    training_anomalies: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    """Positions of the anomalies that would belong to the training split if they were normal.

    These rows are unused unless the model learns from known anomalies (`model.known`).
    """

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the codes, hexadecimal."""
        return hashlib.sha256(self.codes.tobytes()).hexdigest()

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of rows in each split."""
        counts = np.bincount(self.codes, minlength=len(NAMES))
        return dict(zip(NAMES, counts.tolist(), strict=True))

    def without(self, mask: Mask, reason: str) -> Assignment:
        """Return a copy in which the rows of a mask (N,) are unused for a reason.

        Raises:
            DataError: a split would be empty.
        """
        held_back = (self.calibration_anomalies, self.training_anomalies)
        anomalies = [positions[~mask[positions]] for positions in held_back]
        count = int((mask & (self.codes != UNUSED)).sum())
        if not count:
            unchanged = sum(map(len, anomalies)) == sum(map(len, held_back))
            return self if unchanged else Assignment(self.codes, self.unused, *anomalies)
        unused = {**self.unused, reason: count}
        codes = np.where(mask, UNUSED, self.codes).astype(np.int8)
        _refuse_empty_splits(codes, unused)
        return Assignment(codes, unused, *anomalies)

    def rows(self, split: int) -> NDArray[np.intp]:
        """Return the positions of a split's rows, in file order."""
        return np.flatnonzero(self.codes == split)


def assign(rows: Rows, config: Splits, known: bool = False) -> Assignment:
    """Assign every row to a split.

    Args:
        rows: the properties of the rows.
        config: the sizes or intervals of the splits.
        known: whether the model learns from known anomalies. Without times, these are then divided
            between training and test, if enough of them come to train.

    Raises:
        DataError: a split would be empty, or splits are time intervals without a time column.
    """
    if config.by_interval and rows.time is None:
        raise DataError("data.splits are intervals of time, but data.time names no column")
    codes = _codes(rows, config, known)
    reasons = {
        **({} if rows.warm_up is None else {WARM_UP: rows.warm_up}),
        "outside every split": codes == UNUSED,
        "their group belongs to another split": _outside_group_split(codes, rows, config),
        "anomalies outside the test split": rows.anomaly & (codes != TEST),
        "unlabelled in the test split": rows.unlabelled & (codes == TEST),
    }
    anomalies = rows.anomaly & ~_outside_group_split(codes, rows, config)
    of_calibration, of_training = (
        np.flatnonzero(anomalies & (codes == split)) for split in (CALIBRATION, TRAIN)
    )
    unused: dict[str, int] = {}
    usable = np.ones(len(rows), bool)
    for reason, mask in reasons.items():
        if count := int((mask & usable).sum()):
            unused[reason] = count
        usable &= ~mask
    codes = _hold_out_validation(np.where(usable, codes, UNUSED).astype(np.int8), rows, config)
    _refuse_empty_splits(codes, unused)
    return Assignment(codes, unused, of_calibration, of_training)


def _codes(rows: Rows, config: Splits, known: bool) -> Codes:
    """Assign each row to a split as if it were labelled and fit for it."""
    if rows.test is not None:
        return _beside_test(rows, rows.test, config, known)
    times = rows.split_times
    return _at_random(rows, config, known) if times is None else _by_time(times, config)


def _beside_test(rows: Rows, test: Mask, config: Splits, known: bool) -> Codes:
    """Assign the rows outside a given test split (N,) at random: what it would get trains, too."""
    others = np.flatnonzero(~test)
    train, _, given = _fractions(config)
    splits = config.model_copy(update={"train": train + given, "test": 0.0})
    codes = np.full(len(rows), TEST, np.int8)
    codes[others] = _at_random(rows.take(others), splits, known)
    codes[~test & (codes == TEST)] = TRAIN  # anomalies, which do not train as normal rows
    return codes


def _fractions(config: Splits) -> tuple[float, float, float]:
    """Return the fractions of train, calibration and test; defaults if splits are intervals."""
    match config.train, config.calibration, config.test:
        case float(train), float(calibration), float(test):
            return train, calibration, test
        case None, float(calibration), float(test):
            return 1 - calibration - test, calibration, test
    return _fractions(Splits())


def _at_random(rows: Rows, config: Splits, known: bool) -> Codes:
    """Assign normal rows at random by fractions, and anomalies to the test split.

    The configured share of the anomalies goes to the calibration split instead and, if the model
    learns from ``known`` ones, a share of the rest to the training split. Anomalies stay in the
    split of their group, if there are groups.
    """
    rng = np.random.default_rng(config.seed)
    if rows.group is not None:
        return _by_group(rows.group, rows.anomaly, config, known)
    codes = np.full(len(rows), TEST, np.int8)
    normal = rng.permutation(np.flatnonzero(~rows.anomaly))
    codes[normal] = _consecutive_codes(len(normal), config)
    anomalies = np.flatnonzero(rows.anomaly)
    chosen = _draw_share(rng, anomalies, config.anomalies)
    codes[chosen] = CALIBRATION
    if known:
        codes[_draw_known(np.setdiff1d(anomalies, chosen), config)] = TRAIN
    return codes


def _draw_known(anomalies: NDArray[Any], config: Splits) -> NDArray[Any]:
    """Draw the anomalies to learn from, in the proportion of training to test rows.

    If there would be too few to learn from, none are drawn.
    """
    train, _, test = _fractions(config)
    rng = np.random.default_rng([config.seed, 3])
    drawn = _draw_share(rng, anomalies, train / (train + test))
    return drawn if len(drawn) >= MIN_KNOWN else drawn[:0]


def _draw_share(rng: np.random.Generator, positions: NDArray[Any], share: float) -> NDArray[Any]:
    """Draw a share of the positions at random."""
    return np.asarray(rng.permutation(positions)[: round(share * len(positions))])


def _by_group(group: NDArray[np.int32], anomaly: Mask, config: Splits, known: bool) -> Codes:
    """Assign groups by fractions; a group without normal rows is treated like a single anomaly."""
    codes = np.full(len(group), TEST, np.int8)
    mixed = np.isin(group, group[~anomaly])
    compact = np.unique(group[mixed], return_inverse=True)[1].astype(np.int32)
    codes[mixed] = _group_codes(compact, config)[compact]
    anomalous = np.unique(group[~mixed])
    chosen = _draw_share(np.random.default_rng([config.seed, 2]), anomalous, config.anomalies)
    codes[np.isin(group, chosen)] = CALIBRATION
    if known:
        codes[np.isin(group, _draw_known(np.setdiff1d(anomalous, chosen), config))] = TRAIN
    return codes


def _consecutive_codes(n: int, config: Splits) -> Codes:
    """Return codes for n ordered rows by fractions: train, then calibration, unused, test."""
    train, calibration, test = _fractions(config)
    ends = np.round(np.array([train, train + calibration, 1 - test, 1]) * n).astype(int)
    return np.repeat(
        np.array([TRAIN, CALIBRATION, UNUSED, TEST], np.int8), np.diff(ends, prepend=0).clip(0)
    )[:n]


def _by_time(time: NDArray[np.float64], config: Splits) -> Codes:
    """Assign rows by time intervals or by fractions in time order, with a gap before the test."""
    codes = np.full(len(time), UNUSED, np.int8)
    known = np.flatnonzero(~np.isnan(time))
    if config.by_interval:
        for code, interval in (
            (TRAIN, config.train),
            (CALIBRATION, config.calibration),
            (TEST, config.test),
        ):
            codes[_within(time, interval)] = code
    else:
        order = known[np.argsort(time[known], kind="stable")]
        codes[order] = _consecutive_codes(len(order), config)
    tested = time[codes == TEST]
    if config.gap_days and len(tested):
        near = time >= tested.min() - config.gap_days * DAY
        codes[near & (codes != TEST)] = UNUSED
    return codes


def _within(time: NDArray[np.float64], interval: Any) -> Mask:
    start, stop = (utc(moment).timestamp() for moment in interval)
    return np.asarray((time >= start) & (time < stop))


def _outside_group_split(codes: Codes, rows: Rows, config: Splits) -> Mask:
    """Return a mask (N,) of rows whose split differs from the split of their group.

    Splits are given, or by time; others have their groups in one split.
    """
    if rows.group is not None and rows.test is not None:
        return np.asarray((codes != TEST) & np.isin(rows.group, rows.group[rows.test]))
    if rows.group is None or rows.time is None:
        return np.zeros(len(rows), bool)
    return np.asarray(codes != _group_codes(rows.group, config)[rows.group])


def _group_codes(group: NDArray[np.int32], config: Splits) -> Codes:
    """Assign every group to a split at random, so that splits have their fractions of the rows."""
    sizes = np.bincount(group)
    order = np.random.default_rng(config.seed).permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] // 2 - 1
    codes = np.empty(len(sizes), np.int8)
    codes[order] = _consecutive_codes(len(group), config)[middle.clip(0)]
    return codes


def _hold_out_validation(codes: Codes, rows: Rows, config: Splits) -> Codes:
    """Move a share of the training rows (or of their groups) to the validation split."""
    train = np.flatnonzero(codes == TRAIN)
    units = rows.group[train] if rows.group is not None else np.arange(len(train))
    names, unit = np.unique(units, return_inverse=True)
    rng = np.random.default_rng([config.seed, 1])
    held_out = np.zeros(len(names), bool)
    held_out[rng.permutation(len(names))[: max(1, round(config.validation * len(names)))]] = True
    codes = codes.copy()
    codes[train[held_out[unit]]] = VALIDATION
    return codes


def _refuse_empty_splits(codes: Codes, unused: Mapping[str, int]) -> None:
    reasons = "".join(f"; {count} {reason}" for reason, count in unused.items())
    counts = np.bincount(codes, minlength=len(NAMES))
    if counts[TRAIN] < MIN_TRAIN:
        raise DataError(
            f"{counts[TRAIN]} of {len(codes)} rows are left to train on, at least {MIN_TRAIN} "
            f"normal ones are needed; give more rows or change data.splits{reasons}"
        )
    for code in (VALIDATION, CALIBRATION, TEST):
        if not counts[code]:
            raise DataError(
                f"the {NAMES[code]} split has no rows (of {len(codes)}); "
                f"give more rows or change data.splits.{NAMES[code]}{reasons}"
            )


def one_row_per_group(rows: NDArray[np.intp], group: NDArray[Any] | None) -> NDArray[np.intp]:
    """Return one random row of each group; all rows if ``group`` is None.

    Rows of the same group are not exchangeable with rows of others, but one random row of each
    group is (Dunn, Wasserman & Ramdas 2023, sec. 3.2). The seed is fixed.

    Args:
        rows: positions among N rows.
        group: (N,) group of each row.
    """
    if group is None:
        return rows
    shuffled = np.random.default_rng(0).permutation(rows)
    _, first = np.unique(group[shuffled], return_index=True)
    return np.sort(shuffled[first])


def thin_by_ratio(ratios: NDArray[np.float64]) -> Mask:
    """Return a mask (N,) that keeps rows with a density proportional to the ratios (N,).

    Each row is kept with probability ratio / largest ratio (rejection sampling: von Neumann 1951),
    with a fixed seed; a row whose ratio is NaN is kept.
    """
    largest = np.nanmax(ratios, initial=0.0) or 1.0
    shares = np.nan_to_num(ratios / largest, nan=1.0)
    return np.asarray(np.random.default_rng(0).random(len(ratios)) < shares)


def contained_in(rows: NDArray[Any], others: NDArray[Any]) -> Mask:
    """Return a mask (N,) of the ``rows`` (N, F) that occur in ``others`` (M, F); NaN equals NaN."""
    return np.isin(_row_keys(rows), _row_keys(others))


def _row_keys(x: NDArray[Any]) -> NDArray[Any]:
    # Give all NaNs the same bits, and −0.0 the bits of 0.0.
    canonical = np.where(np.isnan(x), x.dtype.type(np.nan), x + x.dtype.type(0))
    rows = np.ascontiguousarray(canonical)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


def spread(rows: int, most: int) -> NDArray[np.intp]:
    """Return the positions of at most ``most`` of the rows, at equal distances."""
    count = min(rows, most)
    return np.arange(count) * rows // max(count, 1)
