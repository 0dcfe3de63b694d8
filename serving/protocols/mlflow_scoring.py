"""`POST /invocations` and `GET /ping`, as `mlflow models serve` answers them.

Four forms of JSON (``dataframe_split``, ``dataframe_records``, ``instances``, ``inputs``) and CSV
are read; the answer is one prediction for each row. What is wrong with a row is a problem like
any other, where MLflow would guess or fail.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Scope

from anomaly_vae.scoring.detector import Detections
from serving import openapi
from serving.models.store import IMAGE, ServedModel, Store
from serving.paths import HEADERS, SCORING
from serving.problems import (
    INVALID_REQUEST,
    MALFORMED,
    NOT_READY,
    UNSUPPORTED,
    BadRecord,
    ProblemError,
)
from serving.protocols.tensors import from_base64
from serving.scoring import requests, responses, schemas
from serving.scoring.adapters import (
    ProtocolEndpoint,
    ProtocolRequest,
    RequestContext,
    Rows,
    Scorer,
    check_ready,
    detect,
    example_record,
    of_columns,
    of_records,
    rows_of,
)
from serving.settings import Settings

CSV = "text/csv"
PATH = "/invocations"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")

DESCRIPTION = """The one model that is served reads rows in one of MLflow's four forms, or as CSV.
A column or a cell that is absent or null is missing; unknown columns are ignored; images are
base64 in the column `image`. One row that does not fit refuses the whole request."""

Columns = Mapping[str, Sequence[Any]]


class Split(msgspec.Struct, frozen=True):
    """Rows, and what their columns are called; the index means nothing."""

    columns: list[str]
    data: list[list[Any]]
    index: list[Any] | None = None


class InvocationsRequest(msgspec.Struct, frozen=True):
    """Rows in one of four forms; ``params`` are MLflow's, and mean nothing here."""

    dataframe_split: Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    instances: Any = msgspec.UNSET
    inputs: Any = msgspec.UNSET
    params: Any = None


class Predictions(msgspec.Struct, frozen=True):
    """The decision on each row."""

    predictions: list[schemas.Result]


_decoder = msgspec.json.Decoder(InvocationsRequest)


# ---------------------------------------------------------------- requests and answers


def check(_: ServedModel, scope: Scope) -> None:
    """Refuse what is neither JSON nor CSV, in UTF-8."""
    media, plain = requests.media_type(scope[HEADERS])
    if media not in {schemas.JSON, CSV} or not plain:
        detail = f"send 'Content-Type: {schemas.JSON}' or {CSV}, in UTF-8"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": f"{schemas.JSON}, {CSV}"})


def decode(asking: RequestContext, body: bytes) -> ProtocolRequest:
    """A body → what it asks."""
    read = _read_csv if requests.media_type(asking.headers)[0] == CSV else _read_json
    return ProtocolRequest(read(asking, body), answer)


def answer(found: Detections) -> Response:
    """The decisions as MLflow gives those of `anomaly_vae.pyfunc`."""
    return responses.response(Predictions(responses.results(found, None)))


def _read_json(asking: RequestContext, body: bytes) -> Rows:
    request = requests.parse(_decoder, body)
    given = [form for form in FORMS if getattr(request, form) is not msgspec.UNSET]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        detail = f"expected exactly one of {', '.join(FORMS)}; found {found}"
        raise ProblemError(INVALID_REQUEST, detail)
    (form,) = given
    rows = getattr(request, form)
    if isinstance(rows, Split):
        return _of_columns(asking, _columns_of(rows.data, rows.columns, form))
    return _of_any(asking, rows, form)


def _of_any(asking: RequestContext, rows: Any, form: str) -> Rows:
    """Records, rows in the order of the model's columns, columns, or one record."""
    names = asking.served.detector.scorer.schema.names
    match rows:
        case [dict(), *_]:
            return _of_records(asking, rows, form)
        case [list(), *_]:
            return _of_columns(asking, _columns_of(rows, names, form))
        case [_, *_] if len(names) == 1:
            return _of_columns(asking, {names[0]: rows})
        case dict() if rows and all(isinstance(cells, list) for cells in rows.values()):
            return _of_columns(asking, _even(rows, form))
        case dict() if rows:
            return _of_records(asking, [rows], form)
    detail = f"'{form}': expected a list of records or of rows, or columns; at least one row"
    raise ProblemError(INVALID_REQUEST, detail)


def _of_records(asking: RequestContext, records: Sequence[Any], form: str) -> Rows:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise _unfit(row, f"'{form}': expected a record like the first")
    if asking.served.kind == IMAGE:
        return _of_columns(asking, {IMAGE: [one.get(IMAGE) for one in records]})
    return of_records(asking, records)


