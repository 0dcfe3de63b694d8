"""Describe the service in an OpenAPI document, and serve it.

Scoring routes are described from the loaded models, with examples that work: a typical record or
image, and the model's answer to it. Other routes contain their own description. msgspec describes
the types.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from anomaly_vae import __version__
from anomaly_vae.client.types import Result, Schema
from serving.models.store import Json, ServedModel, Store
from serving.paths import PUBLIC_ROUTES, SCORING_ROUTES, Template
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
from serving.scoring import responses, schemas
from serving.scoring.schemas import REF, DecidedResult, GroupedResult, RegionsResult
from serving.scoring.tables import ServedTable
from serving.settings import Settings

Shape = type[msgspec.Struct]
Endpoint = Callable[[Request], Awaitable[Response]]

TITLE = "anomaly-vae"
DESCRIPTION = "Scores, conformal p-values and decisions, with their reasons."
SCORE_ERRORS = (
    MALFORMED, UNAUTHENTICATED, FORBIDDEN, UNKNOWN_MODEL, METHOD_NOT_ALLOWED, TIMEOUT, TOO_LARGE,
    UNSUPPORTED, INVALID_RECORD, OVERLOADED, HEAD_TOO_LARGE, INTERNAL, NOT_READY,
)  # fmt: skip
"""Errors that a scoring request can return."""
COMMON_ERRORS = (TIMEOUT, OVERLOADED, HEAD_TOO_LARGE, INTERNAL)
"""Errors that any request can return: timeout, overload, oversized headers, internal error."""
KEY_ERRORS = (UNAUTHENTICATED, FORBIDDEN, OVERLOADED, RATE_LIMITED)
"""Errors that any request can return if API keys are required."""
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""Security schemes, by name."""


class Part(NamedTuple):
    """The paths of a protocol's scoring routes, and the types that they refer to."""

    paths: Json
    shapes: Sequence[Shape]


Describe = Callable[[Sequence[ServedModel], Settings], Part]
"""Function that describes the scoring routes of a protocol for the loaded models."""


class DocumentedRoute(Template):
    """A route of one method with its OpenAPI operation, and the types that it refers to.

    The name of the endpoint identifies the operation; generated clients call their function so.
    """

    def __init__(
        self, method: str, path: str, endpoint: Endpoint, operation: Json, shapes: Sequence[Shape]
    ) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method, self.shapes = method.lower(), shapes
        suffix = "_with_version" if "{version}" in path else ""
        self.operation = {**operation, "operationId": f"{self.name}{suffix}"}


# ---------------------------------------------------------------- small routes


def json_route(
    method: str,
    path: str,
    endpoint: Endpoint,
    summary: str,
    shape: Shape,
    *errors: Kind,
    body: Shape | None = None,
    example: Any = None,
) -> DocumentedRoute:
    """Create a route that responds with JSON of this type or with one of these errors.

    ``body`` is the type of the request's body, if it has one, and ``example`` an example of it.
    """
    content = {schemas.JSON: {"schema": ref(shape)}}
    operation = _operation(summary, "200", {"description": summary, "content": content}, errors)
    if parameters := path_parameters(path, {}):
        operation["parameters"] = parameters
    if body is None:
        return DocumentedRoute(method, path, endpoint, operation, [shape])
    described = {"schema": ref(body), "example": example}
    operation["requestBody"] = {"required": True, "content": {schemas.JSON: described}}
    return DocumentedRoute(method, path, endpoint, operation, [shape, body])


def path_parameters(path: str, choices: Mapping[str, Sequence[str]]) -> list[Json]:
    """Describe the parameters in a path; ``choices`` lists the allowed values of some of them."""
    names = re.findall(r"{(\w+)}", path)
    enums = {name: {"enum": list(choices[name])} if choices.get(name) else {} for name in names}
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", **enum}}
        for name, enum in enums.items()
    ]


