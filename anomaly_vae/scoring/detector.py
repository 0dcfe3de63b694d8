"""Detect anomalies: score rows, then compare the scores with the scorer's calibration.

Calibration scores come from the same scoring kernel, so decisions have the calibration's
guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, Groups
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.known import NOT_LIKE, likeness
from anomaly_vae.scoring.scorer import ScoreParts, Scorer, Terms
from anomaly_vae.scoring.unusual import UnusualTest
from anomaly_vae.types import KNOWN_ANOMALIES


@dataclass(frozen=True)
class Detections:
    """Decisions on N rows: score (N,) in the detector's unit, p_value (N,) and is_anomaly (N,).

    ``group`` and ``threshold`` are None unless the detector has groups. ``unusual_input`` is a
    separate answer: it affects none of the others.

    >>> import numpy as np
    >>> scores, p_values = np.array([1.0, 9.0]), np.array([0.5, 0.01])
    >>> detections = Detections(scores, p_values, scores > 5)
    >>> detections.part(detections.is_anomaly).score.tolist()
    [9.0]
    >>> Detections.concatenate([detections, detections]).is_anomaly.tolist()
    [False, True, False, True]
    """

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    group: NDArray[np.object_] | None = None
    """Level (N,) whose calibration decided; None for rows that the pooled calibration decided."""
    threshold: NDArray[np.float64] | None = None
    """Threshold (N,) that each score was compared with."""
    unusual_input: NDArray[np.object_] | None = None
    """Reason (N,) why a row is unlike the training rows, None for the others; None if untested."""
    windows: NDArray[np.void] | None = None
    """Window features (N,), one field each, NaN where missing; None without `data.windows`."""
    window_notes: NDArray[np.uint8] | None = None
    """Bits (N,) that say what is unusual about the windows of a row; None without windows."""

    @property
    def unusual(self) -> int:
        """Number of rows that are reported as unlike the training rows."""
        found = self.unusual_input
        return 0 if found is None else len(found) - found.tolist().count(None)

    def part(self, rows: slice | NDArray[np.bool_]) -> Detections:
        """Return the decisions on the selected rows."""
        columns: Any = (None if c is None else c[rows] for c in vars(self).values())
        return Detections(*columns)

    @classmethod
    def of(cls, decisions: Sequence[Decision], tested: bool = True) -> Detections:
        """Join decisions on lone rows; ``tested`` says whether they were tested for being unusual.

        >>> Detections.of([Decision(1.0, 0.5, False, None)], tested=False).unusual_input is None
        True
        """
        scores, p_values, flags, reasons = zip(*decisions, strict=True)
        unusual = np.array(reasons, object) if tested else None
        return cls(np.array(scores), np.array(p_values), np.array(flags), unusual_input=unusual)

    @classmethod
    def concatenate(cls, parts: Iterable[Detections]) -> Detections:
        """Concatenate decisions of the same detector."""
        fields: Any = zip(*(vars(part).values() for part in parts), strict=True)
        columns: Any = (None if c[0] is None else np.concatenate(c) for c in fields)
        return cls(*columns)


class Decision(NamedTuple):
    """The decision on a lone row by a detector without groups; see `Detections`.

    >>> Detections.of([Decision(9.0, 0.01, True, None)]).is_anomaly.tolist()
    [True]
    """

    score: float
    p_value: float
    is_anomaly: bool
    unusual_input: str | None


@dataclass(frozen=True)
class Contribution:
    """The part of a score due to one column, with the observed and the expected value.

    ``nats`` is in the unit of the score. The feature ``known_anomalies`` is no column: it is the
    likeness to anomalies that the model has learned from.
    """

    feature: str
    nats: float
    observed: Any
    expected: Any


@dataclass(frozen=True)
class RegionContribution:
    """The part of an image's score due to one region of its anomaly map.

    ``box`` is (x0, y0, x1, y1): x to the right, y down, x1 and y1 just outside, in pixels of the
    image as the model received it. ``nats`` is the sum of the region's pixels, in the unit of the
    score, and ``share`` its fraction, from 0 to 1, of all positive pixels of the map.
    """

    box: tuple[int, int, int, int]
    nats: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """The parts of a score, in its unit: score = Σ contributions + Σ regions + rest + kl.

    Rows of tables have ``contributions``, images have ``regions``. ``rest`` is the sum over all
    columns or pixels that belong to none of those listed.

    >>> listed = (Contribution("amount", 6.0, observed=950.0, expected=40.0),)
    >>> explanation = Explanation(listed, rest=1.5, kl=0.5)
    >>> sum(c.nats for c in explanation.contributions) + explanation.rest + explanation.kl
    8.0
    """

    contributions: tuple[Contribution, ...]
    rest: float
    kl: float
    regions: tuple[RegionContribution, ...] = ()


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
    >>> detections, (usual, odd) = detector.detect_and_explain(batch, max_contributions=1)
    >>> odd.contributions[0].feature, odd.contributions[0].observed
    ('a', 9.0)
    """

    scorer: Scorer
    calibration: Calibration
    unit: str = "nats"
    """Unit of scores: nats, sd for scores standardised on held-out normal rows, or surprise for
    scores that include the likeness to known anomalies."""
    unusual: UnusualTest | None = None
    """Test of whether rows are like the training rows at all; None for no test."""

    def detect(self, batch: RawBatch) -> Detections:
        """Score every row of a batch, which must have no row problems, and decide on it."""
        return self.detect_encoded(self.scorer.encoding.encode(batch))

    def decide_alone(self, x: Matrix, is_complete: bool) -> Decision:
        """Decide on one encoded row (1, F) without operations on arrays; needs no groups.

        Args:
            x: the row.
            is_complete: whether no value is missing.
        """
        score, loss, rate = self.scorer.score_alone(x)
        p_value, is_anomaly = self.calibration.decide_one(score)
        reason = self.unusual.reason(loss, rate, x, is_complete) if self.unusual else None
        return Decision(score, p_value, is_anomaly, reason)

    def detect_encoded(self, x: Matrix) -> Detections:
        """Score encoded rows (N, F) and decide on them."""
        if self.unusual is None:
            return self.decide(self.scorer.score_encoded(x), x)
        scores, terms = self.scorer.scores_and_terms(x)
        return self.decide(scores, x, terms)

    def decide(
        self, scores: NDArray[np.float64], x: Matrix, terms: Terms | None = None
    ) -> Detections:
        """Decide by scores.

        Args:
            scores: (N,) scores.
            x: (N, F) encoded rows, which determine each row's group.
            terms: terms of the detector's scores; None leaves out the test for unusual rows.
        """
        unusual = None
        if self.unusual is not None and terms is not None:
            unusual = self.unusual.reasons(*terms, x)
        calibration, groups = self.calibration, self.calibration.groups
        if groups is None:
            p_values, flags = calibration.p_values(scores), calibration.flags(scores)
            return Detections(scores, p_values, flags, unusual_input=unusual)
        levels = self.scorer.encoding.levels(groups.column, x)
        return replace(_by_group(calibration, groups, scores, levels), unusual_input=unusual)

    def detect_and_explain(
        self, batch: RawBatch, max_contributions: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decide on every row and list its largest contributions; None lists all of them."""
        explained = self.scorer.explain(batch)
        detections = self.decide(explained.score, explained.observed, explained.terms)
        return detections, explanations(self.scorer, batch, explained, max_contributions)


def _by_group(
    calibration: Calibration, groups: Groups, scores: NDArray[np.float64], levels: Levels
) -> Detections:
    """Decide by scores (N,), each with its level's calibration if any, else with the pooled one."""
    p_value, is_anomaly = calibration.p_values(scores), calibration.flags(scores)
    threshold = np.full(len(scores), calibration.threshold)
    group = np.full(len(scores), None, object)
    for code in np.unique(levels.codes[levels.codes >= 0]):
        name, rows = levels.names[code], levels.codes == code
        if level_calibration := groups.by_level.get(name):
            group[rows], threshold[rows] = name, level_calibration.threshold
            p_value[rows] = level_calibration.p_values(scores[rows])
            is_anomaly[rows] = level_calibration.flags(scores[rows])
    return Detections(scores, p_value, is_anomaly, group, threshold)


def explanations(
    scorer: Scorer, batch: RawBatch, explained: ScoreParts, max_contributions: int | None
) -> list[Explanation]:
    """Return an explanation of each score by `sequential_dropout`, largest contributions first.

    If the model has learned from known anomalies, the likeness to them is one of the contributions.
    """
    encoding = scorer.encoding
    explained = sequential_dropout(scorer, explained)
    observed = encoding.observed(batch)
    expected = encoding.expected(batch, explained.expected)
    labels, parts = list(encoding.labels), explained.nats
    if (like := likeness(scorer, explained, observed)) is not None:
        labels, parts = [*labels, KNOWN_ANOMALIES], np.column_stack([parts, explained.known])
        observed, expected = [*observed, like], [*expected, [NOT_LIKE] * len(like)]
    order = np.argsort(-parts, axis=1, kind="stable")[:, :max_contributions]
    return [
        Explanation(
            tuple(
                Contribution(labels[c], float(nats[c]), observed[c][row], expected[c][row])
                for c in columns
            ),
            rest=float(nats.sum() - nats[columns].sum()),
            kl=float(kl),
        )
        for row, (columns, nats, kl) in enumerate(zip(order, parts, explained.kl, strict=True))
    ]
