"""Answer `POST /invocations`, `GET /ping`, `/health` and `/version` as `mlflow models serve` does.

Requests are JSON in one of four forms (``dataframe_split``, ``dataframe_records``, ``instances``,
``inputs``), or CSV; the answer contains one prediction per row. NaN is a missing value, as MLflow's
client writes it. Unlike in MLflow, a row that does not fit the schema is always an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from anomaly_vae.client.types import BadRecord, Result
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.detector import Detections
from serving import openapi
from serving.models.store import ServedModel, Store
from serving.openapi import DocumentedRoute, text_route
from serving.paths import HEADERS, SCORING_ROUTES
from serving.problems import (
    INVALID_REQUEST,
    MALFORMED,
    NOT_READY,
    UNSUPPORTED,
    ProblemError,
)
from serving.protocols.tensors import from_base64
from serving.scoring import requests, responses, schemas
from serving.scoring.adapters import (
    PendingRows,
    ProtocolEndpoint,
    ProtocolRequest,
    RequestContext,
    Scorer,
    check_ready,
    example_record,
    of_columns,
    of_records,
    pending_rows,
)
from serving.scoring.windows import warnings_of
from serving.settings import Settings

CSV = "text/csv"
PATH = "/invocations"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""Keys of a JSON body under which rows may be sent."""

MISSING_TIMES = frozenset({"", "NaT", "nat", "NAT", "NaN", "nan", "NAN"})
"""Texts that pandas, and hence MLflow, reads as a missing time; its client writes the second."""
STRING_OR_NAN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|NaN|-?Infinity', re.DOTALL)
"""Pattern of strings, which may lack their end, and of the numbers that JSON lacks."""
MLFLOW_VERSION = "3.17.2"
"""Version of MLflow whose scoring protocol these routes implement; `GET /version` returns it."""

DESCRIPTION = """For a service with one model: rows in one of MLflow's four forms, or as CSV. A
value that is absent, null or NaN is missing; unknown columns are ignored; images are base64 in the
column `image`. One row that does not fit the schema refuses the whole request."""

Columns = Mapping[str, Sequence[Any]]


class Split(msgspec.Struct, frozen=True):
    """Rows and the names of their columns; the index is ignored."""

    columns: list[str]
    data: list[list[Any]]
    index: list[Any] | None = None


class InvocationsRequest(msgspec.Struct, frozen=True):
    """A request with rows in one of four forms; ``params`` are ignored."""

    dataframe_split: Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    instances: Any = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    params: Any = None


