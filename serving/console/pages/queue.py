"""Show the queue of cases, and the snoozes that keep cases out of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from starlette.responses import Response

from serving.console.queries import KINDS, ORDERS, PAGE_CASES, STATUSES, Query
from serving.console.visits import Gate, Visit
from serving.paths import CONSOLE, Template
from serving.problems import NOT_FOUND, ProblemError

if TYPE_CHECKING:
    from anomaly_vae.review import CaseStore
    from anomaly_vae.review.cases import Order


class QueuePages:
    """The queue and the snoozes."""

    def __init__(self, store: CaseStore) -> None:
        self._store = store

    def routes(self, gate: Gate) -> list[Template]:
        """Create the routes of the pages."""
        return [
            gate.route("", self.show),
            gate.route("/snoozes", self.snoozes),
            gate.route("/snoozes/{number:int}/end", self.end_snooze, "POST"),
        ]

    def show(self, visit: Visit) -> Response:
        """Show a page of the queue."""
        query = Query.of(visit.request.query_params)
        chosen, order = query.filter(), cast("Order", query.order)
        count = self._store.count(chosen)
        return visit.page(
            "queue.html",
            query=query,
            records=self._store.queue(chosen, order, query.offset, PAGE_CASES),
            count=count,
            pages=max(math.ceil(count / PAGE_CASES), 1),
            models=sorted({name for name, _ in self._store.models()}),
            snoozes=len(self._store.active_snoozes()),
            orders=ORDERS,
            statuses=STATUSES,
            kinds=KINDS,
        )

    def snoozes(self, visit: Visit) -> Response:
        """Show the snoozes: those that are active, and all that were ever made."""
        return visit.page(
            "snoozes.html",
            active=self._store.active_snoozes(),
            others=self._store.snoozes()[:PAGE_CASES],
        )

    def end_snooze(self, visit: Visit) -> Response:
        """End a snooze now."""
        number = visit.request.path_params["number"]
        if not self._store.end_snooze(number, visit.who, visit.form["reason"]):
            raise ProblemError(NOT_FOUND, "this snooze has ended already")
        return visit.redirect(f"{CONSOLE}/snoozes")
