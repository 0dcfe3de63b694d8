"""Detect anomalies: score rows, then decide with the calibration of the same scorer.

The calibration was computed with the scoring kernel that is used here, so decisions keep its
guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, Groups
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.scorer import ScoreParts, Scorer


@dataclass(frozen=True)
class Detections:
    """Decisions on N rows: score (N,) in the detector's unit, p_value (N,) and is_anomaly (N,).

    ``group`` and ``threshold`` are None unless the detector has groups.

    >>> import numpy as np
    >>> found = Detections(np.array([1.0, 9.0]), np.array([0.5, 0.01]), np.array([False, True]))
    >>> found.part(found.is_anomaly).score.tolist()
    [9.0]
    >>> Detections.concatenate([found, found]).is_anomaly.tolist()
    [False, True, False, True]
    """

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    group: NDArray[np.object_] | None = None
    """Level (N,) whose own calibration decided, or None where that of all rows did."""
    threshold: NDArray[np.float64] | None = None
    """Threshold (N,) that each row was compared with."""

    def part(self, rows: slice | NDArray[np.bool_]) -> Detections:
        """Return the decisions on some of the rows."""
        columns: Any = (None if one is None else one[rows] for one in vars(self).values())
        return Detections(*columns)

    @classmethod
    def concatenate(cls, parts: Iterable[Detections]) -> Detections:
        """Concatenate decisions of the same detector."""
        fields: Any = zip(*(vars(one).values() for one in parts), strict=True)
        columns: Any = (None if one[0] is None else np.concatenate(one) for one in fields)
        return cls(*columns)


@dataclass(frozen=True)
class Contribution:
    """The share of one column in a score, in nats, with its observed and its expected value."""

    feature: str
    nats: float
    observed: Any
    expected: Any


@dataclass(frozen=True)
class Explanation:
    """The parts of a score, in nats: score = Σ contributions + rest + kl.

    ``rest`` adds up the columns that are not listed among the contributions.

    >>> listed = (Contribution("amount", 6.0, observed=950.0, expected=40.0),)
    >>> explanation = Explanation(listed, rest=1.5, kl=0.5)
    >>> sum(c.nats for c in explanation.contributions) + explanation.rest + explanation.kl
    8.0
    """

    contributions: tuple[Contribution, ...]
    rest: float
    kl: float


@dataclass(frozen=True)
class Detector:
    """A scorer with its calibration: scores, p-values, decisions and explanations.

    >>> import numpy as np
    >>> import pandas as pd
    >>> from anomaly_vae import TabularVAEDetector
    >>> rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    >>> detector = TabularVAEDetector(epochs=1, random_state=0).fit(rows).bundle_.detector
    >>> batch = detector.scorer.schema.from_records([{"a": 0.1, "b": 0.2}, {"a": 9, "b": 0}])
    >>> detector.detect(batch).is_anomaly.tolist()
    [False, True]
    >>> found, (usual, odd) = detector.detect_and_explain(batch, max_contributions=1)
    >>> odd.contributions[0].feature, odd.contributions[0].observed
    ('a', 9.0)
    """

    scorer: Scorer
    calibration: Calibration
    unit: str = "nats"
    """Unit of scores: nats, or sd if they are standardised on held-out normal rows."""

    def detect(self, batch: RawBatch) -> Detections:
        """Decide on every row of a batch without problems."""
        x = self.scorer.encoding.encode(batch)
        return self.decide(self.scorer.score_encoded(x), x)

    def decide(self, scores: NDArray[np.float64], x: Matrix) -> Detections:
        """Decide by the scores (N,) of encoded rows (N, F), which determine each row's group."""
        calibration, groups = self.calibration, self.calibration.groups
        if groups is None:
            return Detections(scores, calibration.p_values(scores), calibration.flags(scores))
        levels = self.scorer.encoding.levels(groups.column, x)
        return _by_group(calibration, groups, scores, levels)

    def detect_and_explain(
        self, batch: RawBatch, max_contributions: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decide on every row and list its largest contributions (None: all of them)."""
        explained = self.scorer.explain(batch)
        found = self.decide(explained.score, explained.observed)
        return found, explanations(self.scorer, batch, explained, max_contributions)


def _by_group(
    calibration: Calibration, groups: Groups, scores: NDArray[np.float64], levels: Levels
) -> Detections:
    """Decide by scores (N,), each compared with its level's calibration or that of all rows."""
    p_value, is_anomaly = calibration.p_values(scores), calibration.flags(scores)
    threshold = np.full(len(scores), calibration.threshold)
    group = np.full(len(scores), None, object)
    for code in np.unique(levels.codes[levels.codes >= 0]):
        name, rows = levels.names[code], levels.codes == code
        if own := groups.by_level.get(name):
            group[rows], threshold[rows] = name, own.threshold
            p_value[rows], is_anomaly[rows] = own.p_values(scores[rows]), own.flags(scores[rows])
    return Detections(scores, p_value, is_anomaly, group, threshold)


def explanations(
    scorer: Scorer, batch: RawBatch, explained: ScoreParts, max_contributions: int | None
) -> list[Explanation]:
    """Return the parts of each score by name, largest first, from `sequential_dropout`."""
    encoding = scorer.encoding
    explained = sequential_dropout(scorer, explained)
    observed = encoding.observed(batch)
    expected = encoding.decode(explained.expected)
    order = np.argsort(-explained.nats, axis=1, kind="stable")[:, :max_contributions]
    return [
        Explanation(
            tuple(
                Contribution(encoding.labels[c], float(nats[c]), observed[c][row], expected[c][row])
                for c in columns
            ),
            rest=float(nats.sum() - nats[columns].sum()),
            kl=float(kl),
        )
        for row, (columns, nats, kl) in enumerate(
            zip(order, explained.nats, explained.kl, strict=True)
        )
    ]
