"""Look for data leakage: test rows that duplicate training rows, and features that reveal labels.

Finding no leakage does not prove that there is none; docs/evaluation.md lists what cannot be
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
from anomaly_vae.messages import listed

Mask = NDArray[np.bool_]
Kind = Literal["column", "columns", "file", "image"]

WARNING_AUROC: Mapping[Kind, float] = {"column": 0.99, "columns": 0.99, "file": 0.8, "image": 0.9}
"""Minimum AUROC of a single feature for a warning, by kind of feature."""
NOUNS: Mapping[Kind, str] = {
    "column": "column '{}' alone",
    "columns": "a mark in any of the columns {}",
    "file": "the file's {} alone",
    "image": "the image's {} alone",
}
"""Subject of a warning, by kind of feature."""
REMEDIES: Mapping[Kind, str] = {
    "column": "if it is known only after the label, leave it out (data.ignore)",
    "columns": "if they are known only after the label, leave them out (data.ignore)",
    "file": "normal images and anomalies come from different sources, and figures measure that",
    "image": "a detector that only measures this would do as well",
}
"""Advice in a warning, by kind of feature."""
MAX_ROWS, MAX_COLUMNS, MAX_REPORTED = 20_000, 500, 10
"""Maximum numbers of rows per class, of features examined, and of features reported."""
MIN_TOGETHER = 2
"""Minimum number of columns that reveal a label together."""
MIN_ROWS, FOLDS = 10, 5
"""Minimum number of rows per class, and number of folds to estimate levels on other rows."""
TOLERATED_DUPLICATES = 0.02
"""Maximum share of test rows with a duplicate in training that causes no warning."""


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
        """Return a warning if the feature alone is very good or beats the detector's AUROC."""
        better = auroc is not None and self.low > auroc
        if self.auroc < WARNING_AUROC[self.kind] and not better:
            return None
        against = f", the detector's is {auroc:.3f}" if auroc is not None and better else ""
        return (
            f"{NOUNS[self.kind].format(self.name)} separates anomalies: AUROC {self.auroc:.3f}"
            f"{against}; {REMEDIES[self.kind]}"
        )


