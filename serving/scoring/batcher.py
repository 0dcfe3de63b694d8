"""Score requests that arrive together in one pass of the graph (micro-batching).

A request is scored in the next iteration of the event loop, together with all others that arrived
in the same iteration; if no other is in progress, it is scored at once. If the previous pass had
several requests, the batcher waits one iteration longer, which takes microseconds, to collect more.
A row's score does not depend on the other rows of its batch (`anomaly_vae.scoring.scorer`), so
batching does not change any answer.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from anomaly_vae.client.types import Result
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.monitoring.exchangeability import STATUSES
from anomaly_vae.scoring.detector import Decision, Detections
from anomaly_vae.scoring.row_encoder import RowEncoder
from serving.models.store import ServedModel
from serving.observability.metrics import ModelMetrics
from serving.scoring import responses
from serving.scoring.observers import Observers
from serving.scoring.row_decoder import DecodedRequest, Ids, Row, RowDecoder, Rows
from serving.scoring.schemas import DecidedResult, RequestId
from serving.scoring.windows import ModelWindows, warnings_of

MAX_VALUES = 16_384
"""Maximum number of values, rows times columns, in one pass, which takes a few milliseconds."""


class Pending(NamedTuple):
    """A request that waits for the next pass."""

    rows: Rows
    request: DecodedRequest
    body: bytes
    answer: asyncio.Future[bytes]


class ModelBatcher:
    """The requests to one table model that wait for the next pass."""

    def __init__(
        self,
        model: ServedModel,
        decoder: RowDecoder,
        metrics: ModelMetrics,
        observers: Observers,
        windows: ModelWindows | None = None,
    ) -> None:
        self.decoder, self._windows = decoder, windows
        self._model, self._metrics, self._observers = model, metrics, observers
        self._max_rows = max(MAX_VALUES // model.width, 1)
        self._heads = {
            status: responses.encode(responses.answer(model, [], status)).removesuffix(b"[]}")
            for status in STATUSES
        }
        in_batches = windows or model.detector.calibration.groups
        encoding = None if in_batches else model.table_encoding
        self._encoder = RowEncoder(encoding, decoder.names) if encoding else None
        self._pending: list[Pending] = []
        self._last_had_several = False

    def submit(
        self, request: DecodedRequest, body: bytes, alone: bool = False
    ) -> asyncio.Future[bytes]:
        """Queue a request for the next pass, and return a future of the answer.

        Args:
            request: the request.
            body: its body.
            alone: whether no other request is in progress. There is nothing to wait for then.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._pending.append(Pending(request.rows, request, body, answer))
        if len(self._pending) > 1:
            return answer  # a pass is due already
        if self._last_had_several:
            loop.call_soon(self._flush_later)
        elif alone:
            self._flush()
        else:
            loop.call_soon(self._flush)
        return answer

    def _flush_later(self) -> None:
        """Flush in the next iteration of the event loop, so that more requests can arrive."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Answer as many pending requests as fit into one pass."""
        if self._encoder and len(self._pending) == 1 and len(self._pending[0].rows) == 1:
            self._last_had_several = False
            self._flush_alone(self._encoder, self._pending.pop())
            return
        ends = list(accumulate(len(pending.rows) for pending in self._pending))
        count = max(bisect_right(ends, self._max_rows), 1)
        batch, self._pending = self._pending[:count], self._pending[count:]
        self._last_had_several = count > 1
        if self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        try:
            detections = self._detect([row for pending in batch for row in pending.rows])
            results = responses.results(detections, ids=_joined_ids(batch))
        except Exception:  # noqa: BLE001  # each request gets its own answer or error
            self._answer_separately(batch)
            return
        starts = [0, *ends]
        for pending, start, end in zip(batch, starts, ends, strict=False):
            notes = detections.window_notes
            warnings = [] if notes is None else warnings_of(notes[start:end])
            content = self._encode(results[start:end], pending.request.request_id, warnings)
            _resolve(pending.answer, content)
        self._metrics.sizes.observe_many([len(pending.rows) for pending in batch])
        if self._observers.watches(self._model):  # later, so that the answers are sent first
            bodies = [pending.body for pending in batch]
            asyncio.get_running_loop().call_soon(self._offer, detections, bodies, ends)

    def _flush_alone(self, encoder: RowEncoder, pending: Pending) -> None:
        """Answer a lone request with one row."""
        request = pending.request
        try:
            decision = self._decide_alone(encoder, request.rows[0])
            result = DecidedResult(
                score=decision.score,
                p_value=decision.p_value,
                is_anomaly=decision.is_anomaly,
                unusual_input=decision.unusual_input,
                id=request.ids[0] if request.ids else None,
            )
            content = self._encode([result], request.request_id, ())
        except Exception as error:  # noqa: BLE001  # the request's own error
            _resolve(pending.answer, error)
            return
        _resolve(pending.answer, content)
        self._metrics.sizes.observe(1)
        if self._observers.watches(self._model):  # later, so that the answer is sent first
            detections = Detections.of([decision], self._model.detector.unusual is not None)
            asyncio.get_running_loop().call_soon(self._offer, detections, [pending.body], [1])

    def _answer_separately(self, batch: Sequence[Pending]) -> None:
        """Answer the requests one by one, so that a failure affects only its own request."""
        for _, request, body, answer in batch:
            try:
                _resolve(answer, self.answer(request, body))
            except Exception as error:  # noqa: BLE001  # the request's own error
                _resolve(answer, error)

    def _offer(self, detections: Detections, bodies: Sequence[bytes], ends: Sequence[int]) -> None:
        """Tell the observers of the bodies and the decisions on their rows."""
        self._observers.offer_together(self._model, detections, bodies, ends[: len(bodies)])

    def answer(self, request: DecodedRequest, body: bytes) -> bytes:
        """Score the rows of one body now and return its answer."""
        rows = request.rows
        starts = range(0, len(rows), self._max_rows)
        detections = Detections.concatenate(
            self._detect(rows[start : start + self._max_rows]) for start in starts
        )
        self._metrics.sizes.observe(len(rows))
        self._observers.offer(self._model, detections, body)
        results = responses.results(detections, ids=request.ids)
        warnings = warnings_of(detections.window_notes)
        return self._encode(results, request.request_id, warnings)

    def _detect(self, rows: Rows) -> Detections:
        start = time.perf_counter()
        detections = self.decide(self.decoder.batch(rows))
        self._metrics.inference.observe(time.perf_counter() - start)
        self._metrics.batches.observe(len(rows))
        return detections

    def _decide_alone(self, encoder: RowEncoder, row: Row) -> Decision:
        """Decide on a lone row without windows in as few steps as possible, and count it."""
        start = time.perf_counter()
        cells = self.decoder.plain(row)
        x, is_complete = encoder.encode(cells), None not in cells
        decision = self._model.detector.decide_alone(x, is_complete)
        self._metrics.observe_alone(decision, x, is_complete, self.decoder.times(row))
        self._metrics.inference.observe(time.perf_counter() - start)
        self._metrics.batches.observe(1)
        return decision

    def decide(self, batch: RawBatch) -> Detections:
        """Decide on rows, with their windows, and count them."""
        if self._windows is None:
            return self._decide(batch)
        prepared = self._windows.prepare(batch)
        return self._windows.finish(prepared, self._decide(prepared.batch))

    def _decide(self, batch: RawBatch) -> Detections:
        detector, x = self._model.detector, self._model.encoding.encode(batch)
        detections = detector.detect_encoded(x)
        self._metrics.observe(detections, x, batch)
        return detections

    def _encode(
        self, results: list[Result], request_id: RequestId, warnings: Sequence[str]
    ) -> bytes:
        status = self._metrics.guarantee.status
        if warnings:
            optional: dict[str, Any] = {"id": request_id, "warnings": warnings}
            return responses.encode(responses.answer(self._model, results, status, **optional))
        head = self._heads[status]
        if request_id is not None:
            head = b'{"id":%b,%b' % (responses.encode(request_id), head.removeprefix(b"{"))
        return b"%b%b}" % (head, responses.encode(results))


def _joined_ids(batch: Sequence[Pending]) -> Ids | None:
    """Return the ids of all rows of several requests; None if no row has one."""
    if len(batch) == 1:
        return batch[0].request.ids
    ids = [pending.request.ids or [None] * len(pending.rows) for pending in batch]
    return list(chain.from_iterable(ids))


def _resolve(answer: asyncio.Future[bytes], result: bytes | Exception) -> None:
    """Set the result of a request, unless its client has disconnected."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
