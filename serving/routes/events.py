"""Record events that are not scored, and labels of events, so that windows know them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from anomaly_vae.client.types import BadRecord, EventCounts, LabelCounts, RecordedEvents, ResultId
from anomaly_vae.data.converters import level_name
from anomaly_vae.data.times import parse_time
from anomaly_vae.data.vocabulary import ANOMALY
from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features import WindowInputs
from anomaly_vae.features.definition import MICROSECONDS
from anomaly_vae.features.inputs import Event, entity_text
from anomaly_vae.features.store.store import Label, now_in_microseconds
from serving.models.store import ServedModel
from serving.observability import logs
from serving.openapi import DocumentedRoute, json_route
from serving.paths import HEADERS
from serving.problems import (
    INVALID_RECORD,
    INVALID_REQUEST,
    MALFORMED,
    TOO_LARGE,
    TOO_MANY_RECORDS,
    UNKNOWN_MODEL,
    UNSUPPORTED,
    WINDOWS_DOWN,
    ProblemError,
)
from serving.scoring import requests, responses
from serving.scoring.handlers import Resources
from serving.scoring.windows import WindowStores

if TYPE_CHECKING:
    from anomaly_vae.data.schema import TabularSchema

PATH = "/events"
ERRORS = (
    MALFORMED, UNKNOWN_MODEL, TOO_LARGE, TOO_MANY_RECORDS, UNSUPPORTED, INVALID_REQUEST,
    INVALID_RECORD, WINDOWS_DOWN,
)  # fmt: skip
"""Errors of the route, besides those of every route."""
SUMMARY = "Record events that are not scored, and labels that are known later."
WITHOUT_ID = "without id, so that a repeated request would count them twice"
EXAMPLE = {"labels": [{"id": 7, "label": "anomaly", "at": "2024-01-31T09:05:00"}]}


class EventLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The label of the event with an id: anomaly, normal, unsure or a value of the label column.

    ``at`` is the time from which it is known; null: now.
    """

    id: ResultId
    label: str | int | float | bool
    at: str | int | float | None = None


class EventsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records of events, as they are sent to be scored, and labels.

    ``model`` names the model whose windows they are for; null: all models with windows. A single
    label may be sent as ``id``, ``label`` and ``at``.
    """

    events: list[dict[str, Any]] = []
    labels: list[EventLabel] = []
    model: str | None = None
    id: ResultId = None
    label: str | int | float | bool | None = None
    at: str | int | float | None = None


_decoder = msgspec.json.Decoder(EventsRequest)


def routes(resources: Resources, windows: WindowStores) -> list[DocumentedRoute]:
    """Create `POST /events`."""

    async def events(request: Request) -> Response:
        return await _answer(request, resources, windows)

    return [
        json_route(
            "POST", PATH, events, SUMMARY, RecordedEvents, *ERRORS,
            body=EventsRequest, example=EXAMPLE,
        )
    ]  # fmt: skip


async def _answer(request: Request, resources: Resources, windows: WindowStores) -> Response:
    headers, admission = request.scope[HEADERS], resources.admission
    requests.check_media_type(headers)
    size = requests.declared_size(headers, resources.settings.max_body_bytes)
    admission.admit(size)
    try:
        body = await resources.read_body(request.receive)
        task = partial(_record, max_records=resources.settings.max_records, windows=windows)
        answer = await resources.run_by_size(request.receive, task, body)
    finally:
        admission.release(size)
    request.scope[logs.LOG_FIELDS]["records"] = sum(msgspec.structs.astuple(answer.events))
    return responses.response(answer)


def _record(body: bytes, max_records: int, windows: WindowStores) -> RecordedEvents:
    request = _decode(body, max_records)
    models = windows.layouts(request.model)
    if not models:
        which = f"no model '{request.model[:100]}'" if request.model else "no model"
        raise ProblemError(UNKNOWN_MODEL, f"{which} with entity windows is loaded; GET /models")
    several = len(models) > 1
    _check_words(models, request.labels)
    tasks = [_Task.of(model, request, several) for model in models]
    try:
        events = [_add(windows, task) for task in tasks]
        known = [windows.label(task.inputs, task.labels) for task in tasks if task.labels]
    except WindowStoreError:
        raise windows.refusal() from None
    labels = [one for part in known for one in part]
    without_id = sum(event.id is None for task in tasks for event in task.events)
    return RecordedEvents(
        EventCounts(
            *(sum(counts) for counts in zip(*map(msgspec.structs.astuple, events), strict=True))
        ),
        LabelCounts(sum(labels), len(labels) - sum(labels)),
        (f"{without_id} events {WITHOUT_ID}",) if without_id else (),
    )


class _Task(NamedTuple):
    """The events and labels of a request for the windows of one model."""

    inputs: WindowInputs
    events: list[Event]
    labels: list[Label]

    @classmethod
    def of(cls, model: ServedModel, request: EventsRequest, several: bool) -> _Task:
        assert model.windows
        read = (_label(model.windows, *one) for one in enumerate(request.labels))
        labels = [label for label in read if label]
        return cls(model.windows, _events(model, request.events, several), labels)


def _decode(body: bytes, max_records: int) -> EventsRequest:
    request = requests.parse(_decoder, body)
    if request.id is not None or request.label is not None:
        if request.id is None or request.label is None:
            raise ProblemError(INVALID_REQUEST, "a label needs 'id' and 'label'")
        single = EventLabel(request.id, request.label, request.at)
        request = msgspec.structs.replace(request, labels=[*request.labels, single])
    if not request.events and not request.labels:
        raise ProblemError(INVALID_REQUEST, "send at least one record in 'events' or 'labels'")
    requests.check_count(len(request.events) + len(request.labels), max_records)
    return request


def _events(model: ServedModel, records: Sequence[dict[str, Any]], several: bool) -> list[Event]:
    """Read events; with several models, those that have no column of this one are left out."""
    assert model.windows
    schema = model.windows.event_schema(cast("TabularSchema", model.schema))
    batch = requests.read_batch(partial(schema.from_records, records))
    problems = [one for one in batch.problems if one.column is not None or not several]
    if problems:
        raise requests.unfit_records(requests.faults(problems))
    if unknown := list(model.windows.unknown_labels(batch)):
        raise requests.unfit_records(requests.faults(unknown))
    return model.windows.events(batch.take(batch.usable))


def _check_words(models: Sequence[ServedModel], labels: Sequence[EventLabel]) -> None:
    """Refuse labels that have no meaning for any of the models."""
    known = [model.windows.vocabulary for model in models if model.windows]
    bad = [
        BadRecord(number, "label", known[0].explain_unknown(name))
        for number, name in enumerate(_name(label) for label in labels)
        if all(vocabulary.code(name) is None for vocabulary in known)
    ]
    if bad:
        raise requests.unfit_records(bad)


def _name(label: EventLabel) -> str:
    return level_name(label.label) or ""


def _label(inputs: WindowInputs, number: int, label: EventLabel) -> Label | None:
    """Read a label; None if it has no meaning for this model."""
    text = entity_text(label.id)
    if text is None:
        raise _unfit(number, "id", "expected the id of an event")
    verdict = inputs.vocabulary.code(_name(label))
    if verdict is None:
        return None
    is_anomaly = verdict == ANOMALY
    if label.at is None:
        return Label(text, is_anomaly, now_in_microseconds())
    try:
        at = round(parse_time(label.at, inputs.time_format) * MICROSECONDS)
    except (ValueError, OverflowError) as error:
        raise _unfit(number, "at", str(error)) from None
    if abs(at) >= 2**62:
        raise _unfit(number, "at", "the time is out of range")
    return Label(text, is_anomaly, at)


def _unfit(number: int, field: str, reason: str) -> ProblemError:
    return requests.unfit_records([BadRecord(number, field, reason)])


def _add(windows: WindowStores, task: _Task) -> EventCounts:
    outcomes = windows.add(task.inputs, task.events).outcomes if task.events else []
    recorded, duplicate, late = map(outcomes.count, ("recorded", "duplicate", "late"))
    incomplete = len(task.events) - len(outcomes)
    return EventCounts(recorded, duplicate, late, incomplete)
