"""Answer `POST /score` for tables: records in JSON.

`RowDecoder` decodes the usual requests; those with unknown keys, errors or explanations are decoded
by `requests`. Small requests are scored on the event loop, because handing them to a thread
would take longer than scoring them; large requests are scored on a worker thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope

from anomaly_vae.client.types import BadRecord, Result, ResultId
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.messages import shown
from anomaly_vae.scoring.detector import Detections, Explanation, explanations
from serving.models.store import ServedModel
from serving.observability import logs
from serving.paths import HEADERS, REQUESTS
from serving.problems import INVALID_REQUEST, ProblemError
from serving.scoring import requests, responses, schemas, windows
from serving.scoring.batcher import ModelBatcher
from serving.scoring.handlers import EXPLAIN_COST, INLINE_BYTES, RequestHandler, Resources
from serving.scoring.row_decoder import DecodedRequest, RowDecoder
from serving.settings import UnknownKeys

ID_TYPES = get_args(ResultId)
"""Types of ids."""
MAX_WARNINGS = 10
"""Maximum number of unknown keys of a request that warnings name."""
MAX_SUGGESTIONS = 10
"""Maximum number of unknown keys of records for which a column is suggested, which is slow."""


class ReadRecords(NamedTuple):
    """N records: their values, which of them are usable (N,), their faults and their ids.

    ``ids`` is None if no record has an id; an id of a wrong type is not among them.
    """

    batch: RawBatch
    usable: NDArray[np.bool_]
    bad: list[BadRecord]
    ids: list[Any] | None


class RecordHandler(RequestHandler):
    """A handler of the scoring requests to a table model."""

    needs_thread = False

    def __init__(self, model: ServedModel, decoder: RowDecoder, resources: Resources) -> None:
        super().__init__(model, resources)
        self._decoder = decoder
        self._windows = resources.windows.of(model) if resources.windows else None
        parts = self.metrics, resources.observers, self._windows
        self.batcher = ModelBatcher(model, decoder, *parts)

    def read_head(self, scope: Scope) -> Collection[Any]:
        """Refuse media types other than JSON, and query parameters that are only for images.

        Returns:
            The requests in progress, which change while the body is read.
        """
        requests.check_media_type(scope[HEADERS])
        requests.check_query(scope["query_string"])
        in_progress: Collection[Any] = scope.get(REQUESTS, ())
        return in_progress

    async def answer(
        self,
        body: bytes,
        in_progress: Collection[Any],
        receive: Receive,
        log_fields: logs.LogFields,
    ) -> bytes:
        """Answer on the event loop if that is fast enough, else on a worker thread."""
        run_on_thread = self.resources.run_on_thread
        if len(body) > INLINE_BYTES:
            content, log_fields["records"] = await run_on_thread(receive, self._answer_large, body)
            return content
        if decoded := self._decode(body):
            log_fields["records"] = len(decoded.rows)
            if self.is_inline(len(decoded.rows)):
                return await self.batcher.submit(decoded, body, alone=len(in_progress) == 1)
            return await run_on_thread(receive, self.batcher.answer, decoded, body)
        strict = self._decode_strictly(body)
        log_fields["records"] = count = len(strict.request.records)
        if self.is_inline(count, EXPLAIN_COST if strict.request.explain else 1):
            return self._answer_request(strict, body)
        return await run_on_thread(receive, self._answer_request, strict, body)

    def _answer_large(self, body: bytes) -> tuple[bytes, int]:
        """Return the answer to a large body, and its number of records."""
        if decoded := self._decode(body):
            return self.batcher.answer(decoded, body), len(decoded.rows)
        strict = self._decode_strictly(body)
        return self._answer_request(strict, body), len(strict.request.records)

    def _decode(self, body: bytes) -> DecodedRequest | None:
        """Decode a body on the fast path; return None if it needs `_decode_strictly`."""
        decoded = self._decoder.decode(body)
        fits = decoded and len(decoded.rows) <= self.resources.settings.max_records
        return decoded if fits else None

    def _decode_strictly(self, body: bytes) -> requests.DecodedBody:
        """Decode a body, and raise an error that describes what is wrong with it."""
        settings = self.resources.settings
        decoded = requests.decode(body, settings.max_records)
        if decoded.unknown and settings.unknown_keys == "refuse":
            raise ProblemError(INVALID_REQUEST, _explain_request_key(decoded.unknown[0]))
        if decoded.request.explain:
            count = len(decoded.request.records) * self._width
            requests.check_contributions(count, settings.max_contributions)
        return decoded

    def _answer_request(self, decoded: requests.DecodedBody, body: bytes) -> bytes:
        """Return the answer to a decoded request."""
        request = decoded.request
        read = read_records(self.model, decoded, self.resources.settings.unknown_keys)
        if read.bad and request.errors == "refuse":
            raise requests.unfit_records(read.bad)
        results, warnings = self._results(read, request, body) if read.usable.any() else ([], [])
        if read.bad:
            results = responses.with_faults(results, read.usable.tolist(), read.bad, read.ids)
        self.metrics.sizes.observe(len(read.usable))
        self.metrics.failed.inc(int((~read.usable).sum()))
        self.metrics.ignored.inc(len(read.batch.ignored))
        return self.encode(
            results,
            requests.quoted_keys(read.batch.ignored),
            id=request.id,
            warnings=[*warnings_of(decoded, read), *warnings],
        )

    def _results(
        self, read: ReadRecords, request: schemas.ScoreRequest, body: bytes
    ) -> tuple[list[Result], list[str]]:
        """Score the usable records; return their results, and warnings about their windows."""
        batch, ids, reader, records = read.batch, read.ids, None, None
        if read.bad:
            rows = np.flatnonzero(read.usable).tolist()
            batch, reader = batch.take(read.usable), partial(_read_usable, rows)
            records = partial(_usable_records, body, rows)
            ids = ids and [ids[row] for row in rows]
        if request.explain:
            detections, reasons = self._explain(batch, request.max_contributions)
        else:
            detections = self.batcher.decide(batch)
            reasons = None
        self.resources.observers.offer(self.model, detections, body, records, reader)
        return responses.results(detections, reasons, ids), _window_warnings(detections, read)

    def decide(self, content: RawBatch) -> Detections:
        """Decide on rows and count them."""
        return self.batcher.decide(content)

    def _explain(
        self, batch: RawBatch, max_contributions: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decide on rows, with their windows, and explain them; count the rows."""
        if self._windows is None:
            return self._explain_complete(batch, max_contributions)
        prepared = self._windows.prepare(batch)
        detections, reasons = self._explain_complete(prepared.batch, max_contributions)
        return self._windows.finish(prepared, detections), reasons

    def _explain_complete(
        self, batch: RawBatch, max_contributions: int | None
    ) -> tuple[Detections, list[Explanation]]:
        detector = self.model.detector
        parts = detector.scorer.explain(batch)
        detections = detector.decide(parts.score, parts.observed, parts.terms)
        reasons = explanations(detector.scorer, batch, parts, max_contributions)
        self.metrics.observe(detections, parts.observed, batch)
        return detections, reasons