def _of_columns(asking: RequestContext, columns: Columns) -> Rows:
    return of_columns(asking, _decoded(columns) if asking.served.kind == IMAGE else columns)


def _columns_of(rows: Sequence[Any], names: Sequence[str], form: str) -> Columns:
    """Rows, each with a value for each of these columns."""
    for row, cells in enumerate(rows):
        if not isinstance(cells, list) or len(cells) != len(names):
            raise _unfit(row, f"'{form}': expected a list of {len(names)} values")
    if len(set(names)) < len(names):
        raise ProblemError(INVALID_REQUEST, f"'{form}': two columns have one name; rename one")
    return {name: [cells[i] for cells in rows] for i, name in enumerate(names)}


def _even(columns: dict[str, list[Any]], form: str) -> Columns:
    if len(set(map(len, columns.values()))) > 1:
        raise ProblemError(INVALID_REQUEST, f"'{form}': columns are of different lengths")
    return columns


def _decoded(columns: Columns) -> Columns:
    """The column of images, whose files are written in base64."""
    if IMAGE not in columns:
        return columns
    return {**columns, IMAGE: [_file(row, cell) for row, cell in enumerate(columns[IMAGE])]}


def _file(row: int, cell: Any) -> bytes:
    try:
        content = from_base64(cell) if isinstance(cell, str) else b""
    except ValueError:
        content = b""
    if not content:
        raise _unfit(row, "expected the content of an image file, in base64", IMAGE)
    return content


def _unfit(row: int, reason: str, field: str | None = None) -> ProblemError:
    return requests.unfit_records([BadRecord(row, field, reason)])


# ---------------------------------------------------------------- CSV


def _read_csv(asking: RequestContext, body: bytes) -> Rows:
    """Cells are text, and read as they are from files."""
    import pyarrow as pa

    names, *rows = _lines(body)
    columns = _columns_of([row for row in rows if row], names, "CSV")
    if asking.served.kind == IMAGE:
        return _of_columns(asking, columns)
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    return rows_of(
        asking, len(table), lambda schema: requests.fitting(partial(schema.from_arrow, table))
    )


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


# ---------------------------------------------------------------- routes


def endpoints(service: Scorer) -> dict[str, ProtocolEndpoint]:
    """The scoring route."""
    return {PATH: ProtocolEndpoint(service, check, decode, SCORING[1])}


def add_routes(app: FastAPI, store: Store, settings: Settings) -> None:
    """The other route."""

    @app.get("/ping", **openapi.text("Whether to send requests.", NOT_READY))
    async def ping() -> Response:
        check_ready(store, settings)
        return Response("\n", media_type="text/plain")


def document(current: Sequence[ServedModel], settings: Settings) -> openapi.Part:
    """What the OpenAPI document says of the scoring route."""
    only = current[0] if len(current) == 1 else None
    said = {only.name: {"value": _example_answer(only, settings)}} if only else {}
    bodies = {
        schemas.JSON: {
            "schema": openapi.ref(InvocationsRequest),
            "examples": {form: {"value": body} for form, body in _examples(only).items()},
        },
        CSV: {"schema": {"type": "string"}, "examples": {CSV: {"value": _example_csv(only)}}},
    }
    operation = {
        "summary": "Score rows, as `mlflow models serve` does.",
        "description": DESCRIPTION,
        "operationId": "invocations",
        **openapi.scores(Predictions, said, bodies),
    }
    return openapi.Part({PATH: {"post": operation}}, [InvocationsRequest, Predictions])


def _examples(only: ServedModel | None) -> dict[str, Any]:
    """A request of each form that works."""
    if only is None:
        return {}
    record = example_record(only)
    columns = {name: [cell] for name, cell in record.items()}
    split = {"columns": list(record), "data": [list(record.values())]}
    values = ([record], [record], columns)
    return {FORMS[0]: {FORMS[0]: split}} | {
        form: {form: value} for form, value in zip(FORMS[1:], values, strict=True)
    }


def _example_csv(only: ServedModel | None) -> str:
    text = io.StringIO(newline="")
    record = example_record(only) if only else {}
    lines = csv.DictWriter(text, record, lineterminator="\n")
    lines.writeheader()
    lines.writerow(record)
    return text.getvalue()


def _example_answer(only: ServedModel, settings: Settings) -> Any:
    asking = RequestContext(only, {}, settings.max_records)
    found, _ = detect(only, _of_records(asking, [example_record(only)], FORMS[1]), settings)
    return msgspec.json.decode(answer(found).body)
