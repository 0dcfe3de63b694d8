"""Support the Open Inference Protocol, version 2, of KServe, Triton and MLServer.

A table is sent as one tensor per column, of shape [N] or [N, 1], or, if all its columns are
numbers, as one tensor [N, F]; images are sent as ``BYTES``, one file per element. The answer is
three tensors [N]: ``score``, ``p_value`` and ``is_anomaly``; a model with groups adds ``group`` and
``threshold``, one that tests for unusual input ``unusual_input``, and one with `data.windows` a
tensor for each of its windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from anomaly_vae import __version__
from anomaly_vae.scoring.detector import Detections
from serving import openapi
from serving.models.store import Json, ServedModel, Store
from serving.openapi import DocumentedRoute, json_route
from serving.paths import HEADERS
from serving.problems import (
    INVALID_REQUEST,
    MALFORMED,
    NOT_READY,
    UNKNOWN_MODEL,
    UNSUPPORTED,
    ProblemError,
)
from serving.protocols import tensors
from serving.protocols.tensors import (
    BINARY_SIZE,
    BOOL,
    BYTES,
    CONTENT_TYPE,
    FP64,
    Parameters,
    Tensor,
)
from serving.scoring import requests, responses, schemas
from serving.scoring.adapters import (
    ProtocolEndpoint,
    ProtocolRequest,
    RequestContext,
    Scorer,
    check_ready,
    example_record,
    of_columns,
)
from serving.scoring.images.uploads import BINARY
from serving.scoring.windows import warnings_of
from serving.settings import Settings

OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
HEADER_LENGTH_KEY = HEADER_LENGTH.lower().encode()
AS_BYTES, ALL_AS_BYTES = "binary_data", "binary_data_output"
"""Parameters that request an output, or all outputs, as bytes."""
OUTPUTS = {"score": FP64, "p_value": FP64, "is_anomaly": BOOL}
"""Datatype of each output, by name."""
GROUP_OUTPUTS = {"group": BYTES, "threshold": FP64}
"""Datatype of the additional outputs of a model with groups, by name.

``group`` is empty for rows to which the overall threshold was applied.
"""
UNUSUAL_OUTPUTS = {"unusual_input": BYTES}
"""Datatype of the additional output of a model that tests for unusual input: a reason or empty."""
MODEL = "/v2/models/{name}"
MODELS = (MODEL, MODEL + "/versions/{version}")
DESCRIPTION = f"""Tables: one tensor per column, of shape [N] or [N, 1], or, if all columns are
numbers, one tensor [N, F] in the order of `{MODEL}`. A value that is absent, null, or NaN or empty
in a binary tensor is missing; unknown columns are ignored. Images: `BYTES`, one file per element,
in JSON as base64. Tensors may follow the JSON as bytes; `{HEADER_LENGTH}` is the size of the
JSON."""


class RequestedOutput(msgspec.Struct, frozen=True):
    """A requested output, as bytes if its parameter ``binary_data`` is true."""

    name: str
    parameters: Parameters = None


class InferenceRequest(msgspec.Struct, frozen=True):
    """Rows to score, and the outputs to return; without ``outputs``, all are returned."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: Parameters = None
    outputs: list[RequestedOutput] | None = None


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """An output with one value per row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = None


class InferenceResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decisions; ``parameters`` contains the alpha and the threshold of the model.

    The parameter ``ignored`` lists the columns that the model does not know, if there are any, and
    ``warnings`` says, one a line, what the windows of rows lack.
    """

    model_name: str
    outputs: list[OutputTensor]
    parameters: dict[str, float | str]
    model_version: str | None = None
    id: str | None = None


