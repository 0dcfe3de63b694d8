"""What arrives together is scored together: one pass of the graph for each tick of the event loop.

A request that comes alone is scored in the next turn of the loop, and those that the same turn
brought go with it. Where the last pass had several, one more turn is let by: it brings, within
microseconds, those that are on their way. A row's score does not hang on the rows beside it
(`anomaly_vae.scoring.scorer`), so neither does an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.monitoring.exchangeability import STATUSES
from anomaly_vae.scoring.detector import Detections
from serving.models.store import ServedModel
from serving.observability.metrics import ModelMetrics
from serving.scoring import responses, schemas
from serving.scoring.row_decoder import RowDecoder, Rows
from serving.scoring.shadow import Shadows

MOST_VALUES = 16_384
"""So many values, rows times columns, are scored in one turn: a few milliseconds."""

Waiting = tuple[Rows, bytes, asyncio.Future[bytes]]
"""Rows, the body that they came in, and where the answer is waited for."""


class ModelBatcher:
    """The way of one model's requests through the process."""

    def __init__(self, served: ServedModel, metrics: ModelMetrics, shadows: Shadows) -> None:
        self.served, self.metrics, self._shadows = served, metrics, shadows
        schema = served.detector.scorer.schema
        self.reader = RowDecoder(schema) if isinstance(schema, TabularSchema) else None
        self.columns = len(served.detector.scorer.encoding.labels)
        self._most = max(MOST_VALUES // self.columns, 1)
        self._heads = {
            status: responses.encode(responses.answer(served, [], status)).removesuffix(b"[]}")
            for status in STATUSES
        }
        self._waiting: list[Waiting] = []
        self._company = False

    def read(self, body: bytes) -> Rows | None:
        """The rows of a body; None where it takes the careful way."""
        return self.reader.read(body) if self.reader else None

    def submit(self, rows: Rows, body: bytes) -> asyncio.Future[bytes]:
        """The answer to the rows of this body, to come with those of the same turn."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._gather if self._company else self._flush)
        self._waiting.append((rows, body, answer))
        return answer

    def _gather(self) -> None:
        """Let one more turn bring what it has."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Answer what waits, as much as fits into one turn."""
        ends = list(accumulate(len(rows) for rows, *_ in self._waiting))
        count = max(int(np.searchsorted(ends, self._most, side="right")), 1)
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._company = count > 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        try:
            found = self._found([row for rows, *_ in taken for row in rows])
            results = responses.results(found, None)
        except Exception:  # noqa: BLE001  # those it is about are told
            self._alone(taken)
            return
        starts = [0, *ends]
        for (*_, answer), start, end in zip(taken, starts, ends, strict=False):
            _settle(answer, self._answer(results[start:end]))
        self.metrics.sizes.observe_many(np.array([len(rows) for rows, *_ in taken]))
        if self._shadows.beside(self.served):  # after the answers, which are sent in the next turn
            asyncio.get_running_loop().call_soon(self._offer, found, [b for _, b, _ in taken], ends)

    def _alone(self, taken: Sequence[Waiting]) -> None:
        """Answer each by itself, so that one which fails takes no other with it."""
        for rows, body, answer in taken:
            try:
                _settle(answer, self.answer(rows, body))
            except Exception as error:  # noqa: BLE001  # it is told
                _settle(answer, error)

    def _offer(self, found: Detections, bodies: Sequence[bytes], ends: Sequence[int]) -> None:
        """Have the shadow see what was found for each body."""
        for body, start, end in zip(bodies, [0, *ends], ends, strict=False):
            self._shadows.offer(self.served, found.part(slice(start, end)), body)

    def answer(self, rows: Rows, body: bytes) -> bytes:
        """The answer to the rows of one body, now."""
        starts = range(0, len(rows), self._most)
        found = Detections.concatenate(
            self._found(rows[start : start + self._most]) for start in starts
        )
        self.metrics.sizes.observe(len(rows))
        self._shadows.offer(self.served, found, body)
        return self._answer(responses.results(found, None))

    def _found(self, rows: Rows) -> Detections:
        assert self.reader, "rows are of tables"
        scorer = self.served.detector.scorer
        start = time.perf_counter()
        x = scorer.encoding.encode(self.reader.batch(rows))
        found = self.decide(x)
        self.metrics.inference.observe(time.perf_counter() - start)
        self.metrics.batches.observe(len(rows))
        return found

    def decide(self, x: Matrix) -> Detections:
        """The decisions on encoded rows, counted."""
        detector = self.served.detector
        found = detector.decide(detector.scorer.score_encoded(x), x)
        self.metrics.observe(found, x)
        return found

    def answered(self, results: list[schemas.Result]) -> schemas.ScoreResponse:
        """These results as an answer."""
        return responses.answer(self.served, results, self.metrics.guarantee.status)

    def _answer(self, results: list[schemas.Result]) -> bytes:
        return b"%b%b}" % (self._heads[self.metrics.guarantee.status], responses.encode(results))


def _settle(answer: asyncio.Future[bytes], result: bytes | Exception) -> None:
    """Hand over a result, unless nobody waits for it any more."""
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)
