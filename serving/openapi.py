"""The OpenAPI document: FastAPI's own for the small routes, written by hand for scoring.

The record schema comes from the models that are served, the shapes of answers from `wire`, and the
examples are real: a typical record, and what the model says of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from anomaly_vae.schema import ColumnType, TabularSchema
from serving import wire
from serving.errors import (
    FORBIDDEN,
    INTERNAL,
    INVALID_RECORD,
    MALFORMED,
    MEDIA_TYPE,
    METHOD_NOT_ALLOWED,
    NOT_READY,
    OVERLOADED,
    TIMEOUT,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNKNOWN_MODEL,
    UNSUPPORTED,
    Kind,
    ProblemDetails,
)
from serving.settings import Settings
from serving.store import Served, Store

Json = dict[str, Any]

SCORING = ("/score", "/models/{name}/score")
REF = "#/components/schemas/{name}"
REFUSALS = (
    MALFORMED, UNAUTHENTICATED, FORBIDDEN, UNKNOWN_MODEL, METHOD_NOT_ALLOWED, TIMEOUT, TOO_LARGE,
    UNSUPPORTED, INVALID_RECORD, OVERLOADED, INTERNAL, NOT_READY,
)  # fmt: skip
TYPES: dict[ColumnType, Json] = {
    ColumnType.NUMERIC: {
        "type": ["number", "null"], "minimum": -sys.float_info.max, "maximum": sys.float_info.max
    },
    ColumnType.BINARY: {"enum": [0, 1, False, True, None]},
    ColumnType.CATEGORICAL: {"type": ["string", "number", "boolean", "null"]},
    ColumnType.DATETIME: {"type": ["string", "null"], "format": "date-time"},
}  # fmt: skip
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def get(summary: str, shape: type[msgspec.Struct], *refusals: Kind) -> Json:
    """How FastAPI documents a GET route that answers JSON of this shape."""
    content = {"application/json": {"schema": {"$ref": REF.format(name=shape.__name__)}}}
    return _route(summary, content, *refusals)


def text(summary: str) -> Json:
    """How FastAPI documents a GET route that answers plain text."""
    return _route(summary, {"text/plain": {"schema": {"type": "string"}}})


def _route(summary: str, content: Json, *refusals: Kind) -> Json:
    answers = {200: {"description": summary, "content": content}}
    return {
        "summary": summary,
        "response_class": Response,
        "responses": {**answers, **_refusals([*refusals, INTERNAL])},
    }


def install(app: FastAPI, store: Store, settings: Settings) -> None:
    """Have the application describe itself, anew after every swap of its detectors."""
    latest: tuple[Mapping[str, Served], Json] | None = None

    def describe() -> Json:
        nonlocal latest
        current = store.current
        if latest is None or latest[0] is not current:
            latest = current, document(app, current, settings)
        return latest[1]

    app.openapi = describe  # type: ignore[method-assign]  # the way FastAPI documents for this


def document(app: FastAPI, current: Mapping[str, Served], settings: Settings) -> Json:
    """The whole document for these detectors."""
    whole: Json = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    shapes = [wire.ScoreResponse, wire.Models, wire.Status, ProblemDetails]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=REF)
    schemas |= {_record_name(one): record_schema(one) for one in current.values()}
    schemas["ScoreRequest"] = request_schema(current.values(), settings.max_records)
    whole["components"] = {"schemas": schemas}
    scoring = {"/score": {"post": _score(current, "score")}}
    by_name = {**_score(current, "score_with"), "parameters": [_name_parameter(current)]}
    whole["paths"] = {**scoring, SCORING[1]: {"post": by_name}, **whole["paths"]}
    if settings.api_keys:
        _secure(whole)
    return whole


def _secure(whole: Json) -> None:
    whole["components"]["securitySchemes"] = SECURITY
    for path, operations in whole["paths"].items():
        if not path.startswith("/health/"):
            for operation in operations.values():
                operation["security"] = [{name: []} for name in SECURITY]
                operation["responses"] |= _refusals([UNAUTHENTICATED, FORBIDDEN])


def _score(current: Mapping[str, Served], operation: str) -> Json:
    examples = {one.name: {"value": example_request(one)} for one in current.values()}
    answers = {one.name: {"value": example_answer(one)} for one in current.values()}
    body = {"schema": {"$ref": REF.format(name="ScoreRequest")}, "examples": examples}
    answer = {"schema": {"$ref": REF.format(name="ScoreResponse")}, "examples": answers}
    ok = {"description": "The decisions.", "content": {wire.JSON: answer}}
    return {
        "summary": "Score records.",
        "description": "A key that is absent or null is missing, and scored by what is there; "
        "unknown keys are ignored. One record that does not fit refuses the whole request.",
        "operationId": operation,
        "requestBody": {"required": True, "content": {wire.JSON: body}},
        "responses": {"200": ok, **_refusals(REFUSALS)},
    }


def _refusals(kinds: Iterable[Kind]) -> Json:
    schema = {"$ref": REF.format(name=ProblemDetails.__name__)}
    return {
        str(kind.status): {"description": kind.title, "content": {MEDIA_TYPE: {"schema": schema}}}
        for kind in kinds
    }


def _name_parameter(current: Mapping[str, Served]) -> Json:
    schema = {"type": "string", "enum": list(current)} if current else {"type": "string"}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def request_schema(models: Iterable[Served], max_records: int) -> Json:
    """What a scoring request must look like."""
    records = [{"$ref": REF.format(name=_record_name(one))} for one in models]
    item = records[0] if len(records) == 1 else {"anyOf": records or [{"type": "object"}]}
    return {
        "type": "object",
        "required": ["records"],
        "properties": {
            "records": {"type": "array", "items": item, "minItems": 1, "maxItems": max_records},
            "explain": {
                "description": "How many contributions to list, or all.",
                "anyOf": [{"type": "integer", "minimum": 0}, {"const": "all"}],
                "default": 0,
            },
        },
    }


def record_schema(one: Served) -> Json:
    """What a record of this model looks like; every key is optional."""
    schema: TabularSchema = one.detector.scorer.schema
    properties = {
        column.name: {**TYPES[column.type], "examples": [one.example[column.name]]}
        for column in schema.columns
    }
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _record_name(one: Served) -> str:
    return "Record." + re.sub(r"[^A-Za-z0-9._-]", "_", one.name)


def example_request(one: Served) -> Json:
    """A request that works."""
    return {"records": [dict(one.example)], "explain": 3}


def example_answer(one: Served) -> Any:
    """And its answer."""
    batch = one.detector.scorer.schema.from_records([one.example])
    found, explained = one.detector.detect_and_explain(batch, 3)
    return msgspec.to_builtins(wire.answer(one, found, explained))