class ServerMetadata(msgspec.Struct, frozen=True):
    """The name and version of the server, and its protocol extensions."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of N values; the parameter ``content_type`` is MLServer's name for its encoding."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = None


class ModelMetadata(msgspec.Struct, frozen=True):
    """The input and output tensors of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(msgspec.Struct, frozen=True):
    """A response about whether the process is alive."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """A response about whether the service accepts requests."""

    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    """A response about whether a model accepts requests."""

    name: str
    ready: bool


SHAPES = (
    InferenceRequest, InferenceResponse, ServerMetadata, ModelMetadata, Live, Ready, ModelReady
)  # fmt: skip
_decoder = msgspec.json.Decoder(InferenceRequest)


# ---------------------------------------------------------------- requests and answers


def check(model: ServedModel, scope: Scope) -> None:
    """Refuse a version that is not served, and a media type that holds no tensors."""
    check_version(model, scope["path_params"].get("version"))
    if requests.media_type(scope[HEADERS])[0] not in {"", schemas.JSON, OCTETS}:
        detail = f"send 'Content-Type: {schemas.JSON}', or {OCTETS} where tensors follow as bytes"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": f"{schemas.JSON}, {OCTETS}"})


def check_version(model: ServedModel, version: str | None) -> None:
    """Refuse a version that is not served."""
    if version is not None and version != model.version:
        served = f"version {model.version} is" if model.version else "it has no versions, and is"
        detail = f"no version '{version[:100]}' of model '{model.name}': {served} at "
        raise ProblemError(UNKNOWN_MODEL, detail + MODEL.format(name=model.name))


def decode(context: RequestContext, body: bytes) -> ProtocolRequest:
    """Decode a body into the rows to score and the outputs to return."""
    head, tail = _split(body, context.headers)
    request = requests.parse(_decoder, head)
    requested = _requested(context.model, request)
    columns = tensors.columns_of(context.model, request.inputs, tensors.Tail(tail))
    return ProtocolRequest(
        of_columns(context, columns), partial(answer, context.model, request.id, requested)
    )


def _split(body: bytes, headers: requests.Headers) -> tuple[bytes, bytes | None]:
    """Split a body into its JSON and the bytes that follow; None if the header announces none."""
    if HEADER_LENGTH_KEY not in headers:
        return body, None
    length = headers[HEADER_LENGTH_KEY]
    if not length.isdigit() or len(length) > 18 or int(length) > len(body):
        detail = f"{HEADER_LENGTH} must say how many of the body's {len(body)} bytes are JSON"
        raise ProblemError(MALFORMED, detail)
    return body[: int(length)], body[int(length) :]


def outputs_of(model: ServedModel) -> Mapping[str, str]:
    """Return the names and datatypes of a model's outputs."""
    outputs = OUTPUTS | GROUP_OUTPUTS if model.detector.calibration.groups else OUTPUTS
    outputs = outputs | UNUSUAL_OUTPUTS if model.detector.unusual else outputs
    names = model.windows.definition.names if model.windows else ()
    return outputs | dict.fromkeys(names, FP64)


def _requested(model: ServedModel, request: InferenceRequest) -> dict[str, bool]:
    """Return whether each requested output is requested as bytes, by its name."""
    all_as_bytes = (request.parameters or {}).get(ALL_AS_BYTES) is True
    known = outputs_of(model)
    outputs = request.outputs or [RequestedOutput(name) for name in known]
    for output in outputs:
        if output.name not in known:
            detail = f"no output '{output.name[:100]}'; there are {', '.join(known)}"
            raise ProblemError(INVALID_REQUEST, detail)
    return {
        output.name: (output.parameters or {}).get(AS_BYTES, all_as_bytes) is True
        for output in outputs
    }


def answer(
    model: ServedModel,
    request_id: str | None,
    requested: Mapping[str, bool],
    detections: Detections,
    ignored: Sequence[str] = (),
) -> Response:
    """Encode the decisions as the requested tensors; binary tensors follow the JSON.

    Args:
        model: the model that scored the rows.
        request_id: identifier to repeat in the answer.
        requested: whether each requested output is encoded as bytes, by its name.
        detections: the decisions on N rows.
        ignored: names of the ignored columns.
    """
    tail: list[bytes] = []
    known = outputs_of(model)
    outputs = [
        _output(name, known[name], _values(detections, name), tail if as_bytes else None)
        for name, as_bytes in requested.items()
    ]
    calibration = model.detector.calibration
    parameters: dict[str, Any] = {
        "alpha": calibration.alpha, "threshold": calibration.threshold
    }  # fmt: skip
    if ignored:
        parameters["ignored"] = ", ".join(ignored)  # a parameter cannot be a list
    if warnings := warnings_of(detections.window_notes):
        parameters["warnings"] = "\n".join(warnings)
    head = responses.encode(
        InferenceResponse(model.name, outputs, parameters, model.version, request_id)
    )
    if not any(requested.values()):
        return Response(head, media_type=schemas.JSON)
    length = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join([head, *tail]), headers=length, media_type=OCTETS)


def _values(detections: Detections, name: str) -> Any:
    """Return an output (N,): a field of the decisions, or else a window."""
    if name in OUTPUTS | GROUP_OUTPUTS | UNUSUAL_OUTPUTS:
        return getattr(detections, name)
    count = len(detections.score)
    return np.full(count, np.nan) if detections.windows is None else detections.windows[name]


def _output(name: str, datatype: str, values: Any, tail: list[bytes] | None) -> OutputTensor:
    shape = list(values.shape)
    if datatype == BYTES:
        values = np.array([text or "" for text in values], object)
    if tail is None:
        return OutputTensor(name, shape, datatype, values.tolist())
    tail.append(tensors.to_bytes(values, datatype))
    return OutputTensor(name, shape, datatype, parameters={BINARY_SIZE: len(tail[-1])})


# ---------------------------------------------------------------- routes


def endpoints(scorer: Scorer) -> dict[str, ProtocolEndpoint]:
    """Create the scoring routes, by path."""
    endpoint = ProtocolEndpoint(scorer, check, decode, f"{MODEL}/infer")
    return {f"{path}/infer": endpoint for path in MODELS}


