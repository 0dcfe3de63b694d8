"""Show what another alpha would have come to, from the stored p-values."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from starlette.responses import Response

from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown
from serving.console import charts
from serving.console.rendering import count
from serving.console.visits import Gate, Visit
from serving.models.store import Store
from serving.paths import Template

if TYPE_CHECKING:
    from anomaly_vae.review import CaseStore, PValueCounts, Share

DAYS = {7: "7 days", 28: "28 days", 90: "90 days", 365: "a year"}
"""Lengths of the time that is looked at, in days."""
USUAL_DAYS = 28
ALPHAS = (
    *(float(f"{digit}e{power}") for power in range(-5, -1) for digit in range(1, 10)),
    *(0.1, 0.15, 0.2),
)
"""Steps of the slider; each is the end of a bin of p-values, so that counts are exact."""
EVERY_VERSION = "all"
DEFAULT_ALPHA = 0.01
"""Alpha that is shown of a model that is not loaded."""


@dataclass(frozen=True)
class Figures:
    """Consequences that an alpha would have had."""

    alpha: float
    rows: int
    """Number of scored rows."""
    alerts: int
    days: int
    """Number of days with rows."""
    precision: Share
    """Share of anomalies among the reviewed flags with p ≤ alpha."""
    chart: charts.DayChart | None
    first_day: dt.date | None
    last_day: dt.date | None
    is_above: bool
    """Whether alpha is above that of the model, so that some of its flags were never queued."""

    @property
    def alerts_per_day(self) -> float | None:
        """Mean number of alerts a day; None without rows."""
        return self.alerts / self.days if self.days else None

    @property
    def share(self) -> float | None:
        """Share of rows with an alert; None without rows."""
        return self.alerts / self.rows if self.rows else None


class WhatIfPage:
    """The page with the slider."""

    def __init__(self, store: CaseStore, models: Store) -> None:
        self._store, self._models = store, models

    def routes(self, gate: Gate) -> list[Template]:
        """Create the route of the page."""
        return [gate.route("/what-if", self.show)]

    def show(self, visit: Visit) -> Response:
        """Show the page, or only its figures."""
        given = visit.request.query_params
        names = sorted({name for name, _ in self._store.models()} | {*self._models.current})
        name = _chosen("model", given.get("model"), names)
        versions = sorted({v for model, v in self._store.models() if model == name}, key=_ordinal)
        version = given.get("version", EVERY_VERSION)
        if version not in (EVERY_VERSION, *versions):
            raise DataError(f"version: there is no {shown(version)}")
        own = self._own_alpha(name)
        step = _step(given, own)
        days = int(_chosen("days", given.get("days"), list(map(str, DAYS)), str(USUAL_DAYS)))
        figures = self._figures(name, _named(version), ALPHAS[step], own, days) if name else None
        template = "what_if_figures.html" if visit.is_fragment else "what_if.html"
        return visit.page(
            template, names=names, name=name, versions=versions, version=version, own=own,
            step=step, steps=len(ALPHAS) - 1, alphas=ALPHAS, days=days, spans=DAYS,
            figures=figures,
        )  # fmt: skip

    def _own_alpha(self, name: str) -> float:
        model = self._models.current.get(name)
        return model.detector.calibration.alpha if model else DEFAULT_ALPHA

    def _figures(
        self, name: str, version: str | None, alpha: float, own: float, days: int
    ) -> Figures:
        first = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days - 1)
        days_found = _days(self._store.p_values(name, version, first), alpha)
        reviewed = self._store.reviewed(name, version)  # their days are those of the events
        labels = [is_anomaly for p_value, is_anomaly in reviewed if p_value <= alpha]
        return Figures(
            alpha=alpha,
            rows=sum(day.rows for day in days_found.values()),
            alerts=sum(day.flags for day in days_found.values()),
            days=len(days_found),
            precision=_share(labels),
            chart=charts.day_chart([*days_found.values()], alpha) if days_found else None,
            first_day=min(days_found, default=None),
            last_day=max(days_found, default=None),
            is_above=alpha > own,
        )


def _share(labels: Sequence[bool]) -> Share:
    from anomaly_vae.review import Share

    return Share(sum(labels), len(labels))


def _days(counts: Sequence[PValueCounts], alpha: float) -> dict[dt.date, charts.Day]:
    """Return the alerts of each day, over all versions, the oldest day first."""
    days: dict[dt.date, charts.Day] = {}
    for day, found in groupby(counts, lambda one: one.day):
        some = list(found)
        flags, rows = sum(one.at_most(alpha) for one in some), sum(one.rows for one in some)
        title = f"{day}: {count(flags)} alerts of {count(rows)} rows"
        days[day] = charts.Day(flags, rows, title)
    return days


def _chosen(name: str, given: str | None, allowed: Sequence[str], usual: str | None = None) -> str:
    """Return a choice; the usual or the first one if none is given.

    Raises:
        DataError: there is no such choice.
    """
    if not given:
        return usual or (allowed[0] if allowed else "")
    if given not in allowed:
        raise DataError(f"{name}: there is no {shown(given)}")
    return given


def _named(version: str) -> str | None:
    return None if version == EVERY_VERSION else version


def _ordinal(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)


def _step(given: Mapping[str, str], own: float) -> int:
    """Return the step of the slider: as given, or that of the model's own alpha."""
    text = given.get("step", "")
    usual = min(bisect_left(ALPHAS, own), len(ALPHAS) - 1)
    if not text:
        return usual
    if not (text.isascii() and text.isdigit() and int(text[:4]) < len(ALPHAS)):
        raise DataError(f"step: expected a number below {len(ALPHAS)}, got {shown(text)}")
    return int(text)
