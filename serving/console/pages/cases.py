"""Show a case, and take the verdict, the note and the snooze of its reviewer.

Labels are only ever added. A verdict that two reviewers give at once is kept twice: the newest
counts, and both see it. An undone verdict is followed by the one before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.responses import Response

from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import DataError
from serving.console import charts
from serving.console.pages.pictures import Pictures
from serving.console.queries import Query
from serving.console.visits import Gate, Visit
from serving.models.store import Store
from serving.paths import CONSOLE, Template
from serving.problems import INVALID_LABEL, INVALID_REQUEST, NOT_FOUND, ProblemError
from serving.review.label_writer import LabelWriter

if TYPE_CHECKING:
    from anomaly_vae.review import CaseRecord, CaseStore, Label
    from anomaly_vae.review.cases import Case, Order

HISTORY_CASES = 20
"""Number of cases of the same entity that are shown."""
UNDONE = "undone"
"""Note of the label that takes back a first verdict."""
MAX_SNOOZE_DAYS = 366
DAY = 86_400.0
"""Length of a day in seconds."""


@dataclass(frozen=True)
class Change:
    """The verdict of another reviewer that arrived while a case was open in the browser."""

    who: str
    label: str
    at: float


class CasePages:
    """The page of a case, and what its forms send."""

    def __init__(
        self, store: CaseStore, writer: LabelWriter, models: Store, pictures: Pictures
    ) -> None:
        self._store, self._writer, self._models = store, writer, models
        self._pictures = pictures

    def routes(self, gate: Gate) -> list[Template]:
        """Create the routes of the pages."""
        case = "/cases/{number:int}"
        return [
            gate.route(case, self.show),
            gate.route(f"{case}/picture", self.picture),
            gate.route(f"{case}/verdict", self.decide, "POST"),
            gate.route(f"{case}/note", self.note, "POST"),
            gate.route(f"{case}/undo", self.undo, "POST"),
            gate.route(f"{case}/snooze", self.snooze, "POST"),
        ]

    # ------------------------------------------------------------ reading

    def show(self, visit: Visit) -> Response:
        """Show a case."""
        query = Query.of(visit.request.query_params)
        record = self._record(visit.request.path_params["number"])
        before, after = self._store.neighbours(
            record.number, query.filter(), cast("Order", query.order)
        )
        return visit.page(
            "case.html",
            record=record,
            case=record.case,
            query=query,
            before=before,
            after=after,
            labels=self._store.label_history(record.case.model, record.case.row_id)[::-1],
            others=self._others(record),
            chart=self._chart(record.case),
            has_picture=self._pictures.is_kept(record.case),
            alt=self._pictures.alt(record.case),
            largest=max((one.amount for one in record.case.reasons), default=0.0),
            done=self._done(visit),
            change=self._change(visit, record, visit.request.query_params.get("seen", "")),
            tomorrow=time.time() + DAY,
            next_week=time.time() + 7 * DAY,
        )

    def picture(self, visit: Visit) -> Response:
        """Return the picture of a scan: scan, expectation and heatmap."""
        content = self._pictures.read(self._record(visit.request.path_params["number"]).case)
        return Response(content, media_type="image/png")

    def _record(self, number: int) -> CaseRecord:
        record = self._store.case(number) if number < 1 << 62 else None
        if record is None:
            raise ProblemError(NOT_FOUND, f"there is no case {number}; it may be too old")
        return record

    def _others(self, record: CaseRecord) -> Sequence[CaseRecord]:
        case = record.case
        if case.entity_column is None or case.entity is None:
            return ()
        return self._store.history_of(case.model, case.entity_column, case.entity, HISTORY_CASES)

    def _chart(self, case: Case) -> charts.ScoreChart | None:
        """Return the chart of a score; None unless the version that scored it is loaded."""
        model = self._models.current.get(case.model)
        if model is None or (model.version or "") != case.version:
            return None
        scores = model.detector.calibration.scores
        return charts.score_chart(scores, case.threshold, case.score) if len(scores) else None

    def _done(self, visit: Visit) -> CaseRecord | None:
        """Return the case that the reviewer has just decided, if the address names one."""
        text = visit.request.query_params.get("done", "")
        is_number = text.isascii() and text.isdigit() and len(text) < 19
        return self._store.case(int(text)) if is_number else None

    # ------------------------------------------------------------ writing

    def decide(self, visit: Visit) -> Response:
        """Add a verdict; show the next case, or the same one if it changed in the meantime."""
        record, query = self._sent(visit)
        self._add(visit, record, visit.form["verdict"], visit.form["note"])
        change = self._change(visit, record, visit.form["seen"])
        if visit.is_fragment:
            return self._row(visit, record.number, query, change)
        if change:
            return self._back(visit, record, query, seen=visit.form["seen"])
        return self._next(visit, record, query)

    def note(self, visit: Visit) -> Response:
        """Add a note to the reviewer's verdict; without one, the reviewer is unsure."""
        record, query = self._sent(visit)
        if not visit.form["note"].strip():
            raise ProblemError(INVALID_REQUEST, "the note is empty; write one first")
        own = self._own(visit, record)
        self._add(visit, record, own[-1].label if own else "unsure", visit.form["note"])
        return self._back(visit, record, query)

    def undo(self, visit: Visit) -> Response:
        """Take back the reviewer's last verdict: give the one before again, or be unsure."""
        record, query = self._sent(visit)
        own = self._own(visit, record)
        if not own or own[-1].note == UNDONE:
            raise ProblemError(INVALID_REQUEST, "you have no verdict on this case to take back")
        label, note = (own[-2].label, own[-2].note) if len(own) > 1 else ("unsure", UNDONE)
        self._add(visit, record, label, note)
        if visit.is_fragment:
            return self._row(visit, record.number, query, None)
        return self._back(visit, record, query)

    def snooze(self, visit: Visit) -> Response:
        """Keep the flags of the entity of a case out of the queue for some time."""
        from anomaly_vae.review import Snooze

        record, query = self._sent(visit)
        case = record.case
        if case.entity_column is None or case.entity is None:
            raise ProblemError(INVALID_REQUEST, "the case names no entity, so none can be snoozed")
        until = _end_of_day(visit.form["until"])
        snooze = Snooze.of(case.entity_column, case.entity, until, visit.form["reason"], visit.who)
        self._store.snooze(snooze)
        return self._next(visit, record, query)

    def _sent(self, visit: Visit) -> tuple[CaseRecord, Query]:
        record = self._record(visit.request.path_params["number"])
        return record, Query.parse(visit.form["query"])

    def _own(self, visit: Visit, record: CaseRecord) -> list[Label]:
        """Return the labels of the reviewer in the order of their arrival."""
        labels = self._store.label_history(record.case.model, record.case.row_id)
        return [label for label in labels if label.who == visit.who]

    def _add(self, visit: Visit, record: CaseRecord, verdict: str, note: str) -> None:
        from anomaly_vae.review import Label

        case, now = record.case, time.time()
        try:
            label = Label.of(case.model, case.row_id, verdict, visit.who, now, note.strip())
        except DataError as error:
            raise ProblemError(INVALID_LABEL, f"{error.column}: {error}") from None
        self._writer.add([label])

    def _change(self, visit: Visit, record: CaseRecord, seen: str) -> Change | None:
        """Return the last verdict of others that the reviewer had not seen, if it is another one.

        Args:
            visit: the request of the reviewer.
            record: the case.
            seen: time of the label that counted when the reviewer opened the case, in seconds
                since 1970; 0 for none, empty if it is not known.
        """
        if not (since := _number(seen)):
            return None
        labels = self._store.label_history(record.case.model, record.case.row_id)
        own = [one.label for one in labels if one.who == visit.who]
        unseen = [one for one in labels if one.who != visit.who and (one.at or 0) > since[0]]
        if not unseen or not own or unseen[-1].label == own[-1]:
            return None
        return Change(unseen[-1].who, unseen[-1].label, unseen[-1].at or 0.0)

    def _row(self, visit: Visit, number: int, query: Query, change: Change | None) -> Response:
        record = self._record(number)
        return visit.page("queue_row.html", record=record, query=query, change=change)

    def _back(self, visit: Visit, record: CaseRecord, query: Query, **more: object) -> Response:
        """Show the same case again."""
        return visit.redirect(f"{CONSOLE}/cases/{record.number}", **query.parameters, **more)

    def _next(self, visit: Visit, record: CaseRecord, query: Query) -> Response:
        """Show the case after one in the queue, or the queue if it was the last."""
        chosen, order = query.filter(), cast("Order", query.order)
        before, after = self._store.neighbours(record.number, chosen, order)
        following = after or before
        path = f"{CONSOLE}/cases/{following}" if following else CONSOLE
        return visit.redirect(path, **query.parameters, done=record.number)


def _number(text: str) -> tuple[float] | None:
    """Return the number in a text, in a tuple; None if there is none."""
    try:
        return (float(text),)
    except ValueError:
        return None


def _end_of_day(text: str) -> float:
    try:
        end = parse_time(text) + DAY
    except ValueError:
        raise ProblemError(INVALID_REQUEST, "until: choose a day") from None
    if end > time.time() + MAX_SNOOZE_DAYS * DAY:
        raise ProblemError(INVALID_REQUEST, "until: choose a day within a year")
    return end
