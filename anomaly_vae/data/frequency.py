"""Count how often training had the values of a categorical column that are not kept as levels.

The counts tell a value that training never saw from one that it saw once or a thousand times. They
are stored as sorted 64-bit hashes of the values, with a count for each, so that a bundle with a
million values takes 12 MB and contains no rare value in plain text. Two of n values have the same
hash with probability n² / 2⁶⁵, which is 3 · 10⁻⁸ for a million; their counts are added. A new value
has the hash of a known one with probability n / 2⁶⁴.

Counts are divided into bands: 0, 1, 2 to 3, 4 to 7, and so on; the last band is open.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from anomaly_vae.errors import DataError

MAX_VALUES = 1_000_000
"""Maximum number of values of a column whose counts are stored; the most frequent ones are."""
MIN_POOLED_SHARE, MIN_POOLED_VALUES = 0.05, 20
"""Minimum share of the training rows whose values are not kept as levels, and minimum number of
such values, for a column to get frequency bands."""


class FrequencyBands(BaseModel):
    """The bands of the values of a column that are not kept as levels.

    >>> bands = FrequencyBands(rows=40_000, values=(900, 700, 300), rarity=0.25)
    >>> bands.names
    ('(never seen)', '(seen once)', '(seen 2 times or more)')
    >>> bands.band(np.array([0, 1, 2, 500])).tolist()
    [0, 1, 2, 2]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int = Field(ge=0)
    """Number of training rows with a value."""
    values: tuple[int, ...] = Field(min_length=1, max_length=65)
    """Number of values in each band. That of the first, values that training never saw, is
    estimated by the number of values seen once."""
    rarity: float = Field(ge=0, le=1)
    """Weight of the number of values of a band in the score of one of them."""

    def band(self, counts: NDArray[Any]) -> NDArray[np.intp]:
        """Return the bands (n,) of counts (n,)."""
        bands: NDArray[np.intp] = np.minimum(np.frexp(counts)[1], len(self.values) - 1).astype(
            np.intp
        )
        return bands

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each band."""
        last = len(self.values) - 1
        return ("(never seen)", *(_band_name(band, band == last) for band in range(1, last + 1)))

    @cached_property
    def log_shares(self) -> tuple[float, ...]:
        """Term of a value of each band in the log-likelihood of its row, nats.

        All values of a band have one code. If all M of them are equally probable, one of them has
        the probability of the code divided by M, and the term −log M. It is multiplied by the
        rarity.
        """
        return tuple(-self.rarity * math.log(max(count, 1)) for count in self.values)

    def describe(self, count: int) -> str:
        """Say how often training saw a value, given its count."""
        times = {0: "never seen", 1: "seen once"}.get(count, f"seen {count:,} times")
        return f"{times} in {self.rows:,} training rows"


def _band_name(band: int, is_last: bool) -> str:
    low, high = 1 << (band - 1), (1 << band) - 1
    if low == 1:
        return "(seen at least once)" if is_last else "(seen once)"
    return f"(seen {low:,} times or more)" if is_last else f"(seen {low:,} to {high:,} times)"


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """The counts of n values.

    >>> counts = ValueCounts.of_values(["Rome", "Oslo"], np.array([3, 1]))
    >>> counts.look_up(["Oslo", "Paris", "Rome"]).tolist()
    [1, 0, 3]
    """

    keys: NDArray[np.uint64]
    """(n,): hashes of the values, in ascending order."""
    counts: NDArray[np.uint32]
    """(n,): number of training rows with each value."""

    @classmethod
    def of_values(cls, names: Sequence[str], counts: NDArray[Any]) -> ValueCounts:
        """Store the counts (n,) of n values, at most `MAX_VALUES` of them."""
        keys, inverse = np.unique(hash_values(names), return_inverse=True)
        totals = np.bincount(inverse, counts, len(keys)).astype(np.int64)
        stored = np.sort(np.argsort(-totals, kind="stable")[:MAX_VALUES])
        limited = np.minimum(totals[stored], np.iinfo(np.uint32).max)
        return cls(keys[stored], limited.astype(np.uint32))

    def look_up(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the count (n,) of each value; 0 if training did not see it."""
        if not len(self.keys):
            return np.zeros(len(names), np.int64)
        wanted = hash_values(names)
        at = np.minimum(self.keys.searchsorted(wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.counts[at], 0).astype(np.int64)

    def tensors(self, column: str) -> dict[str, NDArray[Any]]:
        """Return the counts of a column as named tensors, to be saved."""
        return {f"{column}/keys": self.keys, f"{column}/counts": self.counts}

    @classmethod
    def from_tensors(cls, column: str, tensors: Mapping[str, NDArray[Any]]) -> ValueCounts:
        """Restore counts from the result of `tensors`.

        Raises:
            DataError: the tensors are absent, or do not belong together.
        """
        keys, counts = (tensors.get(f"{column}/{name}") for name in ("keys", "counts"))
        if keys is None or counts is None or not _is_sound(keys, counts):
            raise DataError(f"the counts of the values of column '{column}' are absent or damaged")
        return cls(keys, counts)


def _is_sound(keys: NDArray[Any], counts: NDArray[Any]) -> bool:
    types = keys.dtype == np.uint64 and counts.dtype == np.uint32
    shapes = keys.ndim == 1 and keys.shape == counts.shape and len(keys) <= MAX_VALUES
    return types and shapes and bool((keys[1:] > keys[:-1]).all())


def hash_values(names: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash (n,) of each value."""
    digests = (
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for name in names
    )
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False)


def fit_bands(counts: NDArray[Any], rows: int, rarity: float) -> FrequencyBands:
    """Fit the bands of the counts (n,) of the values that are not kept as levels.

    The last band is that of the highest count without the row itself. Training rows are encoded
    with such counts, so that each band has training rows.

    Args:
        counts: number of training rows with each of the values.
        rows: number of training rows with any value, also a kept one.
        rarity: see `FrequencyBands`.
    """
    last = int(np.frexp(counts.max() - 1)[1])
    bands = np.minimum(np.frexp(counts)[1], last)
    values = np.bincount(bands, minlength=last + 1)
    values[0] = (counts == 1).sum()
    return FrequencyBands(rows=rows, values=tuple(values.tolist()), rarity=rarity)
