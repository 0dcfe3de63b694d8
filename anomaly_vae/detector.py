"""A detector: a scorer and its calibration. What was calibrated is what decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration import Calibration
from anomaly_vae.reasons import sequential_dropout
from anomaly_vae.schema import RawBatch
from anomaly_vae.scoring import Explained, Scorer


@dataclass(frozen=True)
class Detections:
    """Decisions for N rows: score (N,) in the detector's unit, p_value (N,), is_anomaly (N,)."""

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]

    def part(self, rows: slice | NDArray[np.bool_]) -> Detections:
        """The decisions on these rows."""
        return Detections(self.score[rows], self.p_value[rows], self.is_anomaly[rows])

    @classmethod
    def concatenate(cls, parts: Iterable[Detections]) -> Detections:
        """These decisions, one after another."""
        columns = zip(*((one.score, one.p_value, one.is_anomaly) for one in parts), strict=True)
        return cls(*map(np.concatenate, columns))


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
        return self.decide(self.scorer.score(batch))

    def decide(self, scores: NDArray[np.float64]) -> Detections:
        """Scores (N,) → decisions."""
        return Detections(scores, self.calibration.p_values(scores), self.calibration.flags(scores))

    def detect_and_explain(
        self, batch: RawBatch, most: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decisions, and for each row its ``most`` largest contributions (None: all)."""
        explained = self.scorer.explain(batch)
        return self.decide(explained.score), explanations(self.scorer, batch, explained, most)


def explanations(
    scorer: Scorer, batch: RawBatch, explained: Explained, most: int | None
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
