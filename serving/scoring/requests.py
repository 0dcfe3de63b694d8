"""Decode and check request bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive

from anomaly_vae.client.types import BadRecord
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.modality import Schema
from serving.problems import (
    INVALID_RECORD,
    INVALID_REQUEST,
    MALFORMED,
    TOO_LARGE,
    TOO_MANY_RECORDS,
    TOO_MUCH_EXPLAINED,
    UNSUPPORTED,
    ProblemError,
)
from serving.scoring.schemas import JSON, JSON_BYTES, ScoreRequest

MAX_ERRORS = 100
"""Maximum number of invalid records that an error response lists."""

Headers = Mapping[bytes, bytes]
T = TypeVar("T")
_decoder = msgspec.json.Decoder(ScoreRequest)


def media_type(headers: Headers) -> tuple[str, bool]:
    """Return the media type of a body, and whether its only parameter, if any, is UTF-8."""
    media, _, parameters = headers.get(b"content-type", b"").decode("latin-1").partition(";")
    charset = parameters.lower().replace('"', "").replace(" ", "")
    return media.strip().lower(), charset in {"", "charset=utf-8", "charset=utf8"}


def check_media_type(headers: Headers) -> None:
    """Refuse everything but uncompressed JSON in UTF-8."""
    if headers.get(b"content-type") == JSON_BYTES and b"content-encoding" not in headers:
        return
    if media_type(headers) != (JSON, True):
        detail = f"this model scores records: send 'Content-Type: {JSON}', in UTF-8"
        raise ProblemError(UNSUPPORTED, detail, headers={"Accept": JSON})
    check_encoding(headers)


def check_encoding(headers: Headers) -> None:
    """Refuse a compressed body."""
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        detail = "send the body without Content-Encoding"
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


def decode(body: bytes, max_records: int) -> ScoreRequest:
    """Decode the request in a body; its records are checked later, by `read_records`."""
    request = parse(_decoder, body)
    if not request.records:
        raise ProblemError(INVALID_REQUEST, "'records' is empty; send at least one record")
    check_count(len(request.records), max_records)
    return request


def parse(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a JSON body."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _unfit_request(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProblemError(MALFORMED, f"not JSON: {error}") from None
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None


def check_count(count: int, limit: int) -> None:
    """Refuse a request with more than ``limit`` records."""
    if count > limit:
        detail = f"{count} records; at most {limit} fit into one request"
        raise ProblemError(TOO_MANY_RECORDS, detail)


def _unfit_request(error: msgspec.ValidationError) -> ProblemError:
    """Convert an error of msgspec (``reason - at `$.records[3][...]` ``), naming the record."""
    reason, _, path = str(error).partition(" - at ")
    reason = reason.replace("`", "'")
    prefix, _, index = path.strip("`").removeprefix("$").partition("[")
    record = index.partition("]")[0]
    if prefix == ".records" and record.isdigit():
        return unfit_records([BadRecord(int(record), None, reason)])
    field = prefix.removeprefix(".")
    return ProblemError(INVALID_REQUEST, f"'{field}': {reason}" if field else reason)


def read_records(schema: Schema, records: Sequence[Mapping[str, Any]]) -> RawBatch:
    """Read records; refuse them all if any of them does not fit the schema."""
    return read_strictly(partial(schema.from_records, records))


def read_strictly(read: Callable[[], RawBatch]) -> RawBatch:
    """Read a batch; refuse it if any record does not fit the schema."""
    try:
        batch = read()
    except RecursionError:
        raise ProblemError(MALFORMED, "the JSON is nested too deeply") from None
    if batch.problems:
        raise unfit_records(
            [BadRecord(problem.row, problem.column, problem.reason) for problem in batch.problems]
        )
    return batch


def unfit_records(bad: Sequence[BadRecord]) -> ProblemError:
    """Return the error for a request with invalid records, which lists the first of them."""
    listed = nsmallest(MAX_ERRORS, bad, key=lambda record: record.record)
    first, more = listed[0], len(bad) - 1
    where = f"record {first.record}" + (f", field '{first.field}'" if first.field else "")
    detail = f"{where}: {first.detail}" + (f" (and {more} more)" if more else "")
    return ProblemError(INVALID_RECORD, detail, bad=listed)


def check_contributions(count: int, limit: int) -> None:
    """Refuse a request that needs more than ``limit`` contributions.

    All contributions are computed, even if only the largest are listed.
    """
    if count > limit:
        detail = f"{count} contributions to compute; at most {limit} at a time: "
        raise ProblemError(TOO_MUCH_EXPLAINED, detail + "explain fewer in one request")
