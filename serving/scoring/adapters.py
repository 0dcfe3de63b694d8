"""Adapt requests of other protocols to the scoring behind `POST /score`.

A protocol only decodes bodies into a `ProtocolRequest` and encodes answers. Admission, limits,
threads, metrics and errors are the same for all protocols.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from anomaly_vae.messages import explain_foreign
from anomaly_vae.scoring.detector import Detections
from serving.models.store import Content, ServedModel, Store
from serving.paths import HEADERS
from serving.problems import INVALID_REQUEST, NOT_READY, ProblemError
from serving.scoring import requests
from serving.scoring.handlers import RequestHandler
from serving.scoring.observers import Records
from serving.settings import Settings


@dataclass(frozen=True, slots=True)
class PendingRows:
    """The number of rows to score, and the function with which a model reads them, if it has to.

    Counting the rows is cheap. Reading them is not, and may run on a worker thread.
    """

    count: int
    read: Callable[[ServedModel], Content]
    records: Records
    """Function that reads the rows at these positions for cases."""


@dataclass(frozen=True, slots=True)
class ProtocolRequest:
    """The rows to score, and the function that encodes the answer.

    ``answer`` takes the decisions and the names of ignored columns.
    """

    rows: PendingRows
    answer: Callable[[Detections, Sequence[str]], Response]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The model, headers and record limit of a request, which decoding its body needs."""

    model: ServedModel
    headers: requests.Headers
    max_records: int


Check = Callable[[ServedModel, Scope], None]
Decode = Callable[[RequestContext, bytes], ProtocolRequest]
DecodeBody = Callable[[bytes], ProtocolRequest]


class Scorer(Protocol):
    """The part of `ScoringEndpoint` that a scoring route uses."""

    settings: Settings

    def find(self, name: str | None, route: str) -> RequestHandler:
        """Find a model by name, or the only model if ``name`` is None; errors name ``route``."""

    async def handle_protocol(
        self, handler: RequestHandler, scope: Scope, receive: Receive, decode: DecodeBody
    ) -> Response:
        """Read the body, decode it, score its rows and encode the answer."""


class ProtocolEndpoint:
    """A scoring route of another protocol, as an ASGI application.

    Args:
        scorer: the endpoint that scores the requests.
        check: checks the model and the head of a request, before its body is read.
        decode: decodes a body.
        route: template of the route that names a model, for error messages.
    """

    def __init__(self, scorer: Scorer, check: Check, decode: Decode, route: str) -> None:
        self.scorer, self.check, self.decode, self.route = scorer, check, decode, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        handler = self.scorer.find(scope["path_params"].get("name"), self.route)
        headers = scope[HEADERS]
        self.check(handler.model, scope)
        requests.check_encoding(headers)
        context = RequestContext(handler.model, headers, self.scorer.settings.max_records)
        decode = partial(self.decode, context)
        response = await self.scorer.handle_protocol(handler, scope, receive, decode)
        await response(scope, receive, send)


def check_ready(store: Store, settings: Settings) -> None:
    """Refuse requests while the process cannot score."""
    if reason := store.unready_reason:
        raise ProblemError(NOT_READY, reason, headers=settings.retry_headers)


def read_again(decode: DecodeBody, bodies: Sequence[bytes], model: ServedModel) -> Content:
    """Decode a single body again and read its rows for another model."""
    (body,) = bodies
    return decode(body).rows.read(model)


def of_records(context: RequestContext, records: Sequence[Mapping[str, Any]]) -> PendingRows:
    """Create pending rows from the records of a table."""

    def read(model: ServedModel) -> Content:
        return requests.read_records(model.schema, records)

    return pending_rows(context, len(records), read, lambda rows: [records[row] for row in rows])


def of_columns(context: RequestContext, columns: Mapping[str, Sequence[Any]]) -> PendingRows:
    """Create pending rows from columns of equal length."""
    names = context.model.schema.names
    values = next((columns[name] for name in names if name in columns), None)
    if values is None:
        raise unknown_columns(context, list(columns))
    records = partial(_records, columns)
    if context.model.reads_files:
        records = partial(_records, {"content": columns[names[0]]})
    return pending_rows(context, len(values), lambda model: model.read_columns(columns), records)


def _records(columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> list[dict[str, Any]]:
    return [{name: cells[row] for name, cells in columns.items()} for row in rows]


def pending_rows(
    context: RequestContext,
    count: int,
    read: Callable[[ServedModel], Content],
    records: Records,
) -> PendingRows:
    """Create pending rows; refuse a request without rows or with too many."""
    if not count:
        raise ProblemError(INVALID_REQUEST, "there are no rows; send at least one")
    requests.check_count(count, context.max_records)
    return PendingRows(count, read, records)


def unknown_columns(context: RequestContext, names: Sequence[str]) -> ProblemError:
    """Return the error for a request that has none of the model's columns."""
    return ProblemError(INVALID_REQUEST, explain_foreign(names, context.model.schema.names))


def example_record(model: ServedModel) -> dict[str, Any]:
    """Return the model's example as JSON values, with the content of a file as base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in model.example.items()
    }
