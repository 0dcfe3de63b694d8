"""Define the base class of request handlers, and the resources that all handlers share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any, ClassVar, TypeVar

from starlette.types import Receive, Scope

from anomaly_vae.client.types import Result
from anomaly_vae.scoring.attribution import MAX_CANDIDATES, MAX_HIDDEN_COLUMNS
from anomaly_vae.scoring.detector import Detections
from serving.http.admission import AdmissionControl, Deadlines
from serving.models.store import Content, ServedModel
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.problems import INVALID_REQUEST, MALFORMED, ProblemError
from serving.scoring import requests, responses
from serving.scoring.observers import Observers
from serving.scoring.windows import WindowStores
from serving.settings import Settings

INLINE_BYTES = 128 * 1024
"""Maximum size of a body that is decoded on the event loop, in bytes; this takes under 1 ms."""
INLINE_VALUES = 4096
"""Maximum number of values, records times columns, that are scored on the event loop; this takes a
few milliseconds."""
EXPLAIN_COST = 1 + MAX_HIDDEN_COLUMNS * MAX_CANDIDATES
"""Cost of explaining a value, as a multiple of the cost of scoring it."""

T = TypeVar("T")


def start_threads(count: int) -> ThreadPoolExecutor:
    """Start all threads of a pool now, as starting one in a request would block the event loop."""
    threads, barrier = ThreadPoolExecutor(count, thread_name_prefix="score"), Barrier(count)
    wait([threads.submit(barrier.wait) for _ in range(count)])
    return threads


class Resources:
    """Limits, worker threads and metrics that all request handlers of a process share."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        observers: Observers,
        windows: WindowStores | None = None,
    ) -> None:
        self.settings, self.metrics, self.observers = settings, metrics, observers
        self.windows = windows
        self.admission = AdmissionControl(settings, metrics)
        self._deadlines = Deadlines(settings.body_seconds)
        self._threads = start_threads(settings.threads)

    def read_body(self, receive: Receive) -> Awaitable[bytes]:
        """Read a body within the limits on its size and time."""
        return self._deadlines.enforce(requests.read_body(receive, self.settings.max_body_bytes))

    async def run_by_size(self, receive: Receive, function: Callable[[bytes], T], body: bytes) -> T:
        """Call a function of a body: on the event loop if it is small, else on a worker thread."""
        if len(body) <= INLINE_BYTES:
            return function(body)
        return await self.run_on_thread(receive, function, body)

    async def run_on_thread(self, receive: Receive, function: Callable[..., T], *args: Any) -> T:
        """Call a function on a worker thread.

        The call is dropped if the client disconnects before a thread is free.

        Raises:
            ProblemError: too many calls are waiting for a thread, or the client disconnected.
        """
        with self.admission.job():
            job = self._threads.submit(function, *args)
            work = asyncio.wrap_future(job)
            disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
            futures: set[asyncio.Future[Any]] = {work, disconnect}
            try:
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                if disconnect.done() and job.cancel():
                    raise ProblemError(MALFORMED, "the client went away")
                return await work
            finally:
                disconnect.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected; call this after its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


class RequestHandler(ABC):
    """A handler of the scoring requests to one model."""

    needs_thread: ClassVar[bool]
    """Whether every request is scored on a worker thread."""

    def __init__(self, model: ServedModel, resources: Resources) -> None:
        self.model, self.resources = model, resources
        self.metrics = resources.metrics.for_model(model)
        self._width = model.width

    def may_need_thread(self, size: int) -> bool:
        """Return whether a body of this size, in bytes, may be scored on a worker thread."""
        return self.needs_thread or size > INLINE_BYTES

    def is_inline(self, count: int, cost: int = 1) -> bool:
        """Return whether ``count`` records are few enough to be scored on the event loop.

        ``cost`` is the cost per value, as a multiple of the cost of scoring.
        """
        return not self.needs_thread and count * self._width * cost <= INLINE_VALUES

    @abstractmethod
    def read_head(self, scope: Scope) -> Any:
        """Read the options in the head of a request to `POST /score`.

        Raises:
            ProblemError: the model does not accept the media type or the query.
        """

    @abstractmethod
    async def answer(
        self, body: bytes, options: Any, receive: Receive, log_fields: logs.LogFields
    ) -> bytes:
        """Return the answer to the body of a request to `POST /score`.

        Args:
            body: the whole body.
            options: what `read_head` returned.
            receive: function that reports when the client disconnects.
            log_fields: fields of the log line about the request; ``records`` is added.
        """

    @abstractmethod
    def decide(self, content: Content) -> Detections:
        """Decide on rows or files and count them."""

    def ignored_keys(self, content: Content) -> Sequence[str]:
        """Return the unknown columns of rows or files as an answer names them.

        Raises:
            ProblemError: there are unknown columns, and the settings refuse them.
        """
        if content.ignored and self.resources.settings.unknown_keys == "refuse":
            detail = requests.explain_unknown_key(content.ignored[0], self.model.schema.names)
            raise ProblemError(INVALID_REQUEST, detail)
        return requests.quoted_keys(content.ignored)

    def encode(self, results: list[Result], ignored: Sequence[str] = (), **optional: Any) -> bytes:
        """Encode results as an answer with these ignored keys and optional fields."""
        status = self.metrics.guarantee.status
        return responses.encode(responses.answer(self.model, results, status, ignored, **optional))
