"""Decode and check request bodies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.types import Receive

from anomaly_vae.client.types import BadRecord
from anomaly_vae.data.schema import RawBatch, RowProblem
from anomaly_vae.messages import nearest
from anomaly_vae.scoring.modality import Schema
from serving.problems import (
    INVALID_RECORD,
    INVALID_REQUEST,
    MALFORMED,
    TOO_LARGE,
    TOO_MANY_RECORDS,
    TOO_MUCH_EXPLAINED,
    UNSUPPORTED,
    Kind,
    ProblemError,
)
from serving.scoring.schemas import JSON, JSON_BYTES, ScoreRequest

MAX_ERRORS = 100
"""Maximum number of invalid records that an error response lists."""

Headers = Mapping[bytes, bytes]
T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
"""Byte-order mark of UTF-8, which some editors and clients write before JSON."""
UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff|\0*[\[{]\0")
"""First bytes of JSON in UTF-16 or UTF-32."""
MAX_NAMED = 100
"""Maximum number of unknown keys that an answer names, and of characters of each."""


class _LenientRequest(ScoreRequest, frozen=True, forbid_unknown_fields=False):
    """A request in which unknown keys are ignored."""


_decoder = msgspec.json.Decoder(ScoreRequest)
_lenient_decoder = msgspec.json.Decoder(_LenientRequest)
keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_decoder: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])
_value_decoder = msgspec.json.Decoder(Any)
_record_decoder = msgspec.json.Decoder(dict[str, Any])
RECORD_PATH = re.compile(
    r"\$\.(?:records|dataframe_records|dataframe_split\.data|instances|inputs(?=\[\d+\]\[))\[(\d+)\]"
)
"""Pattern of msgspec's path to a record, or to a value in one, in the lists of all protocols."""


def media_type(headers: Headers) -> tuple[str, bool]:
    """Return the media type of a body, and whether its only parameter, if any, is UTF-8."""
    media, _, parameters = headers.get(b"content-type", b"").decode("latin-1").partition(";")
    charset = parameters.lower().replace('"', "").replace(" ", "")
    return media.strip().lower(), charset in {"", "charset=utf-8", "charset=utf8"}


def shown_media_type(headers: Headers) -> str:
    """Return the content type of a body as error messages quote it."""
    given = headers.get(b"content-type")
    return "none" if given is None else ascii(given[:MAX_NAMED].decode("latin-1"))


def check_media_type(headers: Headers, subject: str = "this model scores records: ") -> None:
    """Refuse everything but uncompressed JSON in UTF-8; ``subject`` begins the message."""
    if headers.get(b"content-type") == JSON_BYTES and b"content-encoding" not in headers:
        return
    if media_type(headers) != (JSON, True):
        detail = f"{subject}send 'Content-Type: {JSON}', in UTF-8"
        detail += f"; found {shown_media_type(headers)}"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": JSON})
    check_encoding(headers)