def routes(store: Store, settings: Settings) -> list[DocumentedRoute]:
    """Create the routes about the server and its models."""

    async def describe_server(_: Request) -> Response:
        return responses.response(
            ServerMetadata("anomaly-vae", __version__, ["binary_tensor_data"])
        )

    async def check_server_live(_: Request) -> Response:
        return responses.response(Live(True))

    async def check_server_ready(_: Request) -> Response:
        check_ready(store, settings)
        return responses.response(Ready(True))

    async def describe_model(request: Request) -> Response:
        return responses.response(describe(_find(store, request)))

    async def check_model_ready(request: Request) -> Response:
        check_ready(store, settings)
        return responses.response(ModelReady(_find(store, request).name, True))

    live_text, ready_text = "Whether the process is alive.", "Whether the service takes requests."
    server_text = "Name and extensions of the server."
    metadata_text = "The input and output tensors of a model."
    about_server = [
        json_route("GET", "/v2", describe_server, server_text, ServerMetadata),
        json_route("GET", "/v2/health/live", check_server_live, live_text, Live),
        json_route("GET", "/v2/health/ready", check_server_ready, ready_text, Ready, NOT_READY),
    ]
    errors = UNKNOWN_MODEL, NOT_READY
    about_models = [
        json_route("GET", path, describe_model, metadata_text, ModelMetadata, UNKNOWN_MODEL)
        for path in MODELS
    ]
    about_models += [
        json_route("GET", f"{path}/ready", check_model_ready, ready_text, ModelReady, *errors)
        for path in MODELS
    ]
    return about_server + about_models


def _find(store: Store, request: Request) -> ServedModel:
    """Return the model named in the path of a request."""
    name, version = (request.path_params.get(part) for part in ("name", "version"))
    model = store.current.get(str(name))
    if model is None:
        raise ProblemError(UNKNOWN_MODEL, f"no model '{str(name)[:100]}' is loaded; GET /models")
    check_version(model, version)
    return model


def describe(model: ServedModel) -> ModelMetadata:
    """Describe the recommended tensors for a model's columns, and its outputs."""
    columns = model.schema.columns
    inputs = [_describe(column.name, *column.spec.tensor) for column in columns]
    outputs = [_describe(name, datatype, None) for name, datatype in outputs_of(model).items()]
    versions = [model.version] if model.version else []
    return ModelMetadata(model.name, versions, "anomaly-vae", inputs, outputs)


def _describe(name: str, datatype: str, content: str | None) -> TensorMetadata:
    parameters = {CONTENT_TYPE: content} if content else None
    return TensorMetadata(name, datatype, [-1], parameters)


# ---------------------------------------------------------------- OpenAPI


def document(models: Sequence[ServedModel], settings: Settings) -> openapi.Part:
    """Describe the scoring routes in the OpenAPI document."""
    examples = {model.name: {"value": example_request(model)} for model in models}
    answers = {model.name: {"value": _example_answer(model, settings)} for model in models}
    bodies = {
        schemas.JSON: {"schema": openapi.ref(InferenceRequest), "examples": examples},
        OCTETS: {"schema": BINARY},
    }
    operation = {
        "summary": "Score tensors, by the Open Inference Protocol.",
        "description": DESCRIPTION,
        **openapi.scoring_operation(InferenceResponse, answers, bodies),
    }
    operation["responses"]["200"]["content"][OCTETS] = {"schema": BINARY}
    versions = sorted({model.version for model in models if model.version})
    known = {"name": [model.name for model in models], "version": versions}
    length = {"name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0}}
    paths = {
        f"{path}/infer": {"post": {**operation, "operationId": name, "parameters": parameters}}
        for path, name in zip(MODELS, ("infer", "infer_with_version"), strict=True)
        for parameters in [[*openapi.path_parameters(path, known), length]]
    }
    return openapi.Part(paths, SHAPES)


def example_request(model: ServedModel) -> Json:
    """Return a valid example request."""
    record = example_record(model)
    return {"inputs": [_example(column, record[column.name]) for column in model.schema.columns]}


def _example(column: Any, cell: Any) -> Json:
    datatype, content = column.spec.tensor
    tensor = {"name": column.name, "shape": [1], "datatype": datatype}
    cell = bool(cell) if datatype == BOOL and cell is not None else cell
    return {
        **tensor,
        **({"parameters": {CONTENT_TYPE: content}} if content else {}),
        "data": [cell],
    }


def _example_answer(model: ServedModel, settings: Settings) -> Any:
    context = RequestContext(model, {}, settings.max_records)
    request = decode(context, msgspec.json.encode(example_request(model)))
    detections = model.detect(request.rows.read(model), settings)
    return msgspec.json.decode(request.answer(detections, ()).body)
