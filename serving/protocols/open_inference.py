"""The Open Inference Protocol, version 2: what clients of KServe, Triton and MLServer speak.

A table goes as one tensor a column, of shape [N] or [N, 1], or, where all its columns are numbers,
as one tensor [N, F]; images as ``BYTES``, one file each. Answers are three tensors [N]: ``score``,
``p_value`` and ``is_anomaly``; of a model with groups ``group`` and ``threshold``, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Scope

from anomaly_vae import __version__
from anomaly_vae.scoring.detector import Detections
from serving import openapi
from serving.models.store import ServedModel, Store
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
    detect,
    example_record,
    of_columns,
)
from serving.settings import Settings

OCTETS = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
SENT_LENGTH = HEADER_LENGTH.lower().encode()
AS_BYTES, ALL_AS_BYTES = "binary_data", "binary_data_output"
OUTPUTS = {"score": FP64, "p_value": FP64, "is_anomaly": BOOL}
OF_GROUPS = {"group": BYTES, "threshold": FP64}
"""Beside them, of a model with groups; the text is empty where the scores of all rows decided."""
MODEL = "/v2/models/{name}"
MODELS = (MODEL, MODEL + "/versions/{version}")
DESCRIPTION = f"""Tables: one tensor a column, of shape [N] or [N, 1], or, where all columns are
numbers, one tensor [N, F] in the order of `{MODEL}`. A column that is absent, null, or NaN in
binary tensors is missing; unknown columns are ignored. Images: `BYTES`, one file each, in JSON as
base64. Tensors may follow the JSON as bytes (`{HEADER_LENGTH}` says where)."""


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that is asked for; ``binary_data`` is true where it is to come as bytes."""

    name: str
    parameters: Parameters = None


class InferenceRequest(msgspec.Struct, frozen=True):
    """What is to be scored; all three outputs are answered unless some are named."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: Parameters = None
    outputs: list[RequestedOutput] | None = None


class OutputTensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One value for each row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = None


class InferenceResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decisions; ``parameters`` are the alpha and the threshold they were made with."""

    model_name: str
    outputs: list[OutputTensor]
    parameters: dict[str, float]
    model_version: str | None = None
    id: str | None = None


