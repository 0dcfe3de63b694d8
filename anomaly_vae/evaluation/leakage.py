"""Look for data leakage: test rows that are duplicates of training rows, and revealing features.

Such findings do not prove that other figures are honest; docs/evaluation.md says what cannot be
detected.
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
"""AUROC of a single feature from which a warning is given, by kind of feature."""
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
MAX_ROWS, MAX_COLUMNS, MAX_REPORTED = 20_000, 500, 10
"""Maximum numbers of rows of each kind, of columns examined, and of columns reported."""
MIN_ROWS, FOLDS = 10, 5
"""Minimum number of rows of each kind, and number of folds in which levels are judged."""
TOLERATED_DUPLICATES = 0.02
"""Share of test rows with a duplicate in training that needs no warning."""


@dataclass(frozen=True)
class SingleFeatureAUROC:
    """The AUROC of a single feature, in the better of its two directions."""

    name: str
    kind: Kind
    auroc: float
    low: float
    """Lower bound: the AUROC minus two standard errors."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def warning(self, auroc: float | None) -> str | None:
        """Return a warning if the feature rivals a detector of this AUROC, else None."""
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
    """The test rows that also occur in training, as shares of normal rows and of anomalies."""

    rows: int
    normal: float | None
    anomalies: float | None
    auroc_without: float | None
    """AUROC on the other test rows."""

    @classmethod
    def from_mask(cls, known: Mask, anomaly: Mask, score: NDArray[np.float64]) -> Duplicates:
        """Summarise which of N rows occur in training (``known``), by labels and scores (N,)."""
        others = anomaly[~known]
        both = others.any() and not others.all()
        return cls(
            int(known.sum()),
            float(known[~anomaly].mean()) if not anomaly.all() else None,
            float(known[anomaly].mean()) if anomaly.any() else None,
            Ranking(score[~known], others).auroc() if both else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def warning(self, rows: int, description: str) -> str | None:
        """Return a warning if there are too many duplicates among ``rows``, else None."""
        if self.rows <= TOLERATED_DUPLICATES * rows:
            return None
        without = "" if self.auroc_without is None else f"; AUROC {self.auroc_without:.3f} without"
        return f"{self.rows:,} of {rows:,} test rows {description}{without}"


def single_feature_aurocs(
    features: Mapping[str, Values], anomaly: Mask, kind: Kind = "column", seed: int = 0
) -> list[SingleFeatureAUROC]:
    """Return the AUROC of each feature, the best first; nothing if there are too few rows."""
    kinds = [_spread_positions(~anomaly), _spread_positions(anomaly)]
    if min(map(len, kinds)) < MIN_ROWS:
        return []
    rows = np.sort(np.concatenate(kinds))
    found = []
    for name, values in list(features.items())[:MAX_COLUMNS]:
        auroc = max(_aurocs(values.take(rows), anomaly[rows], seed))
        found.append(
            SingleFeatureAUROC(
                name, kind, auroc, auroc - 2 * _standard_error(auroc, *map(len, kinds))
            )
        )
    return sorted(found, key=lambda one: -one.auroc)[:MAX_REPORTED]


def warnings(found: Sequence[SingleFeatureAUROC], auroc: float | None) -> list[str]:
    """Return the warnings about features, beside a detector of this AUROC."""
    return [text for one in found if (text := one.warning(auroc))]


def _standard_error(auroc: float, normal: int, anomalies: int) -> float:
    """Return the standard error of an AUROC (Hanley & McNeil 1982)."""
    two_anomalies = auroc / (2 - auroc) - auroc**2
    two_normal = 2 * auroc**2 / (1 + auroc) - auroc**2
    total = auroc * (1 - auroc) + (anomalies - 1) * two_anomalies + (normal - 1) * two_normal
    return float(np.sqrt(max(total, 0.0) / normal / anomalies))


def _spread_positions(rows: Mask) -> NDArray[np.intp]:
    """Return positions of rows, evenly thinned to `MAX_ROWS`."""
    positions = np.flatnonzero(rows)
    return positions[:: max(1, -(-len(positions) // MAX_ROWS))]


def _aurocs(values: Values, anomaly: Mask, seed: int) -> Iterator[float]:
    """Yield AUROCs by value, by distance from the median of normal rows, and by missingness."""
    if isinstance(values, Levels):
        yield from _both_directions(_anomaly_shares_of_levels(values.codes, anomaly, seed), anomaly)
        return
    missing = np.isnan(values)
    yield from _both_directions(missing, anomaly)
    normal = values[~anomaly & ~missing]
    middle = float(np.median(normal)) if len(normal) else 0.0
    for ranked in (values, np.abs(values - middle)):
        yield from _both_directions(np.unique(ranked, return_inverse=True)[1], anomaly)


def _both_directions(ranks: NDArray[Any], anomaly: Mask) -> Iterator[float]:
    """Yield the AUROC if high values indicate an anomaly, and if low values do."""
    auroc = Ranking(ranks, anomaly).auroc()
    yield auroc
    yield 1 - auroc


def _anomaly_shares_of_levels(
    codes: NDArray[np.int32], anomaly: Mask, seed: int
) -> NDArray[np.float64]:
    """Return the anomaly share of each row's level minus that of all rows, (N,), from other folds.

    A level that does not occur in other folds gets the share of all rows, so that identifiers,
    which are all distinct, separate nothing.
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
    return np.round(shares, 12)  # so that a column with one level has exactly equal shares
