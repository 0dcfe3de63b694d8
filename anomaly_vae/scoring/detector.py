"""A detector: a scorer and its calibration. What was calibrated is what decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, Groups
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import Matrix, TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.scorer import ScoreParts, Scorer


@dataclass(frozen=True)
class Detections:
    """Decisions for N rows: score (N,) in the detector's unit, p_value (N,), is_anomaly (N,).

    Of a detector with groups also whose scores decided, None for those of all rows, and above
    which threshold.
    """

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    group: NDArray[np.object_] | None = None
    """(N,) levels or None"""
    threshold: NDArray[np.float64] | None = None
    """(N,)"""

    def part(self, rows: slice | NDArray[np.bool_]) -> Detections:
        """The decisions on these rows."""
        columns: Any = (None if of is None else of[rows] for of in vars(self).values())
        return Detections(*columns)

    @classmethod
    def concatenate(cls, parts: Iterable[Detections]) -> Detections:
        """These decisions, one after another; of one detector, so that all have the same."""
        every: Any = zip(*(vars(one).values() for one in parts), strict=True)
        columns: Any = (None if of[0] is None else np.concatenate(of) for of in every)
        return cls(*columns)


@dataclass(frozen=True)
class Contribution:
    """One column's share of a score, in nats, with what was seen and what was expected."""

    feature: str
    nats: float
    observed: Any
    expected: Any


@dataclass(frozen=True)
class Explanation:
    """score = Σ contributions + rest + kl, in nats."""

    contributions: tuple[Contribution, ...]
    rest: float
    kl: float


@dataclass(frozen=True)
class Detector:
    """Scores, p-values, decisions and reasons."""

    scorer: Scorer
    calibration: Calibration
    unit: str = "nats"
    """of scores and their parts: nats, or sd where they are standardised on held-out normals"""

    def detect(self, batch: RawBatch) -> Detections:
        """Decide on every row of a batch without problems."""
        x = self.scorer.encoding.encode(batch)
        return self.decide(self.scorer.score_encoded(x), x)

    def decide(self, scores: NDArray[np.float64], x: Matrix) -> Detections:
        """Scores (N,) of encoded rows (N, F) → decisions; the rows tell the group of each."""
        calibration, groups = self.calibration, self.calibration.groups
        if groups is None:
            return Detections(scores, calibration.p_values(scores), calibration.flags(scores))
        encoding = self.scorer.encoding
        assert isinstance(encoding, TabularEncoding), "images have no groups"
        return _by_group(calibration, groups, scores, encoding.levels(groups.column, x))

    def detect_and_explain(
        self, batch: RawBatch, most: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decisions, and for each row its ``most`` largest contributions (None: all)."""
        explained = self.scorer.explain(batch)
        found = self.decide(explained.score, explained.observed)
        return found, explanations(self.scorer, batch, explained, most)


def _by_group(
    calibration: Calibration, groups: Groups, scores: NDArray[np.float64], levels: Levels
) -> Detections:
    """Decisions on scores (N,), each by the calibration of its level, or by that of all rows."""
    p_value, is_anomaly = calibration.p_values(scores), calibration.flags(scores)
    threshold = np.full(len(scores), calibration.threshold)
    group = np.full(len(scores), None, object)
    for code in np.unique(levels.codes[levels.codes >= 0]):
        name, rows = levels.names[code], levels.codes == code
        if own := groups.own.get(name):
            group[rows], threshold[rows] = name, own.threshold
            p_value[rows], is_anomaly[rows] = own.p_values(scores[rows]), own.flags(scores[rows])
    return Detections(scores, p_value, is_anomaly, group, threshold)


def explanations(
    scorer: Scorer, batch: RawBatch, explained: ScoreParts, most: int | None
) -> list[Explanation]:
    """The parts of each score by name, largest first; those of a table by `sequential_dropout`."""
    encoding = scorer.encoding
    explained = sequential_dropout(scorer, explained)
    observed = encoding.observed(batch)
    expected = encoding.decode(explained.expected)
    order = np.argsort(-explained.nats, axis=1, kind="stable")[:, :most]
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