class ServerMetadata(msgspec.Struct, frozen=True):
    """What answers."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tensor of N values; ``content_type`` is what MLServer calls them."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = None


class ModelMetadata(msgspec.Struct, frozen=True):
    """What a model reads and what it answers."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(msgspec.Struct, frozen=True):
    """Whether the process answers."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """Whether to send requests."""

    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    """Whether to send requests to a model."""

    name: str
    ready: bool


SHAPES = (
    InferenceRequest, InferenceResponse, ServerMetadata, ModelMetadata, Live, Ready, ModelReady
)  # fmt: skip
_decoder = msgspec.json.Decoder(InferenceRequest)


# ---------------------------------------------------------------- requests and answers


def check(served: ServedModel, scope: Scope) -> None:
    """Refuse another version than the one served, and a body that holds no tensors."""
    check_version(served, scope["path_params"].get("version"))
    if requests.media_type(scope[HEADERS])[0] not in {"", schemas.JSON, OCTETS}:
        detail = f"send 'Content-Type: {schemas.JSON}', or {OCTETS} where tensors follow as bytes"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": f"{schemas.JSON}, {OCTETS}"})


def check_version(served: ServedModel, version: str | None) -> None:
    """Refuse another version than the one served."""
    if version is not None and version != served.version:
        there = f"version {served.version} is" if served.version else "it has no versions, and is"
        detail = f"no version '{version[:100]}' of model '{served.name}': {there} at "
        raise ProblemError(UNKNOWN_MODEL, detail + MODEL.format(name=served.name))


def decode(asking: RequestContext, body: bytes) -> ProtocolRequest:
    """A body → what it asks."""
    head, tail = _parted(body, asking.headers)
    request = requests.parse(_decoder, head)
    asked = _outputs(asking.served, request)
    columns = tensors.columns_of(asking.served, request.inputs, tensors.Tail(tail))
    return ProtocolRequest(
        of_columns(asking, columns), partial(answer, asking.served, request.id, asked)
    )


def _parted(body: bytes, headers: requests.Headers) -> tuple[bytes, bytes | None]:
    """The JSON of a body and the bytes behind it, where there may be some."""
    if SENT_LENGTH not in headers:
        return body, None
    length = headers[SENT_LENGTH]
    if not length.isdigit() or len(length) > 18 or int(length) > len(body):
        detail = f"{HEADER_LENGTH} is to say how many of the body's {len(body)} bytes are JSON"
        raise ProblemError(MALFORMED, detail)
    return body[: int(length)], body[int(length) :]


def outputs_of(served: ServedModel) -> Mapping[str, str]:
    """What a model answers, and as what."""
    return OUTPUTS | OF_GROUPS if served.detector.calibration.groups else OUTPUTS


def _outputs(served: ServedModel, request: InferenceRequest) -> dict[str, bool]:
    """The outputs asked for, and whether each is to come as bytes."""
    every = (request.parameters or {}).get(ALL_AS_BYTES) is True
    known = outputs_of(served)
    asked = request.outputs or [RequestedOutput(name) for name in known]
    for output in asked:
        if output.name not in known:
            detail = f"no output '{output.name[:100]}'; there are {', '.join(known)}"
            raise ProblemError(INVALID_REQUEST, detail)
    return {one.name: (one.parameters or {}).get(AS_BYTES, every) is True for one in asked}


def answer(
    served: ServedModel, sent: str | None, asked: Mapping[str, bool], found: Detections
) -> Response:
    """The decisions as the tensors asked for: those that come as bytes follow the JSON."""
    tail: list[bytes] = []
    outputs = [_output(name, getattr(found, name), tail if asked[name] else None) for name in asked]
    calibration = served.detector.calibration
    used = {"alpha": calibration.alpha, "threshold": calibration.threshold}
    head = responses.encode(InferenceResponse(served.name, outputs, used, served.version, sent))
    if not any(asked.values()):
        return Response(head, media_type=schemas.JSON)
    length = {HEADER_LENGTH: str(len(head))}
    return Response(b"".join([head, *tail]), headers=length, media_type=OCTETS)


def _output(name: str, values: Any, tail: list[bytes] | None) -> OutputTensor:
    datatype, shape = (OUTPUTS | OF_GROUPS)[name], list(values.shape)
    if datatype == BYTES:
        values = np.array([text or "" for text in values], object)
    if tail is None:
        return OutputTensor(name, shape, datatype, values.tolist())
    tail.append(tensors.to_bytes(values, datatype))
    return OutputTensor(name, shape, datatype, parameters={BINARY_SIZE: len(tail[-1])})


# ---------------------------------------------------------------- routes


def endpoints(service: Scorer) -> dict[str, ProtocolEndpoint]:
    """The scoring routes."""
    endpoint = ProtocolEndpoint(service, check, decode, f"{MODEL}/infer")
    return {f"{path}/infer": endpoint for path in MODELS}


def add_routes(app: FastAPI, store: Store, settings: Settings) -> None:
    """The other routes."""

    @app.get("/v2", **openapi.get("What answers.", ServerMetadata))
    async def server() -> Response:
        return responses.response(
            ServerMetadata("anomaly-vae", __version__, ["binary_tensor_data"])
        )

    @app.get("/v2/health/live", **openapi.get("Whether the process answers.", Live))
    async def live() -> Response:
        return responses.response(Live(True))

    @app.get("/v2/health/ready", **openapi.get("Whether to send requests.", Ready, NOT_READY))
    async def ready() -> Response:
        check_ready(store, settings)
        return responses.response(Ready(True))

    def found(request: Request) -> ServedModel:
        """The model of a path."""
        name, version = (request.path_params.get(part) for part in ("name", "version"))
        served = store.current.get(str(name))
        if served is None:
            raise ProblemError(
                UNKNOWN_MODEL, f"no model '{str(name)[:100]}' is loaded; GET /models"
            )
        check_version(served, version)
        return served

    async def metadata(request: Request) -> Response:
        return responses.response(describe(found(request)))

    async def model_ready(request: Request) -> Response:
        check_ready(store, settings)
        return responses.response(ModelReady(found(request).name, True))

    for path in MODELS:
        said = openapi.get("What a model reads and answers.", ModelMetadata, UNKNOWN_MODEL)
        app.get(path, **said, **_named(path))(metadata)
        said = openapi.get("Whether to send requests.", ModelReady, UNKNOWN_MODEL, NOT_READY)
        app.get(f"{path}/ready", **said, **_named(path))(model_ready)


def describe(served: ServedModel) -> ModelMetadata:
    """What a model reads, in the tensors it is best sent as, and what it answers."""
    columns = served.detector.scorer.schema.columns
    inputs = [_describe(column.name, *column.spec.tensor) for column in columns]
    outputs = [_describe(name, datatype, None) for name, datatype in outputs_of(served).items()]
    versions = [served.version] if served.version else []
    return ModelMetadata(served.name, versions, "anomaly-vae", inputs, outputs)


def _describe(name: str, datatype: str, content: str | None) -> TensorMetadata:
    parameters = {CONTENT_TYPE: content} if content else None
    return TensorMetadata(name, datatype, [-1], parameters)


# ---------------------------------------------------------------- what the document says


def _named(path: str) -> dict[str, Any]:
    return {"openapi_extra": {"parameters": _parameters(path, {})}}


def _parameters(path: str, known: Mapping[str, list[str]]) -> list[openapi.Json]:
    """The parts of a path, and what each may be where that is known."""
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    of = {name: {"enum": known[name]} if known.get(name) else {} for name in names}
    text = {"type": "string"}
    return [
        {"name": name, "in": "path", "required": True, "schema": text | of[name]} for name in names
    ]


def document(current: Sequence[ServedModel], settings: Settings) -> openapi.Part:
    """What the OpenAPI document says of the scoring routes."""
    asked = {one.name: {"value": example_request(one)} for one in current}
    said = {one.name: {"value": _example_answer(one, settings)} for one in current}
    bodies = {
        schemas.JSON: {"schema": openapi.ref(InferenceRequest), "examples": asked},
        OCTETS: {"schema": openapi.BINARY},
    }
    operation = {
        "summary": "Score tensors, by the Open Inference Protocol.",
        "description": DESCRIPTION,
        **openapi.scores(InferenceResponse, said, bodies),
    }
    operation["responses"]["200"]["content"][OCTETS] = {"schema": openapi.BINARY}
    versions = sorted({one.version for one in current if one.version})
    known = {"name": [one.name for one in current], "version": versions}
    length = {"name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0}}
    paths = {
        f"{path}/infer": {"post": {**operation, "operationId": name, "parameters": parameters}}
        for path, name in zip(MODELS, ("infer", "infer_with_version"), strict=True)
        for parameters in [[*_parameters(path, known), length]]
    }
    return openapi.Part(paths, SHAPES)


def example_request(served: ServedModel) -> openapi.Json:
    """A request that works."""
    record, columns = example_record(served), served.detector.scorer.schema.columns
    return {"inputs": [_example(column, record[column.name]) for column in columns]}


def _example(column: Any, cell: Any) -> openapi.Json:
    datatype, content = column.spec.tensor
    tensor = {"name": column.name, "shape": [1], "datatype": datatype}
    cell = bool(cell) if datatype == BOOL and cell is not None else cell
    return {
        **tensor,
        **({"parameters": {CONTENT_TYPE: content}} if content else {}),
        "data": [cell],
    }


def _example_answer(served: ServedModel, settings: Settings) -> Any:
    asking = RequestContext(served, {}, settings.max_records)
    question = decode(asking, msgspec.json.encode(example_request(served)))
    found, _ = detect(served, question.rows, settings)
    return msgspec.json.decode(question.answer(found).body)
