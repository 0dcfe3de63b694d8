"""The OpenAPI document: FastAPI's own for the small routes, written by hand for scoring.

The record schema comes from the served models, the response schemas from `schemas`. Examples are
real: a typical record or image, and the model's answer to it. Parts that only tables or only
images need are included when such a model is served.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from anomaly_vae.data.schema import TabularSchema
from serving.models.store import IMAGE, ServedModel, Store
from serving.paths import OPEN, SCORING
from serving.problems import (
    FORBIDDEN,
    HEAD_TOO_LARGE,
    INTERNAL,
    INVALID_RECORD,
    MALFORMED,
    MEDIA_TYPE,
    METHOD_NOT_ALLOWED,
    NOT_READY,
    OVERLOADED,
    RATE_LIMITED,
    TIMEOUT,
    TOO_LARGE,
    UNAUTHENTICATED,
    UNKNOWN_MODEL,
    UNSUPPORTED,
    Kind,
    ProblemDetails,
)
from serving.registry.follower import Reloads
from serving.scoring import responses, schemas, uploads
from serving.settings import Settings

Json = dict[str, Any]


class Part(NamedTuple):
    """A part of the document: paths by hand, and the shapes that they and others refer to."""

    paths: Json
    shapes: Sequence[type[msgspec.Struct]]


Describe = Callable[[Sequence[ServedModel], Settings], Part]

REF = "#/components/schemas/{name}"
REFUSALS = (
    MALFORMED, UNAUTHENTICATED, FORBIDDEN, UNKNOWN_MODEL, METHOD_NOT_ALLOWED, TIMEOUT, TOO_LARGE,
    UNSUPPORTED, INVALID_RECORD, OVERLOADED, HEAD_TOO_LARGE, INTERNAL, NOT_READY,
)  # fmt: skip
ANYWHERE = (TIMEOUT, OVERLOADED, HEAD_TOO_LARGE, INTERNAL)
"""What any request may hear: of its connection, its head, or a fault of ours."""
GUARDED = (UNAUTHENTICATED, FORBIDDEN, OVERLOADED, RATE_LIMITED)
"""What a request may hear where keys are asked for."""
EXPLAIN: Json = {
    "description": "How many contributions (of images: pixels) to list, or all.",
    "anyOf": [{"type": "integer", "minimum": 0}, {"const": "all"}],
    "default": 0,
}
QUERY: list[Json] = [
    {"name": uploads.EXPLAIN, "in": "query", "schema": EXPLAIN, "description": "Of images only."},
    {"name": uploads.HEATMAP, "in": "query", "schema": {"const": uploads.PNG},
     "description": "Of images only: adds a drawing and the regions found to each result."},
]  # fmt: skip
BINARY: Json = {"type": "string", "format": "binary"}
RECORDS_ARE = """Records: a key that is absent or null is missing, and scored by what is there;
unknown keys are ignored. One record that does not fit refuses the whole request."""
IMAGES_ARE = f"""Images: PNG, JPEG, TIFF, DICOM and NIfTI, told by their content, each of one or
more frames. Several files go as `{uploads.FORM_FIELD}` into a form, one may be the body itself:
`curl -F files=@one.dcm -F files=@two.png '…/score?heatmap=png'` or
`curl --data-binary @one.png -H 'Content-Type: image/png' …/score`.
One image that cannot be read, or shows nothing, refuses the whole request."""
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def get(summary: str, shape: type[msgspec.Struct], *refusals: Kind) -> Json:
    """How FastAPI documents a GET route that answers JSON of this shape."""
    return _route(summary, {schemas.JSON: {"schema": ref(shape)}}, *refusals)


def ref(shape: type[msgspec.Struct]) -> Json:
    """Where the document describes a shape."""
    return {"$ref": REF.format(name=shape.__name__)}


def scores(shape: type[msgspec.Struct], examples: Json, bodies: Json) -> Json:
    """How a route is documented that takes these bodies and answers with decisions."""
    ok = {schemas.JSON: {"schema": ref(shape), "examples": examples}}
    return {
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "The decisions.", "content": ok},
            **_refusals(REFUSALS),
        },
    }


def post(summary: str, shape: type[msgspec.Struct], *refusals: Kind) -> Json:
    """How FastAPI documents a POST route without a body, that answers JSON of this shape."""
    return get(summary, shape, *refusals)


def webhook(summary: str, headers: Iterable[str], *refusals: Kind) -> Json:
    """How FastAPI documents a POST route that takes a signed event and answers nothing."""
    parameters = [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
        for name in headers
    ]
    body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {
        "summary": summary,
        "status_code": 202,
        "response_class": Response,
        "responses": {202: {"description": "It was heard."}, **_refusals([*refusals, *ANYWHERE])},
        "openapi_extra": {"parameters": parameters, "requestBody": body},
    }


def text(summary: str, *refusals: Kind) -> Json:
    """How FastAPI documents a GET route that answers plain text."""
    return _route(summary, {"text/plain": {"schema": {"type": "string"}}}, *refusals)


def _route(summary: str, content: Json, *refusals: Kind) -> Json:
    answers = {200: {"description": summary, "content": content}}
    return {
        "summary": summary,
        "response_class": Response,
        "responses": {**answers, **_refusals([*refusals, *ANYWHERE])},
    }


def install(app: FastAPI, store: Store, settings: Settings, more: Sequence[Describe] = ()) -> None:
    """Have the application describe itself, anew after every swap of its detectors.

    Args:
        app: the application.
        store: the current detectors.
        settings: limits and keys.
        more: what is to be said beside the small routes and `/score`.
    """
    latest: tuple[Mapping[str, ServedModel], Json] | None = None

    def describe() -> Json:
        nonlocal latest
        current = store.current
        if latest is None or latest[0] is not current:
            latest = current, document(app, current, settings, more)
        return latest[1]

    app.openapi = describe  # type: ignore[method-assign]  # the way FastAPI documents for this


def document(
    app: FastAPI,
    current: Mapping[str, ServedModel],
    settings: Settings,
    more: Sequence[Describe] = (),
) -> Json:
    """The whole document for these detectors."""
    parts = [describe(list(current.values()), settings) for describe in more]
    whole: Json = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    shapes = [schemas.ScoreResponse, schemas.Models, schemas.Status, Reloads, ProblemDetails]
    shapes += [shape for part in parts for shape in part.shapes]
    _, components = msgspec.json.schema_components(shapes, ref_template=REF)
    tables = [one for one in current.values() if one.kind != IMAGE]
    components |= {_record_name(one): record_schema(one) for one in tables}
    if tables or not current:
        components["ScoreRequest"] = request_schema(tables, settings.max_records)
    whole["components"] = {"schemas": components}
    post = _score(list(current.values()), settings)
    named = {**post, "parameters": [_name_parameter(current), *post.get("parameters", ())]}
    scoring = {
        "/score": {"post": {**post, "operationId": "score"}},
        SCORING[1]: {"post": {**named, "operationId": "score_with"}},
    }
    whole["paths"] = {**scoring, **whole["paths"]}
    for part in parts:
        whole["paths"] |= part.paths
    if settings.guarded:
        _secure(whole)
    return whole


def _secure(whole: Json) -> None:
    whole["components"]["securitySchemes"] = SECURITY
    for path, operations in whole["paths"].items():
        if path not in OPEN:
            for operation in operations.values():
                operation["security"] = [{name: []} for name in SECURITY]
                operation["responses"] |= _refusals(GUARDED)


def _score(current: list[ServedModel], settings: Settings) -> Json:
    tables = [one for one in current if one.kind != IMAGE]
    scans = [one for one in current if one.kind == IMAGE]
    answers = {one.name: {"value": example_answer(one, settings)} for one in current}
    content = _records_body(tables) if tables or not scans else {}
    content |= _images_bodies(scans, settings.max_records) if scans else {}
    texts = [RECORDS_ARE] * bool(tables or not scans) + [IMAGES_ARE] * bool(scans)
    operation = {
        "summary": "Score records or images.",
        "description": "\n\n".join(texts),
        **scores(schemas.ScoreResponse, answers, content),
    }
    return {**operation, "parameters": QUERY} if scans else operation


def _records_body(tables: Iterable[ServedModel]) -> Json:
    examples = {one.name: {"value": example_request(one)} for one in tables}
    schema = {"$ref": REF.format(name="ScoreRequest")}
    return {schemas.JSON: {"schema": schema, "examples": examples}}


def _images_bodies(scans: Iterable[ServedModel], max_records: int) -> Json:
    files = {"type": "array", "items": BINARY, "minItems": 1, "maxItems": max_records}
    form = {
        "type": "object",
        "required": [uploads.FORM_FIELD],
        "properties": {uploads.FORM_FIELD: files},
        "additionalProperties": False,
    }
    bodies: Json = {uploads.MULTIPART: {"schema": form}}
    bodies |= {media: {"schema": BINARY} for media in uploads.RAW}
    bodies["image/png"] = {
        "schema": BINARY,
        "examples": {one.name: {"externalValue": example_image(one)} for one in scans},
    }
    return bodies


def _refusals(kinds: Iterable[Kind]) -> Json:
    """Statuses, each with the titles of all its kinds."""
    content = {MEDIA_TYPE: {"schema": ref(ProblemDetails)}}
    titles: dict[str, list[str]] = {}
    for kind in kinds:
        titles.setdefault(str(kind.status), []).append(kind.title)
    return {
        status: {"description": ". ".join(some), "content": content}
        for status, some in titles.items()
    }


def _name_parameter(current: Mapping[str, ServedModel]) -> Json:
    schema = {"type": "string", "enum": list(current)} if current else {"type": "string"}
    return {"name": "name", "in": "path", "required": True, "schema": schema}


def request_schema(tables: Iterable[ServedModel], max_records: int) -> Json:
    """What a scoring request must look like."""
    records = [{"$ref": REF.format(name=_record_name(one))} for one in tables]
    item = records[0] if len(records) == 1 else {"anyOf": records or [{"type": "object"}]}
    return {
        "type": "object",
        "required": ["records"],
        "properties": {
            "records": {"type": "array", "items": item, "minItems": 1, "maxItems": max_records},
            "explain": EXPLAIN,
        },
    }


def record_schema(one: ServedModel) -> Json:
    """What a record of this model looks like; every key is optional."""
    schema = one.detector.scorer.schema
    assert isinstance(schema, TabularSchema), "images are described by their media types"
    properties = {
        column.name: {**column.spec.json_schema, "examples": [one.example[column.name]]}
        for column in schema.columns
    }
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _record_name(one: ServedModel) -> str:
    return "Record." + re.sub(r"[^A-Za-z0-9._-]", "_", one.name)


def example_request(one: ServedModel) -> Json:
    """A request that works."""
    return {"records": [dict(one.example)], "explain": 3}


def example_image(one: ServedModel) -> str:
    """A PNG that works, as the URI that holds it (RFC 2397)."""
    return f"data:image/png;base64,{base64.b64encode(one.example['image']).decode()}"


def example_answer(one: ServedModel, settings: Settings) -> Any:
    """What the model says of its example."""
    if one.kind == IMAGE:
        from serving.scoring import images

        _, results = images.score(one, [one.example["image"]], uploads.ImageOptions(), settings)
    else:
        batch = one.detector.scorer.schema.from_records([one.example])
        results = responses.results(*one.detector.detect_and_explain(batch, 3))
    return msgspec.to_builtins(responses.answer(one, results))
