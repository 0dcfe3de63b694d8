"""Compute statistics of many windows over one sorted sequence of events.

A window is the range of events ``[start, stop)``. Each statistic of a window is computed from the
values inside it alone, in their order, so that nothing outside the window, such as a later event,
changes even its last bit. The cost is O(n log w) for n windows of up to w events.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]


def sums(values: Floats, start: Positions, stop: Positions) -> Floats:
    """Return the sum of each window (R,) of values (E,); 0 for empty windows.

    >>> sums(np.array([1.0, 2.0, 4.0]), np.array([0, 1]), np.array([3, 1]))
    array([7., 0.])
    """
    total, block = np.zeros(len(start)), values
    for size, rows, at in _blocks(start, stop):
        total[rows] += block[at]
        block = block[:-size] + block[size:]
    return total


def maxima(values: Floats, start: Positions, stop: Positions) -> Floats:
    """Return the maximum of each window (R,) of values (E,); NaN for empty windows.

    >>> maxima(np.array([1.0, 4.0, 2.0]), np.array([0, 1]), np.array([3, 1]))
    array([ 4., nan])
    """
    largest, block = np.full(len(start), -np.inf), values
    for size, rows, at in _blocks(start, stop):
        largest[rows] = np.maximum(largest[rows], block[at])
        block = np.maximum(block[:-size], block[size:])
    return np.where(stop > start, largest, np.nan)


def deviations(values: Floats, start: Positions, stop: Positions) -> Floats:
    """Return the sample standard deviation (n - 1) of each window (R,) of values (E,).

    It is NaN for windows of fewer than two values. Sums and squares are those of the differences to
    the first value of the window, which loses no digits however large the mean is.

    >>> deviations(np.array([1e9, 1e9 + 2, 1e9 + 4]), np.array([0, 0]), np.array([3, 1]))
    array([ 2., nan])
    """
    total, squares = np.zeros((2, len(start)))
    block, block_squares = np.zeros((2, len(values)))
    for size, rows, at in _blocks(start, stop):
        step = values[at] - values[start[rows]]
        squares[rows] += block_squares[at] + 2 * step * block[at] + size * step**2
        total[rows] += block[at] + size * step
        step = values[size : len(block)] - values[: max(len(block) - size, 0)]
        right = block[size:], block_squares[size:]
        block_squares = block_squares[:-size] + right[1] + 2 * step * right[0] + size * step**2
        block = block[:-size] + right[0] + size * step
    count = np.maximum(stop - start, 1)
    spread = np.maximum(squares - total**2 / count, 0) / np.maximum(count - 1, 1)
    return np.where(count > 1, np.sqrt(spread), np.nan)


def _blocks(start: Positions, stop: Positions) -> Iterator[tuple[int, NDArray[np.intp], Positions]]:
    """Divide each window into blocks of 1, 2, 4, … events, each size at most once.

    Yields:
        for each size, the windows that have such a block, and where these blocks begin.
    """
    at, left, size = start.copy(), stop - start, 1
    while (left >= size).any():
        rows = np.flatnonzero(left & size)
        yield size, rows, at[rows]
        at[rows] += size
        size *= 2


def distinct(codes: Positions, start: Positions, stop: Positions) -> Positions:
    """Count the different codes (E,) in each window (R,); codes below zero count for nothing.

    A code counts in a window through its last event there: from the window that this event enters
    until one that it leaves, or that the next event of the same code enters.

    Args:
        codes: (E,) codes of the events.
        start: (R,) first event of each window, in ascending order.
        stop: (R,) end of each window, in ascending order.

    >>> distinct(np.array([7, 8, 7, -1]), np.array([0, 0, 2]), np.array([1, 4, 4]))
    array([1, 2, 1])
    """
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    enters, leaves = (np.searchsorted(edge, order, side="right") for edge in (stop, start))
    again = np.full(len(order), len(start))
    same = codes[order[1:]] == codes[order[:-1]]
    again[:-1][same] = enters[1:][same]
    ends = np.maximum(enters, np.minimum(leaves, again))
    change = [np.bincount(edge, minlength=len(start) + 1) for edge in (enters, ends)]
    counts: Positions = (change[0] - change[1]).cumsum()[: len(start)]
    return counts