def text_route(path: str, endpoint: Endpoint, summary: str, *errors: Kind) -> DocumentedRoute:
    """Create a GET route that responds with plain text or with one of these errors."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    operation = _operation(summary, "200", {"description": summary, "content": content}, errors)
    return DocumentedRoute("GET", path, endpoint, operation, [])


def webhook_route(
    path: str, endpoint: Endpoint, summary: str, headers: Iterable[str], *errors: Kind
) -> DocumentedRoute:
    """Create a POST route that receives a signed event in JSON and responds without a body."""
    operation = _operation(summary, "202", {"description": "The event was received."}, errors)
    operation["parameters"] = [
        {"name": name, "in": "header", "required": True, "schema": {"type": "string"}}
        for name in headers
    ]
    body = {"application/json": {"schema": {"type": "object"}}}
    operation["requestBody"] = {"required": True, "content": body}
    return DocumentedRoute("POST", path, endpoint, operation, [])


def _operation(summary: str, status: str, answer: Json, errors: Iterable[Kind]) -> Json:
    responses = {status: answer, **_error_responses([*errors, *COMMON_ERRORS])}
    return {"summary": summary, "responses": responses}


def ref(shape: Shape) -> Json:
    """Return a reference to the description of a type."""
    return {"$ref": REF.format(name=shape.__name__)}


def _error_responses(kinds: Iterable[Kind]) -> Json:
    """Describe the errors of each status by their titles."""
    content = {MEDIA_TYPE: {"schema": ref(ProblemDetails)}}
    titles: dict[str, list[str]] = {}
    for kind in dict.fromkeys(kinds):
        titles.setdefault(str(kind.status), []).append(kind.title)
    return {
        status: {"description": ". ".join(status_titles), "content": content}
        for status, status_titles in titles.items()
    }


# ---------------------------------------------------------------- the document


def document_route(
    routes: Sequence[BaseRoute], store: Store, settings: Settings, describers: Sequence[Describe]
) -> Template:
    """Create the route of the document.

    Args:
        routes: all routes of the application.
        store: the current models; the document is rebuilt after every swap.
        settings: limits and keys.
        describers: functions that describe the scoring routes of other protocols.
    """
    latest: tuple[Mapping[str, ServedModel], bytes] | None = None

    async def openapi(_: Request) -> Response:
        nonlocal latest
        current = store.current
        if latest is None or latest[0] is not current:
            content = document(routes, current, settings, describers)
            latest = current, msgspec.json.encode(content)
        return Response(latest[1], media_type=schemas.JSON)

    return Template("/openapi.json", openapi)


def document(
    routes: Sequence[BaseRoute],
    current: Mapping[str, ServedModel],
    settings: Settings,
    describers: Sequence[Describe] = (),
) -> Json:
    """Build the OpenAPI document of these routes and models."""
    models = list(current.values())
    documented = [route for route in routes if isinstance(route, DocumentedRoute)]
    protocols = [describe(models, settings) for describe in describers]
    scoring, components = _describe_scoring(models, settings)
    paths = dict(scoring)
    for route in documented:
        paths.setdefault(route.path, {})[route.method] = dict(route.operation)
    for protocol in protocols:
        paths |= protocol.paths
    shapes = [shape for route in documented for shape in route.shapes]
    shapes += [shape for protocol in protocols for shape in protocol.shapes]
    content: Json = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": _describe_shapes(shapes) | components},
    }
    if settings.requires_auth:
        _add_security(content)
    return content


def _add_security(content: Json) -> None:
    content["components"]["securitySchemes"] = SECURITY
    for path, operations in content["paths"].items():
        if path not in PUBLIC_ROUTES:
            for operation in operations.values():
                operation["security"] = [{name: []} for name in SECURITY]
                operation["responses"] = operation["responses"] | _error_responses(KEY_ERRORS)


def _describe_shapes(shapes: Iterable[Shape]) -> Json:
    """Describe types by name, with the fields that the service really sends."""
    variants = (DecidedResult, GroupedResult, RegionsResult)
    all_shapes = [*shapes, *variants, schemas.ScoreResponse, ProblemDetails]
    _, components = msgspec.json.schema_components(all_shapes, ref_template=REF)
    for variant in variants:
        described = components.pop(variant.__name__)["properties"]
        fields = [name for name in variant.__annotations__ if name in described]
        components[Result.__name__]["properties"] |= {name: described[name] for name in fields}
    for described in components.values():
        _describe_items(described)
    for shape in (Result, Schema, schemas.ScoreResponse):
        properties = components[shape.__name__]["properties"]
        for name, described in properties.items():
            properties[name] = _describe_omitted(described)
    return components


def _describe_items(described: Any) -> None:
    """Give each list one description of its items, as generators require; {} means anything."""
    if isinstance(described, dict):
        if described.get("type") == "array":
            alike = described.pop("prefixItems", [described.get("items", {})])
            described["items"] = alike[0]
        for part in described.values():
            _describe_items(part)
    elif isinstance(described, list):
        for part in described:
            _describe_items(part)


def _describe_omitted(described: Json) -> Json:
    """Describe a field with a default as optional but never null, as the service omits it."""
    if "default" not in described:
        return described
    described = {key: value for key, value in described.items() if key != "default"}
    options = [option for option in described.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) > 1:
        return described | {"anyOf": options}
    return described | (options[0] if options else {})


# ---------------------------------------------------------------- scoring


def _describe_scoring(models: Sequence[ServedModel], settings: Settings) -> tuple[Json, Json]:
    """Describe `POST /score`: its paths, and the components that they refer to."""
    by_kind: dict[type[ServedModel], list[ServedModel]] = {}
    for model in sorted(models, key=lambda model: model.reads_files):
        by_kind.setdefault(type(model), []).append(model)
    bodies = [
        kind.describe_bodies(kind_models, settings)
        for kind, kind_models in (by_kind or {ServedTable: list[ServedModel]()}).items()
    ]
    content = {media: body for part in bodies for media, body in part.content.items()}
    answers = {model.name: {"value": _example_answer(model, settings)} for model in models}
    operation = {
        "summary": "Score records or images.",
        "description": "\n\n".join(part.text for part in bodies),
        **scoring_operation(schemas.ScoreResponse, answers, content),
    }
    parameters = [parameter for part in bodies for parameter in part.parameters]
    unnamed = {**operation, "parameters": parameters} if parameters else dict(operation)
    names = path_parameters(SCORING_ROUTES[1], {"name": [model.name for model in models]})
    named = {**operation, "parameters": [*names, *parameters]}
    paths = {
        SCORING_ROUTES[0]: {"post": {**unnamed, "operationId": "score"}},
        SCORING_ROUTES[1]: {"post": {**named, "operationId": "score_model"}},
    }
    return paths, {name: schema for part in bodies for name, schema in part.components.items()}


def scoring_operation(shape: Shape, examples: Json, bodies: Json) -> Json:
    """Describe the bodies and answers of a scoring route, with examples of answers."""
    ok = {schemas.JSON: {"schema": ref(shape), "examples": examples}}
    return {
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "The decisions.", "content": ok},
            **_error_responses(SCORE_ERRORS),
        },
    }


def _example_answer(model: ServedModel, settings: Settings) -> Any:
    """Return the model's answer to its example."""
    return msgspec.to_builtins(responses.answer(model, model.example_results(settings)))