def check_encoding(headers: Headers) -> None:
    """Refuse a compressed body."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        named = ascii(encoding[:MAX_NAMED].decode("latin-1"))
        detail = (
            f"Content-Encoding {named} is not supported; send the body without Content-Encoding"
        )
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept-Encoding": "identity"})


def check_query(query: bytes) -> None:
    """Refuse the query parameters that only image models accept."""
    if query and {b"explain", b"heatmap"} & {pair.partition(b"=")[0] for pair in query.split(b"&")}:
        detail = "query: this model scores records: 'explain' goes into the body, 'heatmap' is for"
        raise ProblemError(INVALID_REQUEST, detail + " models of images")


def declared_size(headers: Headers, limit: int) -> int:
    """Return the declared size of a body in bytes, or ``limit`` if it is sent in chunks.

    Raises:
        ProblemError: the body is larger than ``limit``.
    """
    declared = headers.get(b"content-length")
    if declared is None:
        return limit
    if not declared.isdigit() or int(declared) > limit:
        raise _too_large(limit)
    return int(declared)


async def read_body(receive: Receive, limit: int) -> bytes:
    """Read a whole body.

    Raises:
        ProblemError: the body exceeds ``limit`` bytes, or the client disconnected.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProblemError(MALFORMED, "the body ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ProblemError:
    return ProblemError(TOO_LARGE, f"a body may have {limit} bytes; send less at a time")


class DecodedBody(NamedTuple):
    """A request, the faults of its records, and the keys of the request that are unknown.

    Records with a fault lack the values that cannot be decoded. ``bad`` is empty unless the request
    accepts errors by record.
    """

    request: ScoreRequest
    bad: list[BadRecord]
    unknown: list[str]


def decode(body: bytes, max_records: int) -> DecodedBody:
    """Decode the request in a body; its records are checked later, by `read_records`."""
    decoded = _decode(body, max_records)
    if not decoded.request.records:
        raise ProblemError(INVALID_REQUEST, "'records' is empty; send at least one record")
    check_count(len(decoded.request.records), max_records)
    return decoded


def _decode(body: bytes, max_records: int) -> DecodedBody:
    try:
        return DecodedBody(parse(_decoder, body), [], [])
    except UnfitBodyError:
        keys = parse(keys_decoder, body)
    unknown = sorted(keys.keys() - {*ScoreRequest.__struct_fields__})
    try:
        return DecodedBody(parse(_lenient_decoder, body), [], unknown)
    except UnfitBodyError as error:
        if not error.bad:
            raise
    others = {name: raw for name, raw in keys.items() if name != "records"}
    request = parse(_lenient_decoder, msgspec.json.encode({**others, "records": []}))
    raw_records = parse(_raw_decoder, keys["records"])
    check_count(len(raw_records), max_records)
    records, bad = _decode_each(raw_records)
    if bad and request.errors == "refuse":
        raise unfit_records(bad)
    return DecodedBody(msgspec.structs.replace(request, records=records), bad, unknown)


def _decode_each(
    raw_records: Sequence[msgspec.Raw],
) -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """Decode records one by one; return what can be decoded of them, and their faults."""
    records, bad = list[dict[str, Any]](), list[BadRecord]()
    for number, raw in enumerate(raw_records):
        try:
            records.append(parse(_record_decoder, raw))
        except UnfitBodyError as error:
            record, field = _decode_cells(raw)
            records.append(record)
            bad.append(BadRecord(number, field, error.detail))
    return records, bad


def _decode_cells(raw: msgspec.Raw) -> tuple[dict[str, Any], str | None]:
    """Return the values of a record that can be decoded, such as its id, and the first other key.

    If it is no record, there are neither.
    """
    try:
        cells = parse(keys_decoder, raw)
    except UnfitBodyError:
        return {}, None
    values = {name: _decode_cell(cell) for name, cell in cells.items()}
    record = {name: value for name, value in values.items() if value is not msgspec.UNSET}
    return record, next((name for name in values if name not in record), None)


def _decode_cell(raw: msgspec.Raw) -> Any:
    """Return a value, or ``UNSET`` if it cannot be decoded."""
    try:
        return parse(_value_decoder, raw)
    except UnfitBodyError:
        return msgspec.UNSET


def records_at(body: bytes, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Decode the records at these positions of a body that was scored, and no others."""
    records = _raw_decoder.decode(keys_decoder.decode(body)["records"])
    return [_record_decoder.decode(records[row]) for row in rows]


def parse(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    """Decode a JSON body, with or without a byte-order mark."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _unfit_request(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        content = bytes(body)
        if content.startswith(BOM) and not content.startswith(BOM * 2):
            return parse(decoder, content.removeprefix(BOM))
        raise ProblemError(MALFORMED, f"not JSON: {_explain_malformed(content, error)}") from None
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None


def _explain_malformed(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the body is empty"
    if UTF_16.match(body):
        return "the body is in UTF-16 or UTF-32; send UTF-8"
    return str(error)


def check_count(count: int, limit: int, unit: str = "records") -> None:
    """Refuse a request with more than ``limit`` records."""
    if count > limit:
        detail = f"{count} {unit}; at most {limit} fit into one request"
        raise ProblemError(TOO_MANY_RECORDS, detail)


def _unfit_request(error: msgspec.ValidationError) -> ProblemError:
    """Convert an error of msgspec (``reason - at `$.records[3][...]` ``), naming the record."""
    reason, path = split_reason(error)
    if found := RECORD_PATH.match(path):
        return UnfitBodyError(**_unfit([BadRecord(int(found[1]), None, reason)]))
    field = path.partition("[")[0].removeprefix("$").removeprefix(".")
    return UnfitBodyError(INVALID_REQUEST, f"'{field}': {reason}" if field else reason)


def split_reason(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the reason that msgspec gives, and the path to the value."""
    reason, _, path = str(error).partition(" - at ")
    return reason.replace("`", "'"), path.strip("`")


class UnfitBodyError(ProblemError):
    """A body that is JSON but does not fit its type."""


def quoted_keys(keys: Sequence[str]) -> list[str]:
    """Return unknown keys as an answer names them: the first ones, each cut to a maximum length."""
    return [key[:MAX_NAMED] for key in keys[:MAX_NAMED]]


def explain_unknown_key(key: str, known: Iterable[str]) -> str:
    """Explain that a key is unknown, and suggest the known key that it may mean."""
    near = nearest(key, known)
    remedy = f"did you mean '{near}'?" if near else "leave it out"
    return f"unknown key '{key[:MAX_NAMED]}'; {remedy}"


def read_records(schema: Schema, records: Sequence[Mapping[str, Any]]) -> RawBatch:
    """Read records; refuse them all if any of them does not fit the schema."""
    return read_strictly(partial(schema.from_records, records))


def read_strictly(read: Callable[[], RawBatch]) -> RawBatch:
    """Read a batch; refuse it if any record does not fit the schema."""
    batch = read_batch(read)
    if batch.problems:
        raise unfit_records(faults(batch.problems))
    return batch


def faults(problems: Iterable[RowProblem]) -> list[BadRecord]:
    """Return problems of rows as they are answered."""
    return [BadRecord(problem.row, problem.column, problem.reason) for problem in problems]


def read_batch(read: Callable[[], RawBatch]) -> RawBatch:
    """Read a batch, whose records may not fit the schema."""
    try:
        return read()
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None


def unfit_records(
    bad: Sequence[BadRecord], kind: Kind = INVALID_RECORD, unit: str = "record"
) -> ProblemError:
    """Return the error for a request with invalid records, which lists the first of them."""
    return ProblemError(**_unfit(bad, kind, unit))


def _unfit(
    bad: Sequence[BadRecord], kind: Kind = INVALID_RECORD, unit: str = "record"
) -> dict[str, Any]:
    """Return the arguments of an error about invalid records."""
    listed = nsmallest(MAX_ERRORS, bad, key=lambda record: record.record)
    first, more = listed[0], len(bad) - 1
    where = f"{unit} {first.record}" + (f", field '{first.field}'" if first.field else "")
    detail = f"{where}: {first.detail}" + (f" (and {more} more)" if more else "")
    return {"kind": kind, "detail": detail, "bad": listed}


def check_contributions(count: int, limit: int) -> None:
    """Refuse a request that needs more than ``limit`` contributions.

    All contributions are computed, even if only the largest are listed.
    """
    if count > limit:
        detail = f"{count} contributions to compute; at most {limit} at a time: "
        raise ProblemError(TOO_MUCH_EXPLAINED, detail + "explain fewer in one request")
