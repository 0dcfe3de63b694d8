"""Challenger and champion on the same rows → what the rules of promotion ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import PromotionConfig
from anomaly_vae.data.schema import RawBatch
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
from anomaly_vae.lifecycle.parity import MOST_ROWS, parity
from anomaly_vae.lifecycle.promotion import Comparison, Costs, Lost, Parity
from pipelines.datasets.files import find_files, read_table
from pipelines.reports.labelled import Judged, Labelled, judge

TIMED_ROWS = {"tabular": 64, "image": 8}
"""That are scored alone, one after the other, in each round."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A model and its decisions on the test rows."""

    bundle: Bundle
    judged: Judged

    @classmethod
    def of(cls, bundle: Bundle, truth: Labelled) -> Contender:
        """Score the test rows."""
        return cls(bundle, judge(bundle.detector, truth))

    def trials(self) -> list[Callable[[], object]]:
        """Some rows, each to be scored alone."""
        batch = self.some(TIMED_ROWS[self.bundle.manifest["kind"]])
        if not batch:
            return []
        alone = (batch.take(row) for row in np.arange(len(batch))[:, None])
        return [partial(self.bundle.scorer.score, row) for row in alone]

    def some(self, most: int) -> RawBatch | None:
        """The first test rows that it can score, as it reads them."""
        places = np.flatnonzero(self.judged.scored)[:most]
        return self.judged.batch.take(places) if self.judged.batch and len(places) else None


def evidence(
    old: Contender | None,
    new: Contender,
    policy: PromotionConfig,
    test: str,
    otherwise: str | None,
    traffic: Sequence[str] = (),
) -> Comparison:
    """All that is found beside the evaluations.

    Args:
        old: the champion; absent: there is none.
        new: the challenger, on the same rows.
        policy: says what is worth measuring.
        test: how verdicts call these rows.
        otherwise: how the challenger reads images otherwise than they were frozen.
        traffic: files of recent rows to compare flags on; absent: the test rows.
    """
    return Comparison(
        test=test,
        lost=_lost(old, new),
        metric=_metric(old, new, policy) if old else None,
        slices=_slices(old, new, policy) if old else None,
        agreement=_agreement(old, new, policy, test, traffic) if old else None,
        otherwise=otherwise,
        parity=_parity(new),
        costs=_costs(old, new, policy),
    )


def _lost(old: Contender | None, new: Contender) -> Lost | None:
    """What only the challenger cannot score."""
    lost = ~new.judged.scored & (old.judged.scored if old else True)
    return Lost(int(np.sum(lost)), new.judged.problem) if lost.any() else None


def _metric(old: Contender, new: Contender, policy: PromotionConfig) -> Change | None:
    known, truth = old.judged.known & new.judged.known, new.judged.truth
    return metric_change(
        old.judged.score[known],
        new.judged.score[known],
        truth.anomaly[known],
        policy.metric,
        policy.confidence,
        truth.units(known),
    )


def _slices(old: Contender, new: Contender, policy: PromotionConfig) -> list[SliceChange] | None:
    """Those of the columns that either reads."""
    known, truth = old.judged.known & new.judged.known, new.judged.truth
    columns = old.judged.levels | new.judged.levels
    if policy.slice_recall is None or not columns:
        return None
    return slice_changes(
        {name: levels.take(known) for name, levels in columns.items()},
        old.judged.decisions(known).is_anomaly,
        new.judged.decisions(known).is_anomaly,
        truth.anomaly[known],
        new.bundle.detector.calibration.alpha,
        policy.confidence,
        truth.units(known),
    )


def _agreement(
    old: Contender, new: Contender, policy: PromotionConfig, test: str, traffic: Sequence[str]
) -> Agreement | None:
    """On the traffic, or else on the test rows; a table's rows need no labels for this."""
    pair, of = (old.judged, new.judged), test
    if traffic:
        if new.bundle.manifest["kind"] == "image":
            raise ConfigError("--traffic is for models of tables; leave it out")
        truth, of = Labelled.of(read_table(find_files(traffic)), {}), "the traffic"
        pair = (judge(old.bundle.detector, truth), judge(new.bundle.detector, truth))
    shared = pair[0].scored & pair[1].scored
    champion, challenger = (judged.decisions(shared).is_anomaly for judged in pair)
    return agreement(champion, challenger, of, policy.confidence)


def _parity(new: Contender) -> Parity | None:
    batch = new.some(MOST_ROWS[new.bundle.manifest["kind"]])
    return parity(new.bundle, batch) if batch else None


def _costs(old: Contender | None, new: Contender, policy: PromotionConfig) -> Costs:
    """Times are taken only where they are judged: they are other ones each time."""
    size = sum(map(len, new.bundle.files.values())) / 1e6
    if not (policy.row_microseconds or policy.slowdown):
        return Costs(size)
    works = [contender.trials() for contender in (new, old) if contender]
    if not all(works):
        return Costs(size)
    each = cpu_seconds([partial(_run, work) for work in works])
    taken = [1e6 * time / len(work) for time, work in zip(each, works, strict=True)]
    return Costs(size, *taken)


def _run(works: list[Callable[[], object]]) -> None:
    for work in works:
        work()
