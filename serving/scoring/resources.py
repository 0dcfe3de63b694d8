"""Share the limits, worker threads and metrics of a process among its request handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any, TypeVar

from starlette.types import Receive

from serving.http.admission import AdmissionControl, Deadlines
from serving.observability.metrics import Metrics
from serving.problems import MALFORMED, ProblemError
from serving.scoring import requests
from serving.scoring.shadow import Shadows
from serving.settings import Settings

T = TypeVar("T")


def start_threads(count: int) -> ThreadPoolExecutor:
    """Start all threads of a pool now: starting one during a request would block the event loop."""
    threads, together = ThreadPoolExecutor(count, thread_name_prefix="score"), Barrier(count)
    wait([threads.submit(together.wait) for _ in range(count)])
    return threads


class Resources:
    """What all request handlers of a process share."""

    def __init__(self, settings: Settings, metrics: Metrics, shadows: Shadows) -> None:
        self.settings, self.metrics, self.shadows = settings, metrics, shadows
        self.admission = AdmissionControl(settings, metrics)
        self._deadlines = Deadlines(settings.body_seconds)
        self._threads = start_threads(settings.threads)

    def read_body(self, receive: Receive) -> Awaitable[bytes]:
        """Read a body within the limits on its size and time."""
        return self._deadlines.keep(requests.read_body(receive, self.settings.max_body_bytes))

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
            either: set[asyncio.Future[Any]] = {work, disconnect}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if disconnect.done() and job.cancel():
                    raise ProblemError(MALFORMED, "the client went away")
                return await work
            finally:
                disconnect.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