def _window_warnings(detections: Detections, read: ReadRecords) -> list[str]:
    """Return warnings about the windows of the usable records, by their numbers in the request."""
    if detections.window_notes is None:
        return []
    notes = np.zeros(len(read.usable), np.uint8)
    notes[read.usable] = detections.window_notes
    return windows.warnings_of(notes)


# ---------------------------------------------------------------- records


def read_records(
    model: ServedModel, decoded: requests.DecodedBody, unknown_keys: UnknownKeys
) -> ReadRecords:
    """Read the records of a request, and find everything that is wrong with them."""
    records = decoded.request.records
    batch = requests.read_batch(partial(model.schema.from_records, records))
    undecoded = {one.record for one in decoded.bad}
    bad = list(decoded.bad)
    bad += requests.faults(one for one in batch.problems if one.row not in undecoded)
    if batch.ignored and unknown_keys == "refuse":
        bad += _unknown_keys(model.schema.names, frozenset(batch.ignored), records)
    ids = model.id_column and [record.get(model.id_column) for record in records]
    bad += _bad_ids(model.id_column, ids or ())
    usable = np.ones(len(records), bool)
    if bad:
        usable[[one.record for one in bad]] = False
    valid_ids = ids and [one if isinstance(one, ID_TYPES) else None for one in ids]
    return ReadRecords(batch, usable, bad, valid_ids or None)


def _unknown_keys(
    known: Sequence[str], ignored: frozenset[str], records: Sequence[Mapping[str, Any]]
) -> Iterator[BadRecord]:
    """Yield a fault for the first unknown key of each record."""
    reasons: dict[str, str] = {}
    for number, record in enumerate(records):
        for key in sorted(ignored.intersection(record))[:1]:
            if key not in reasons and len(reasons) < MAX_SUGGESTIONS:
                reasons[key] = requests.explain_unknown_key(key, known)
            reason = reasons.get(key, "unknown key; leave it out")
            yield BadRecord(number, key[: requests.MAX_NAMED], reason)


def _bad_ids(column: str | None, ids: Sequence[Any]) -> Iterator[BadRecord]:
    """Yield a fault for each id that is a list or an object."""
    for number, one in enumerate(ids):
        if not isinstance(one, ID_TYPES):
            reason = f"expected an id of text or digits, got {shown(one)}"
            yield BadRecord(number, column, reason)


def warnings_of(decoded: requests.DecodedBody, read: ReadRecords) -> list[str]:
    """Return warnings about unknown keys of the request, and about records without any value."""
    warnings = list(map(_explain_request_key, decoded.unknown[:MAX_WARNINGS]))
    empty = np.flatnonzero(_is_empty(read.batch) & read.usable).tolist()
    if empty:
        text = "no value in any of the model's columns"
        warnings.append(windows.warning_about(empty, text))
    return warnings


def _is_empty(batch: RawBatch) -> NDArray[np.bool_]:
    """Return which of N rows (N,) lack all values."""
    empty = np.ones(len(batch), bool)
    for values in batch.values.values():
        empty &= values.codes < 0 if isinstance(values, Levels) else np.isnan(values)
        if not empty.any():
            break
    return empty


def _explain_request_key(key: str) -> str:
    known = schemas.ScoreRequest.__struct_fields__
    return f"of the request: {requests.explain_unknown_key(key, known)}"


def _usable_records(body: bytes, rows: Sequence[int], some: Sequence[int]) -> list[dict[str, Any]]:
    """Read some of the usable records of a body, which are those in these rows."""
    return requests.records_at(body, [rows[position] for position in some])


def _read_usable(rows: Sequence[int], bodies: Sequence[bytes], shadow: ServedModel) -> RawBatch:
    """Read these records of a single body for a shadow."""
    (body,) = bodies
    records = requests.decode(body, len(body)).request.records
    batch: RawBatch = shadow.schema.from_records([records[row] for row in rows])
    return batch
