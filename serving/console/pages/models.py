"""Show the models: versions, thresholds, guarantees, shadows and promotions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

from anomaly_vae.monitoring.exchangeability import Report
from serving.console import charts
from serving.console.rendering import count, percent
from serving.console.visits import Gate, Visit
from serving.models.store import ServedModel, Store
from serving.observability.metrics import Metrics
from serving.paths import Template
from serving.registry.follower import Follower
from serving.registry.promotions import History, Promotions, registered_name
from serving.routes.models import describe
from serving.scoring.schemas import ModelInfo

if TYPE_CHECKING:
    from anomaly_vae.review import CaseStore, GuaranteeLog, GuaranteeState, PValueCounts

SHOWN_DAYS = 60
"""Number of days of the chart of flagged shares."""
STATUS_TEXTS = {
    "holding": "Nothing speaks against the guarantee.",
    "rows": "Too few rows have been scored to tell.",
    "calibration": "The calibration rows cover too few days, or are too few, to tell.",
    "doubtful": "The rows differ from the calibration rows.",
    "broken": "More rows are flagged than the guarantee and the known anomalies explain.",
}
"""What each state of a guarantee means; `unknown` by what is missing to tell."""


@dataclass(frozen=True)
class FlaggedDays:
    """The share of rows with p ≤ alpha of each day."""

    chart: charts.DayChart
    first: dt.date
    last: dt.date


@dataclass(frozen=True)
class ShownModel:
    """A served model as the page shows it."""

    info: ModelInfo
    model: ServedModel
    report: Report
    """The present test of its guarantee."""
    history: History | None
    """Decisions about its champions; None for a model from a folder."""
    days: FlaggedDays | None
    """Flagged share of the last days; None if no rows were counted."""
    states: Sequence[GuaranteeState]
    """States of its guarantee over time, the newest first."""

    @property
    def normal_rows(self) -> int:
        """Number of calibration scores."""
        return len(self.model.detector.calibration.scores)


class ModelsPage:
    """The page of models."""

    def __init__(
        self,
        store: Store,
        follower: Follower,
        metrics: Metrics,
        cases: CaseStore,
        guarantees: GuaranteeLog,
        seconds: float,
    ) -> None:
        self._store, self._follower, self._metrics = store, follower, metrics
        self._cases, self._guarantees = cases, guarantees
        self._promotions = Promotions(seconds)

    def routes(self, gate: Gate) -> list[Template]:
        """Create the route of the page."""
        return [gate.route("/models", self.show)]

    def show(self, visit: Visit) -> Response:
        """Show all models."""
        return visit.page("models.html", models=self._shown(), texts=STATUS_TEXTS)

    def _shown(self) -> Sequence[ShownModel]:
        followed, current = self._follower.followed, self._store.current
        infos = describe(self._store, followed, self._metrics).models
        return [
            self._of(info, current[info.name], registered_name(info.name, followed))
            for info in infos
            if info.name in current
        ]

    def _of(self, info: ModelInfo, model: ServedModel, registered: str | None) -> ShownModel:
        report = self._metrics.guarantees.tracker(model).report()
        history = self._promotions.of(registered) if registered else None
        return ShownModel(
            info, model, report, history, self._days(info), self._guarantees.states(info.name)
        )

    def _days(self, info: ModelInfo) -> FlaggedDays | None:
        first = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=SHOWN_DAYS - 1)
        counts = self._cases.p_values(info.name, info.version or "", first)
        if not counts:
            return None
        days = [_day(one, info.alpha) for one in counts]
        chart = charts.day_chart(days, info.alpha, shares=True)
        return FlaggedDays(chart, counts[0].day, counts[-1].day)


def _day(counts: PValueCounts, alpha: float) -> charts.Day:
    flags, rows = counts.at_most(alpha), counts.rows
    title = f"{counts.day}: {percent(flags / rows)} of {count(rows)} rows flagged"
    return charts.Day(flags, rows, title)
