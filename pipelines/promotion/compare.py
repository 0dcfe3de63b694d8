"""Compare a challenger with the champion on the same rows, for the rules of promotion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.errors import ConfigError
from anomaly_vae.evaluation.comparison import (
    Agreement,
    Change,
    SliceChange,
    agreement,
    cpu_seconds,
    metric_change,
    slice_changes,
)
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.lifecycle.parity import parity
from anomaly_vae.lifecycle.promotion import Comparison, Costs, Parity, UnscorableRows
from pipelines.datasets.loading import read_for_model
from pipelines.reports.labelled import Judged, Labelled, judge


@dataclass(frozen=True)
class KindLimits:
    """The limits of the comparison for one kind of data."""

    parity_rows: int
    """Maximum number of rows whose scores are compared with torch."""
    timed_rows: int
    """Maximum number of rows that are scored one at a time in each round of timing."""
    accepts_traffic: bool
    """Whether models can read recent rows, without labels, from files."""


LIMITS = {
    "tabular": KindLimits(parity_rows=512, timed_rows=64, accepts_traffic=True),
    "image": KindLimits(parity_rows=32, timed_rows=8, accepts_traffic=False),
}
"""Limits by kind of data."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A model and its decisions on the test rows."""

    bundle: Bundle
    judged: Judged

    @classmethod
    def of(cls, bundle: Bundle, labelled: Labelled) -> Contender:
        """Score the test rows with the model of a bundle."""
        return cls(bundle, judge(bundle.detector, labelled))

    @property
    def report(self) -> EvaluationReport | None:
        """The evaluation with which the model was registered; None if it was never evaluated."""
        evaluation = self.bundle.manifest["evaluation"]
        return evaluation and EvaluationReport.from_json(evaluation)

    @property
    def limits(self) -> KindLimits:
        """Limits of the model's kind of data."""
        return LIMITS[self.bundle.manifest["kind"]]

    def timed_calls(self) -> list[Callable[[], object]]:
        """Return functions that each score a single row; empty if no row can be scored."""
        batch = self.first_rows(self.limits.timed_rows)
        if not batch:
            return []
        rows = (batch.take(row) for row in np.arange(len(batch))[:, None])
        return [partial(self.bundle.scorer.score, row) for row in rows]

    def first_rows(self, limit: int) -> RawBatch | None:
        """Return the first ``limit`` test rows that the model can score; None if there are none."""
        positions = np.flatnonzero(self.judged.scored)[:limit]
        return self.judged.batch.take(positions) if self.judged.batch and len(positions) else None


def compare(
    champion: Contender | None,
    challenger: Contender,
    policy: PromotionConfig,
    test: str,
    faults: tuple[str | None, str | None],
    traffic: Sequence[str] = (),
) -> Comparison:
    """Compare the models in all respects that the rules of promotion need beyond evaluations.

    Args:
        champion: the current champion; None if there is none.
        challenger: the challenger, on the same rows.
        policy: the rules, which determine the measurements.
        test: the name of the test rows in messages.
        faults: how the challenger reads images differently from the frozen ones, and why test rows
            may have trained it; None where it is at no fault.
        traffic: files of recent rows on which decisions are compared; empty for the test rows.
    """
    return Comparison(
        test=test,
        unscorable=_unscorable(champion, challenger),
        calibrated_on=challenger.report.figures if challenger.report else None,
        single_features=challenger.report.single_features if challenger.report else (),
        metric=_metric(champion, challenger, policy) if champion else None,
        slices=_slices(champion, challenger, policy) if champion else None,
        agreement=_agreement(champion, challenger, policy, test, traffic) if champion else None,
        reading=faults[0],
        seen_test=faults[1],
        parity=_parity(challenger),
        costs=_costs(champion, challenger, policy),
    )


def _unscorable(champion: Contender | None, challenger: Contender) -> UnscorableRows | None:
    """Count the rows that the challenger cannot score, but the champion can."""
    rows = ~challenger.judged.scored & (champion.judged.scored if champion else True)
    return UnscorableRows(int(np.sum(rows)), challenger.judged.problem) if rows.any() else None


def _metric(champion: Contender, challenger: Contender, policy: PromotionConfig) -> Change | None:
    known, labelled = champion.judged.known & challenger.judged.known, challenger.judged.labelled
    return metric_change(
        champion.judged.score[known],
        challenger.judged.score[known],
        labelled.anomaly[known],
        policy.metric,
        policy.confidence,
        labelled.units(known),
    )


def _slices(
    champion: Contender, challenger: Contender, policy: PromotionConfig
) -> list[SliceChange] | None:
    """Compare slices of the columns that either model reads."""
    known, labelled = champion.judged.known & challenger.judged.known, challenger.judged.labelled
    columns = champion.judged.levels | challenger.judged.levels
    if policy.slice_recall is None or not columns:
        return None
    return slice_changes(
        {name: levels.take(known) for name, levels in columns.items()},
        champion.judged.decisions(known).is_anomaly,
        challenger.judged.decisions(known).is_anomaly,
        labelled.anomaly[known],
        challenger.bundle.detector.calibration.alpha,
        policy.confidence,
        labelled.units(known),
    )


def _agreement(
    champion: Contender,
    challenger: Contender,
    policy: PromotionConfig,
    test: str,
    traffic: Sequence[str],
) -> Agreement | None:
    """Compare decisions on the traffic, which needs no labels, or else on the test rows."""
    pair, rows_name = (champion.judged, challenger.judged), test
    if traffic:
        if not challenger.limits.accepts_traffic:
            raise ConfigError("--traffic is for table models; leave it out")
        rows_name = "the traffic"
        pair = (
            _judge_traffic(champion, challenger, traffic),
            _judge_traffic(challenger, champion, traffic),
        )
    shared = pair[0].scored & pair[1].scored
    old_flags, new_flags = (judged.decisions(shared).is_anomaly for judged in pair)
    return agreement(old_flags, new_flags, rows_name, policy.confidence)


def _judge_traffic(contender: Contender, other: Contender, traffic: Sequence[str]) -> Judged:
    """Decide on the traffic with one of two models, as this model reads it."""
    given = read_for_model(contender.bundle, traffic, other.bundle.scorer.schema.names)
    schema = cast("TabularSchema", contender.bundle.scorer.schema)
    batch = given.read(schema) if given.problems else None
    return judge(contender.bundle.detector, Labelled.of(given.table, {}, batch))


def _parity(challenger: Contender) -> Parity | None:
    batch = challenger.first_rows(challenger.limits.parity_rows)
    return parity(challenger.bundle, batch) if batch else None


def _costs(champion: Contender | None, challenger: Contender, policy: PromotionConfig) -> Costs:
    """Measure the bundle's size in MB and, only if the policy limits it, the time per row.

    Times vary between measurements, so they are recorded only if needed.
    """
    size = sum(map(len, challenger.bundle.files.values())) / 1e6
    if not (policy.row_microseconds or policy.slowdown):
        return Costs(size)
    calls = [contender.timed_calls() for contender in (challenger, champion) if contender]
    if not all(calls):
        return Costs(size)
    seconds = cpu_seconds([partial(_call_all, each) for each in calls])
    per_row = [1e6 * time / len(each) for time, each in zip(seconds, calls, strict=True)]
    return Costs(size, *per_row)


def _call_all(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()
