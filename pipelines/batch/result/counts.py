"""Count scored, flagged and rejected rows of parts, so that the counts of all parts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 7
"""Number of bits of a score's mantissa that a histogram keeps."""
SHIFT = 52 - MANTISSA_BITS
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Quantiles of the scores that the summary lists, besides the smallest and the largest score."""


@dataclass
class Scores:
    """A histogram of scores in bins of 1/128 of their size, from which quantiles are read.

    >>> scores = Scores()
    >>> scores.count(np.arange(-500.0, 501.0))
    >>> {level: round(value) for level, value in scores.quantiles().items()}["0.75"]
    250
    """

    bins: Counter[int] = field(default_factory=Counter)
    """Number of scores by the leading bits of their IEEE 754 representation, in ascending order."""
    lowest: float = np.inf
    highest: float = -np.inf

    def count(self, scores: NDArray[np.float64]) -> None:
        """Count N scores."""
        if len(scores):
            bins, counts = np.unique(_bin(scores), return_counts=True)
            self.bins.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))
            self._widen(float(scores.min()), float(scores.max()))

    def add(self, other: Scores) -> None:
        """Add the scores of another histogram."""
        self.bins.update(other.bins)
        self._widen(other.lowest, other.highest)

    def _widen(self, lowest: float, highest: float) -> None:
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)

    def quantiles(self) -> dict[str, float]:
        """Return the smallest and the largest score exactly, and `QUANTILES` to within 0.4%."""
        if not self.bins:
            return {}
        bins = np.array(sorted(self.bins), np.int64)
        ends = np.cumsum([self.bins[b] for b in bins.tolist()])
        ranks = np.ceil(np.array(QUANTILES) * ends[-1])
        values = _centre(bins[np.searchsorted(ends, ranks)]).clip(self.lowest, self.highest)
        pairs = zip(map(str, QUANTILES), values.tolist(), strict=True)
        return {"0": self.lowest, **dict(pairs), "1": self.highest}


def _bin(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bins (N,) of scores (N,); higher scores have higher bins."""
    return _in_order((scores + 0.0).view(np.int64)) >> SHIFT


def _centre(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    return _in_order((bins << SHIFT) | (1 << (SHIFT - 1))).view(np.float64)


def _in_order(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reverse the order of negative numbers, whose bits ascend as the numbers descend."""
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


class Highest(NamedTuple):
    """The highest image of a group of images, and the number of its images."""

    score: float
    images: int
    path: str
    frame: int

    def joined(self, other: Highest) -> Highest:
        """Return the highest image of two parts of a group; of equal ones, the first by name."""
        best = min(self, other, key=lambda one: (-one.score, one.path, one.frame))
        return best._replace(images=self.images + other.images)


Groups = dict[str, dict[str, Highest]]
"""Groups of images by kind and name."""


def _add_groups(groups: Groups, others: Groups) -> None:
    """Add the images of other parts to groups."""
    for kind, named in others.items():
        own = groups.setdefault(kind, {})
        for name, one in named.items():
            own[name] = own[name].joined(one) if name in own else one


@dataclass
class Counts:
    """Running counts of rows; scored plus rejected are all rows."""

    scored: int = 0
    flagged: int = 0
    unusual: int = 0
    """Number of scored rows that are unlike the training data."""
    rejects_by_column: Counter[str] = field(default_factory=Counter)
    """Number of rejected rows, lines and files, by column or as unreadable."""
    others: Counter[str] = field(default_factory=Counter)
    """Other entries of the summary that are numbers."""
    monitor: NDArray[np.int64] | None = None
    """Counts (cells,) of the monitor; None if no row is scored."""
    scores: Scores = field(default_factory=Scores)
    p_values: Counter[int] = field(default_factory=Counter)
    """Number of p-values by their place among the bins of `anomaly_vae.review.p_values`."""
    rows_of_files: dict[int, int] = field(default_factory=dict)
    """Number of rows of the files, by index, of which only reading tells it."""
    notes: list[Mapping[str, Any]] = field(default_factory=list)
    """Notes on text files, as `Reading.collected` returns them."""
    groups: Groups = field(default_factory=dict)
    """Groups of scored images, such as patients, whose highest score decides."""

    @property
    def rejected(self) -> int:
        """Number of rows, lines and files that could not be scored."""
        return self.rejects_by_column.total()

    def add(self, other: Counts) -> None:
        """Add the counts of other rows."""
        self.scored += other.scored
        self.flagged += other.flagged
        self.unusual += other.unusual
        self.rejects_by_column.update(other.rejects_by_column)
        self.others.update(other.others)
        if other.monitor is not None:
            self.monitor = other.monitor + (0 if self.monitor is None else self.monitor)
        self.scores.add(other.scores)
        self.p_values.update(other.p_values)
        self.rows_of_files.update(other.rows_of_files)
        self.notes += other.notes
        _add_groups(self.groups, other.groups)

    def add_image(self, kind: str, name: str, image: Highest) -> None:
        """Count an image in a group."""
        _add_groups(self.groups, {kind: {name: image}})

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        empty = not self.scores.bins
        return {
            **vars(self),
            "monitor": None if self.monitor is None else self.monitor.tolist(),
            "scores": None if empty else vars(self.scores),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read counts from JSON, whose keys are text."""
        found, scores, monitor = dict(content), content["scores"], content["monitor"]
        return cls(
            **found
            | {name: Counter(found[name]) for name in ("rejects_by_column", "others")}
            | {"rows_of_files": {int(k): v for k, v in found["rows_of_files"].items()}}
            | {"monitor": None if monitor is None else np.array(monitor, np.int64)}
            | {"p_values": Counter({int(k): v for k, v in found.get("p_values", {}).items()})}
            | {"scores": _scores(scores) if scores else Scores()}
            | {"groups": _groups(found.get("groups", {}))}
        )


def _groups(content: Mapping[str, Any]) -> Groups:
    return {
        kind: {name: Highest(*one) for name, one in named.items()}
        for kind, named in content.items()
    }


def _scores(content: Mapping[str, Any]) -> Scores:
    bins = Counter({int(key): count for key, count in content["bins"].items()})
    return Scores(bins, content["lowest"], content["highest"])