class Predictions(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision on each row; ``ignored`` names the columns that the model does not know.

    ``warnings`` says what the windows of rows lack, as in the answers of `/score`.
    """

    predictions: list[Result]
    ignored: list[str] = []
    warnings: list[str] = []


_decoder = msgspec.json.Decoder(InvocationsRequest)


# ---------------------------------------------------------------- requests and answers


def check(_: ServedModel, scope: Scope) -> None:
    """Refuse every media type but JSON and CSV in UTF-8."""
    media, plain = requests.media_type(scope[HEADERS])
    if media not in {schemas.JSON, CSV} or not plain:
        detail = f"send 'Content-Type: {schemas.JSON}' or {CSV}, in UTF-8"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": f"{schemas.JSON}, {CSV}"})


def decode(context: RequestContext, body: bytes) -> ProtocolRequest:
    """Decode a body into the rows to score."""
    read = _read_csv if requests.media_type(context.headers)[0] == CSV else _read_json
    return ProtocolRequest(read(context, body), answer)


def answer(detections: Detections, ignored: Sequence[str] = ()) -> Response:
    """Encode the decisions as MLflow encodes those of `anomaly_vae.pyfunc`."""
    warnings = warnings_of(detections.window_notes)
    return responses.response(Predictions(responses.results(detections), list(ignored), warnings))


def _read_json(context: RequestContext, body: bytes) -> PendingRows:
    request = _parse(body)
    given = [form for form in FORMS if getattr(request, form) is not msgspec.UNSET]
    if len(given) != 1:
        given_forms = " and ".join(given) or "none of them"
        detail = f"expected exactly one of {', '.join(FORMS)}; found {given_forms}"
        raise ProblemError(INVALID_REQUEST, detail)
    (form,) = given
    rows = getattr(request, form)
    if isinstance(rows, Split):
        return _of_columns(context, _columns_of(rows.data, rows.columns, form))
    return _read_rows(context, rows, form)


def _parse(body: bytes) -> InvocationsRequest:
    """Decode JSON in which NaN may stand for null, as MLflow's client writes missing values.

    Strings are matched as a whole, so that their contents are not replaced.
    """
    try:
        return requests.parse(_decoder, body)
    except ProblemError as error:
        if error.kind != MALFORMED or (b"N" not in body and b"I" not in body):
            raise
    return requests.parse(_decoder, STRING_OR_NAN.sub(_replace_nan, body))


def _replace_nan(match: re.Match[bytes]) -> bytes:
    text = match[0]
    if text.endswith(b"Infinity"):
        detail = "Infinity is not a value; send null or NaN where a value is missing"
        raise ProblemError(MALFORMED, detail)
    return b"null" if text == b"NaN" else text


def _read_rows(context: RequestContext, rows: Any, form: str) -> PendingRows:
    """Read records, rows with values in the model's column order, columns, or a single record."""
    names = context.model.schema.names
    match rows:
        case [dict(), *_]:
            return _of_records(context, rows, form)
        case [list(), *_]:
            return _of_columns(context, _columns_of(rows, names, form))
        case [_, *_] if len(names) == 1:
            return _of_columns(context, {names[0]: rows})
        case dict() if rows and all(isinstance(cells, list) for cells in rows.values()):
            return _of_columns(context, _check_lengths(rows, form))
        case dict() if rows:
            return _of_records(context, [rows], form)
    detail = f"'{form}': expected a list of records or of rows, or columns; at least one row"
    raise ProblemError(INVALID_REQUEST, detail)


def _of_records(context: RequestContext, records: Sequence[Any], form: str) -> PendingRows:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise _unfit(row, f"'{form}': expected a record like the first")
    if context.model.reads_files:
        names = context.model.schema.names
        columns: dict[str, Sequence[Any]] = dict.fromkeys(chain.from_iterable(records), ())
        columns |= {name: [record.get(name) for record in records] for name in names}
        return _of_columns(context, columns)
    times = _time_columns(context.model)
    return of_records(context, [_without_nat(record, times) for record in records])


def _of_columns(context: RequestContext, columns: Columns) -> PendingRows:
    times = {
        name: [None if _is_missing_time(cell) else cell for cell in columns[name]]
        for name in _time_columns(context.model)
        if name in columns
    }
    return of_columns(context, _decode_files(context.model, {**columns, **times}))


def _time_columns(model: ServedModel) -> list[str]:
    return [column.name for column in model.schema.columns if column.spec.storage == "time"]


def _is_missing_time(cell: Any) -> bool:
    return isinstance(cell, str) and cell in MISSING_TIMES


def _without_nat(record: Mapping[str, Any], times: Sequence[str]) -> Mapping[str, Any]:
    """Return a record whose missing times are null."""
    missing = [name for name in times if _is_missing_time(record.get(name))]
    return {**record, **dict.fromkeys(missing)} if missing else record


def _columns_of(rows: Sequence[Any], names: Sequence[str], form: str) -> Columns:
    """Convert rows, with one value for each of these columns, into columns."""
    for row, cells in enumerate(rows):
        if not isinstance(cells, list) or len(cells) != len(names):
            raise _unfit(row, f"'{form}': expected a list of {len(names)} values")
    if len(set(names)) < len(names):
        raise ProblemError(INVALID_REQUEST, f"'{form}': two columns have one name; rename one")
    return {name: [cells[i] for cells in rows] for i, name in enumerate(names)}


def _check_lengths(columns: dict[str, list[Any]], form: str) -> Columns:
    if len(set(map(len, columns.values()))) > 1:
        raise ProblemError(INVALID_REQUEST, f"'{form}': columns are of different lengths")
    return columns


def _decode_files(model: ServedModel, columns: Columns) -> Columns:
    """Decode base64 columns for a model that reads files; return other columns unchanged."""
    if not model.reads_files:
        return columns
    names = [name for name in model.schema.names if name in columns]
    files = {
        name: [_decode_file(row, name, cell) for row, cell in enumerate(columns[name])]
        for name in names
    }
    return {**columns, **files}


def _decode_file(row: int, name: str, cell: Any) -> bytes:
    try:
        content = from_base64(cell) if isinstance(cell, str) else b""
    except ValueError:
        content = b""
    if not content:
        raise _unfit(row, "expected the content of an image file, in base64", name)
    return content


def _unfit(row: int, reason: str, field: str | None = None) -> ProblemError:
    return requests.unfit_records([BadRecord(row, field, reason)])


# ---------------------------------------------------------------- CSV


def _read_csv(context: RequestContext, body: bytes) -> PendingRows:
    """Read CSV; its cells are converted in the same way as those of CSV files."""
    import pyarrow as pa

    from anomaly_vae.data.arrow import without_markers

    names, *rows = _lines(body)
    columns = _columns_of([row for row in rows if row], names, "CSV")
    if context.model.reads_files:
        return _of_columns(context, columns)
    text = {name: pa.array(cells, pa.string()) for name, cells in columns.items()}
    table = pa.table({name: without_markers(cells) for name, cells in text.items()})

    def read(model: ServedModel) -> RawBatch:
        return requests.read_strictly(partial(model.schema.from_arrow, table))

    def records(rows: Sequence[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = table.take(rows).to_pylist()
        return found

    return pending_rows(context, len(table), read, records)


def _lines(body: bytes) -> list[list[str]]:
    try:
        text = io.StringIO(body.decode("utf-8-sig"), newline="")
        lines = list(csv.reader(text, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        remedy = "; send larger cells as JSON" if "field limit" in str(error) else ""
        raise ProblemError(MALFORMED, f"not CSV: {error}{remedy}") from None
    if not lines:
        raise ProblemError(INVALID_REQUEST, "the body is empty; send a line of names, then rows")
    return lines


# ---------------------------------------------------------------- routes and OpenAPI


def endpoints(scorer: Scorer) -> dict[str, ProtocolEndpoint]:
    """Create the scoring route, by path."""
    return {PATH: ProtocolEndpoint(scorer, check, decode, SCORING_ROUTES[1])}


def routes(store: Store, settings: Settings) -> list[DocumentedRoute]:
    """Create the health checks and `GET /version`."""

    async def ping(_: Request) -> Response:
        check_ready(store, settings)
        return Response("\n", media_type="text/plain")

    async def health(request: Request) -> Response:
        return await ping(request)

    async def version(_: Request) -> Response:
        return Response(MLFLOW_VERSION, media_type="text/plain")

    text = "Whether the service takes requests."
    return [
        text_route("/ping", ping, text, NOT_READY),
        text_route("/health", health, text, NOT_READY),
        text_route("/version", version, "The version of MLflow whose protocol is implemented."),
    ]


def document(models: Sequence[ServedModel], settings: Settings) -> openapi.Part:
    """Describe the scoring route in the OpenAPI document."""
    model = models[0] if len(models) == 1 else None
    answers = {model.name: {"value": _example_answer(model, settings)}} if model else {}
    bodies = {
        schemas.JSON: {
            "schema": openapi.ref(InvocationsRequest),
            "examples": {form: {"value": body} for form, body in _examples(model).items()},
        },
        CSV: {"schema": {"type": "string"}, "examples": {CSV: {"value": _example_csv(model)}}},
    }
    operation = {
        "summary": "Score rows, as `mlflow models serve` does.",
        "description": DESCRIPTION,
        "operationId": "invocations",
        **openapi.scoring_operation(Predictions, answers, bodies),
    }
    return openapi.Part({PATH: {"post": operation}}, [InvocationsRequest, Predictions])


def _examples(model: ServedModel | None) -> dict[str, Any]:
    """Return a valid example request in each form."""
    if model is None:
        return {}
    record = example_record(model)
    columns = {name: [cell] for name, cell in record.items()}
    split = {"columns": list(record), "data": [list(record.values())]}
    values = ([record], [record], columns)
    return {FORMS[0]: {FORMS[0]: split}} | {
        form: {form: value} for form, value in zip(FORMS[1:], values, strict=True)
    }


def _example_csv(model: ServedModel | None) -> str:
    text = io.StringIO(newline="")
    record = example_record(model) if model else {}
    lines = csv.DictWriter(text, record, lineterminator="\n")
    lines.writeheader()
    lines.writerow(record)
    return text.getvalue()


def _example_answer(model: ServedModel, settings: Settings) -> Any:
    context = RequestContext(model, {}, settings.max_records)
    rows = _of_records(context, [example_record(model)], FORMS[1])
    detections = model.detect(rows.read(model), settings)
    return msgspec.json.decode(answer(detections).body)