@dataclass(frozen=True)
class Duplicates:
    """Test rows that also occur in training: number, and shares of normal rows and anomalies."""

    rows: int
    normal: float | None
    anomalies: float | None
    auroc_without: float | None
    """AUROC on the test rows that do not occur in training."""

    @classmethod
    def from_mask(cls, known: Mask, anomaly: Mask, score: NDArray[np.float64]) -> Duplicates:
        """Summarise N test rows, of which those with ``known`` (N,) true occur in training."""
        others = anomaly[~known]
        both = others.any() and not others.all()
        return cls(
            int(known.sum()),
            float(known[~anomaly].mean()) if not anomaly.all() else None,
            float(known[anomaly].mean()) if anomaly.any() else None,
            float(Ranking(score[~known], others).auroc()) if both else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def warning(self, rows: int, description: str) -> str | None:
        """Return a warning if too many of the ``rows`` test rows are duplicates, else None."""
        if self.rows <= TOLERATED_DUPLICATES * rows:
            return None
        without = "" if self.auroc_without is None else f"; AUROC {self.auroc_without:.3f} without"
        return f"{self.rows:,} of {rows:,} test rows {description}{without}"


def single_feature_aurocs(
    features: Mapping[str, Values], anomaly: Mask, kind: Kind = "column", seed: int = 0
) -> list[SingleFeatureAUROC]:
    """Return the AUROC of each feature, best first; an empty list if there are too few rows.

    Columns that reveal the label together, as the indicators of a code do, count as one feature of
    the kind ``columns``; it is left out unless its AUROC calls for a warning.
    """
    classes = [_spread_positions(~anomaly), _spread_positions(anomaly)]
    if min(map(len, classes)) < MIN_ROWS:
        return []
    rows = np.sort(np.concatenate(classes))
    examined = {name: values.take(rows) for name, values in list(features.items())[:MAX_COLUMNS]}
    found = [
        (name, kind, max(_aurocs(values, anomaly[rows], seed))) for name, values in examined.items()
    ]
    if (
        kind == "column"
        and max((auroc for *_, auroc in found), default=1) < WARNING_AUROC["columns"]
    ):
        found += _marked_together(examined, anomaly[rows], seed)
    results = [
        SingleFeatureAUROC(*one, one[-1] - 2 * _standard_error(one[-1], *map(len, classes)))
        for one in found
    ]
    return sorted(results, key=lambda result: -result.auroc)[:MAX_REPORTED]


def warnings(features: Sequence[SingleFeatureAUROC], auroc: float | None) -> list[str]:
    """Return the warnings about features, given the detector's AUROC."""
    return [text for feature in features if (text := feature.warning(auroc))]


def _standard_error(auroc: float, normal: int, anomalies: int) -> float:
    """Return the standard error of an AUROC (Hanley & McNeil 1982)."""
    two_anomalies = auroc / (2 - auroc) - auroc**2
    two_normal = 2 * auroc**2 / (1 + auroc) - auroc**2
    total = auroc * (1 - auroc) + (anomalies - 1) * two_anomalies + (normal - 1) * two_normal
    return float(np.sqrt(max(total, 0.0) / normal / anomalies))


def _spread_positions(rows: Mask) -> NDArray[np.intp]:
    """Return the positions of selected rows, evenly thinned to at most `MAX_ROWS`."""
    positions = np.flatnonzero(rows)
    return positions[:: max(1, -(-len(positions) // MAX_ROWS))]


def _aurocs(values: Values, anomaly: Mask, seed: int) -> Iterator[float]:
    """Yield AUROCs by level, or by value, distance from the normal median, code and absence.

    A number may be a code, such as 2 for fraud among 0 to 4, whose order and size mean nothing.
    """
    if isinstance(values, Levels):
        yield from _both_directions(_anomaly_shares_of_levels(values.codes, anomaly, seed), anomaly)
        return
    missing = np.isnan(values)
    yield from _both_directions(missing, anomaly)
    normal = values[~anomaly & ~missing]
    middle = float(np.median(normal)) if len(normal) else 0.0
    for ranked in (values, np.abs(values - middle)):
        yield from _both_directions(np.unique(ranked, return_inverse=True)[1], anomaly)
    yield from _both_directions(_anomaly_shares_of_levels(values, anomaly, seed), anomaly)


def _marked_together(
    features: Mapping[str, Values], anomaly: Mask, seed: int
) -> Iterator[tuple[str, Kind, float]]:
    """Yield the columns of which one or another marks each anomaly, or each normal row.

    The indicators of a code reveal only together what the code reveals alone. A row is ranked by
    the state of it that is most telling, whichever column has it.
    """
    every = ((name, _two_states(values)) for name, values in features.items())
    states = {name: codes for name, codes in every if codes is not None}
    if len(states) < MIN_TOGETHER:
        return
    found = [_anomaly_shares_of_levels(codes, anomaly, seed) for codes in states.values()]
    names, shares = list(states), np.array(found, np.float32)
    for marks, marked in ((shares, anomaly), (-shares, ~anomaly)):
        auroc = float(Ranking(marks.max(axis=0), marked).auroc())
        if auroc >= WARNING_AUROC["columns"]:
            telling = np.unique(marks[:, marked].argmax(axis=0))
            yield listed([names[column] for column in telling]), "columns", auroc


def _two_states(values: Values) -> NDArray[Any] | None:
    """Return the states (N,) of a column that has two, else whether values are missing, if any."""
    codes = values.codes if isinstance(values, Levels) else values
    missing = codes < 0 if isinstance(values, Levels) else np.isnan(codes)
    states = np.unique(codes, return_inverse=True)[1]
    if states.max() == 1:
        return states
    return missing if missing.any() and not missing.all() else None


def _both_directions(ranks: NDArray[Any], anomaly: Mask) -> Iterator[float]:
    """Yield the AUROC of high values as a sign of anomalies, then that of low values."""
    auroc = float(Ranking(ranks, anomaly).auroc())
    yield auroc
    yield 1 - auroc


def _anomaly_shares_of_levels(codes: NDArray[Any], anomaly: Mask, seed: int) -> NDArray[np.float64]:
    """Return the anomaly share of each row's level minus the overall share, (N,), by cross-fitting.

    Each share is computed on the folds that do not contain the row. A level that does not occur
    there gets the overall share, so that identifiers, which are all distinct, reveal nothing.
    """
    _, level = np.unique(codes, return_inverse=True)
    fold = np.empty(len(codes), np.int8)
    for label in (anomaly, ~anomaly):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(label))
        fold[order] = np.arange(len(order)) % FOLDS
    shares = np.empty(len(codes))
    for held_out in range(FOLDS):
        others, here = fold != held_out, fold == held_out
        rows = np.bincount(level[others], minlength=level.max() + 1)
        hits = np.bincount(level[others & anomaly], minlength=level.max() + 1)
        prior = hits.sum() / rows.sum()
        shares[here] = ((hits + prior) / (rows + 1) - prior)[level[here]]
    return np.round(shares, 12)  # makes the shares of a column with one level exactly equal
