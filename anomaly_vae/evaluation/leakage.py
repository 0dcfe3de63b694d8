"""What makes figures better than the detector is: twins in training, and labels given away.

Nothing here proves that figures are honest; docs/evaluation.md says what it cannot see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import Values
from anomaly_vae.evaluation.bootstrap import Ranking

Mask = NDArray[np.bool_]
Kind = Literal["column", "file", "image"]

SEPARATES: Mapping[Kind, float] = {"column": 0.99, "file": 0.8, "image": 0.9}
"""The AUROC of one thing alone that is worth a warning: what a file is like should say nothing."""
NOUNS: Mapping[Kind, str] = {
    "column": "column '{}' alone",
    "file": "the file's {} alone",
    "image": "the image's {} alone",
}
REMEDIES: Mapping[Kind, str] = {
    "column": "if it is known only after the label, leave it out (data.ignore)",
    "file": "normal images and anomalies come from different sources, and figures measure that",
    "image": "a detector that only measures this would do as well",
}
MOST_ROWS, MOST_COLUMNS, MOST_TOLD = 20_000, 500, 10
"""Rows of either kind and columns that are looked at; the best of them that are told."""
FEWEST, FOLDS = 10, 5
"""Rows of either kind, without which chance alone separates; parts that levels are judged by."""
TOLERATED = 0.02
"""Share of test rows with a twin in training that needs no warning."""


@dataclass(frozen=True)
class SingleFeatureAUROC:
    """How well one thing alone tells anomalies from normal rows, in whatever direction."""

    name: str
    kind: Kind
    auroc: float
    low: float
    """two standard errors below"""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def warning(self, auroc: float | None) -> str | None:
        """Why it is suspicious beside a detector of this AUROC; None: it is not."""
        better = auroc is not None and self.low > auroc
        if self.auroc < SEPARATES[self.kind] and not better:
            return None
        against = f", the detector's is {auroc:.3f}" if auroc is not None and better else ""
        return (
            f"{NOUNS[self.kind].format(self.name)} separates anomalies: AUROC {self.auroc:.3f}"
            f"{against}; {REMEDIES[self.kind]}"
        )


@dataclass(frozen=True)
class Duplicates:
    """Test rows that are known from training, as shares of the normal rows and of the anomalies."""

    rows: int
    normal: float | None
    anomalies: float | None
    auroc_without: float | None
    """the AUROC on the others"""

    @classmethod
    def of(cls, known: Mask, anomaly: Mask, score: NDArray[np.float64]) -> Duplicates:
        """Which of N rows are, their labels and scores."""
        others = anomaly[~known]
        both = others.any() and not others.all()
        return cls(
            int(known.sum()),
            float(known[~anomaly].mean()) if not anomaly.all() else None,
            float(known[anomaly].mean()) if anomaly.any() else None,
            Ranking(score[~known], others).auroc() if both else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def warning(self, rows: int, what: str) -> str | None:
        """Where they are more than a few of the test rows; ``what`` is said of them."""
        if self.rows <= TOLERATED * rows:
            return None
        without = "" if self.auroc_without is None else f"; AUROC {self.auroc_without:.3f} without"
        return f"{self.rows:,} of {rows:,} test rows {what}{without}"


def single_feature_aurocs(
    things: Mapping[str, Values], anomaly: Mask, kind: Kind = "column", seed: int = 0
) -> list[SingleFeatureAUROC]:
    """How well each thing does, the best first; none, where there are too few of either kind."""
    kinds = [_some(~anomaly), _some(anomaly)]
    if min(map(len, kinds)) < FEWEST:
        return []
    rows = np.sort(np.concatenate(kinds))
    found = []
    for name, values in list(things.items())[:MOST_COLUMNS]:
        auroc = max(_aurocs(values.take(rows), anomaly[rows], seed))
        found.append(
            SingleFeatureAUROC(name, kind, auroc, auroc - 2 * _error(auroc, *map(len, kinds)))
        )
    return sorted(found, key=lambda one: -one.auroc)[:MOST_TOLD]


def warnings(found: Sequence[SingleFeatureAUROC], auroc: float | None) -> list[str]:
    """What is suspicious of it, beside a detector of this AUROC."""
    return [text for one in found if (text := one.warning(auroc))]


def _error(auroc: float, normal: int, anomalies: int) -> float:
    """The standard error of an AUROC (Hanley & McNeil 1982)."""
    two_anomalies = auroc / (2 - auroc) - auroc**2
    two_normal = 2 * auroc**2 / (1 + auroc) - auroc**2
    total = auroc * (1 - auroc) + (anomalies - 1) * two_anomalies + (normal - 1) * two_normal
    return float(np.sqrt(max(total, 0.0) / normal / anomalies))


def _some(rows: Mask) -> NDArray[np.intp]:
    """Positions of these rows, evenly thinned to `MOST_ROWS`."""
    positions = np.flatnonzero(rows)
    return positions[:: max(1, -(-len(positions) // MOST_ROWS))]


def _aurocs(values: Values, anomaly: Mask, seed: int) -> Iterator[float]:
    """By the value, by how far it is from the median of normal rows, and by its absence."""
    if isinstance(values, Levels):
        yield from _either(_shares(values.codes, anomaly, seed), anomaly)
        return
    missing = np.isnan(values)
    yield from _either(missing, anomaly)
    normal = values[~anomaly & ~missing]
    middle = float(np.median(normal)) if len(normal) else 0.0
    for ranked in (values, np.abs(values - middle)):
        yield from _either(np.unique(ranked, return_inverse=True)[1], anomaly)


def _either(ranks: NDArray[Any], anomaly: Mask) -> Iterator[float]:
    """High means anomaly, or low does."""
    auroc = Ranking(ranks, anomaly).auroc()
    yield auroc
    yield 1 - auroc


def _shares(codes: NDArray[np.int32], anomaly: Mask, seed: int) -> NDArray[np.float64]:
    """(N,) how far the share of anomalies of a row's level is above that of all, in other folds.

    A level that is nowhere else has the share of all rows, so that names, which are all different,
    separate nothing.
    """
    _, level = np.unique(codes, return_inverse=True)
    fold = np.empty(len(codes), np.int8)
    for kind in (anomaly, ~anomaly):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(kind))
        fold[order] = np.arange(len(order)) % FOLDS
    shares = np.empty(len(codes))
    for one in range(FOLDS):
        others, here = fold != one, fold == one
        rows = np.bincount(level[others], minlength=level.max() + 1)
        hits = np.bincount(level[others & anomaly], minlength=level.max() + 1)
        prior = hits.sum() / rows.sum()
        shares[here] = ((hits + prior) / (rows + 1) - prior)[level[here]]
    return np.round(shares, 12)  # a column of one level has exactly the same everywhere
