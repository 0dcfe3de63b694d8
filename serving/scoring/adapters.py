"""Scoring in the words of other servers: what their routes have in common with ours.

A protocol makes a `ProtocolRequest` of a body; the rest is the same for all, and for `POST /score`:
places, limits, threads, metrics and refusals.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.messages import listed
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.modality import Schema
from serving.models.store import IMAGE, ServedModel, Store
from serving.paths import HEADERS
from serving.problems import INVALID_REQUEST, NOT_READY, BadRecord, ProblemError
from serving.scoring import requests, uploads
from serving.scoring.batcher import ModelBatcher
from serving.settings import Settings

Content = RawBatch | Sequence[bytes]
"""What is to be scored: rows, or files with one image each."""


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows are to be scored, and how a schema reads them, which takes longer."""

    count: int
    read: Callable[[Schema], Content]


@dataclass(frozen=True, slots=True)
class ProtocolRequest:
    """What is to be scored, and how the client is told the decisions."""

    rows: Rows
    answer: Callable[[Detections], Response]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The request that a body belongs to."""

    served: ServedModel
    headers: requests.Headers
    max_records: int


Check = Callable[[ServedModel, Scope], None]
Decode = Callable[[RequestContext, bytes], ProtocolRequest]
DecodeBody = Callable[[bytes], ProtocolRequest]


class Scorer(Protocol):
    """What a scoring route needs."""

    settings: Settings

    def find(self, name: str | None, route: str) -> ModelBatcher:
        """The model of this name, or without a name the only one; ``route`` is said to others."""

    async def handle_protocol(
        self, lane: ModelBatcher, scope: Scope, receive: Receive, decode: DecodeBody
    ) -> Response:
        """Body → question → decisions → answer."""


class ProtocolEndpoint:
    """A scoring route of another protocol, as an ASGI application.

    Args:
        service: who scores.
        check: refuses by the model and the head of the request alone.
        decode: makes a question of a body.
        route: where a client that names no model is sent.
    """

    def __init__(self, service: Scorer, check: Check, decode: Decode, route: str) -> None:
        self.service, self.check, self.decode, self.route = service, check, decode, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        lane, headers = (
            self.service.find(scope["path_params"].get("name"), self.route),
            scope[HEADERS],
        )
        self.check(lane.served, scope)
        requests.check_encoding(headers)
        asking = RequestContext(lane.served, headers, self.service.settings.max_records)
        decode = partial(self.decode, asking)
        response = await self.service.handle_protocol(lane, scope, receive, decode)
        await response(scope, receive, send)


def check_ready(store: Store, settings: Settings) -> None:
    """Refuse while there is nothing to serve, or no time to."""
    if not store.ready:
        why = "shutting down" if store.draining else "no model is loaded"
        raise ProblemError(NOT_READY, why, headers=settings.retry)


def read_again(decode: DecodeBody, bodies: Sequence[bytes], schema: Schema) -> Content:
    """What one body asks to score, as another schema reads it."""
    (body,) = bodies
    return decode(body).rows.read(schema)


def detect(served: ServedModel, rows: Rows, settings: Settings) -> tuple[Detections, int]:
    """The decisions on the rows, and the number of columns that were ignored."""
    content = rows.read(served.detector.scorer.schema)
    if isinstance(content, RawBatch):
        return served.detector.detect(content), len(content.ignored)
    return detect_images(served, content, settings), 0


def detect_images(served: ServedModel, content: Sequence[bytes], settings: Settings) -> Detections:
    """The decisions on the one image of each file."""
    from serving.scoring import images

    found, results = images.score(served, content, uploads.ImageOptions(), settings)
    several = dict.fromkeys(one.file for one in results if one.frame and isinstance(one.file, int))
    if several:
        reason = "holds several images; give one at a time"
        raise requests.unfit_records([BadRecord(file, IMAGE, reason) for file in several])
    return found


def of_records(asking: RequestContext, records: Sequence[Mapping[str, Any]]) -> Rows:
    """Records of a table."""
    return rows_of(asking, len(records), lambda schema: requests.read_records(schema, records))


def of_columns(asking: RequestContext, columns: Mapping[str, Sequence[Any]]) -> Rows:
    """The same as columns, which are of one length."""
    schema = asking.served.detector.scorer.schema
    cells = next((columns[name] for name in schema.names if name in columns), None)
    if cells is None:
        raise unknown_columns(asking, list(columns))
    count = len(cells)
    if asking.served.kind == IMAGE:
        return rows_of(asking, count, lambda _: _files(cells))
    return rows_of(asking, count, lambda schema: _read_columns(schema, columns, count))


def _read_columns(schema: Schema, columns: Mapping[str, Sequence[Any]], count: int) -> RawBatch:
    assert isinstance(schema, TabularSchema), "columns are of tables"
    return requests.fitting(partial(schema.from_columns, columns, count))


def rows_of(asking: RequestContext, count: int, read: Callable[[Schema], Content]) -> Rows:
    """Some rows, but not too many."""
    if not count:
        raise ProblemError(INVALID_REQUEST, "there are no rows; send at least one")
    requests.check_count(count, asking.max_records)
    return Rows(count, read)


def unknown_columns(asking: RequestContext, found: Sequence[str]) -> ProblemError:
    """The refusal of a request that has nothing the model reads."""
    expected = listed(asking.served.detector.scorer.schema.names)
    names = listed([name[:100] for name in found])
    detail = f"none of the model's columns found; expected {expected}, found {names}"
    return ProblemError(INVALID_REQUEST, detail)


def _files(cells: Sequence[Any]) -> Sequence[bytes]:
    """The content of files; whatever else is refused."""
    reason = "expected the content of an image file, in base64"
    bad = [BadRecord(row, IMAGE, reason) for row, c in enumerate(cells) if not isinstance(c, bytes)]
    if bad:
        raise requests.unfit_records(bad)
    return cells


def example_record(served: ServedModel) -> dict[str, Any]:
    """The model's example as JSON has it: the content of a file in base64."""
    return {
        name: base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell
        for name, cell in served.example.items()
    }
