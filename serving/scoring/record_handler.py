"""Answer `POST /score` for tables: records in JSON.

`RowDecoder` decodes the usual requests; those with unknown keys, errors or explanations are decoded
again by `requests`. Small requests are scored on the event loop, because handing them to a thread
would take longer than scoring them; large requests are scored on a worker thread.
"""

from __future__ import annotations

from starlette.types import Receive, Scope

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.detector import Detections, Explanation, explanations
from serving.models.store import ServedModel
from serving.observability import logs
from serving.paths import HEADERS
from serving.scoring import requests, responses, schemas
from serving.scoring.batcher import ModelBatcher
from serving.scoring.handlers import EXPLAIN_COST, INLINE_BYTES, RequestHandler, Resources
from serving.scoring.row_decoder import RowDecoder, Rows


class RecordHandler(RequestHandler):
    """A handler of the scoring requests to a table model."""

    needs_thread = False

    def __init__(self, model: ServedModel, decoder: RowDecoder, resources: Resources) -> None:
        super().__init__(model, resources)
        self._decoder = decoder
        self.batcher = ModelBatcher(model, decoder, self.metrics, resources.shadows)

    def read_head(self, scope: Scope) -> None:
        """Refuse media types other than JSON, and query parameters that are only for images."""
        requests.check_media_type(scope[HEADERS])
        requests.check_query(scope["query_string"])

    async def answer(
        self, body: bytes, _: None, receive: Receive, log_fields: logs.LogFields
    ) -> bytes:
        """Answer on the event loop if that is fast enough, else on a worker thread."""
        run_on_thread = self.resources.run_on_thread
        if len(body) > INLINE_BYTES:
            content, log_fields["records"] = await run_on_thread(receive, self._answer_large, body)
            return content
        if rows := self._decode(body):
            log_fields["records"] = len(rows)
            if self.is_inline(len(rows)):
                return await self.batcher.submit(rows, body)
            return await run_on_thread(receive, self.batcher.answer, rows, body)
        request = self._decode_strictly(body)
        log_fields["records"] = len(request.records)
        if self.is_inline(len(request.records), EXPLAIN_COST if request.explain else 1):
            return self._answer_request(request, body)
        return await run_on_thread(receive, self._answer_request, request, body)

    def _answer_large(self, body: bytes) -> tuple[bytes, int]:
        """Return the answer to a large body, and its number of records."""
        if rows := self._decode(body):
            return self.batcher.answer(rows, body), len(rows)
        request = self._decode_strictly(body)
        return self._answer_request(request, body), len(request.records)

    def _decode(self, body: bytes) -> Rows | None:
        """Decode a body on the fast path; return None if it needs `_decode_strictly`."""
        rows = self._decoder.decode(body)
        return rows if rows and len(rows) <= self.resources.settings.max_records else None

    def _decode_strictly(self, body: bytes) -> schemas.ScoreRequest:
        """Decode a body, and raise an error that describes what is wrong with it."""
        settings = self.resources.settings
        request = requests.decode(body, settings.max_records)
        if request.explain:
            count = len(request.records) * self._width
            requests.check_contributions(count, settings.max_contributions)
        return request

    def _answer_request(self, request: schemas.ScoreRequest, body: bytes) -> bytes:
        """Return the answer to a decoded request."""
        batch = requests.read_records(self.model.schema, request.records)
        if request.explain:
            detections, reasons = self._explain(batch, request.max_contributions)
        else:
            detections, reasons = self.decide(batch), None
        self.metrics.sizes.observe(len(batch))
        self.resources.shadows.offer(self.model, detections, body)
        return self.encode(responses.results(detections, reasons))

    def decide(self, content: RawBatch) -> Detections:
        """Decide on rows; count the rows and their unknown keys."""
        detections = self.batcher.decide(self.model.encoding.encode(content))
        self.metrics.ignored.inc(len(content.ignored))
        return detections

    def _explain(
        self, batch: RawBatch, max_contributions: int | None
    ) -> tuple[Detections, list[Explanation]]:
        """Decide on rows and explain them; count the rows and their unknown keys."""
        detector = self.model.detector
        parts = detector.scorer.explain(batch)
        detections = detector.decide(parts.score, parts.observed)
        reasons = explanations(detector.scorer, batch, parts, max_contributions)
        self.metrics.observe(detections, parts.observed)
        self.metrics.ignored.inc(len(batch.ignored))
        return detections, reasons
