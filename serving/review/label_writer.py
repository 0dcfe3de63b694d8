"""Write labels to the label store, apart from scoring.

The store is another machine's, perhaps: it may be slow or down. Its requests are therefore counted
and executed apart from those that score, and no health check depends on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from anomaly_vae.errors import StoreError
from serving.http.admission import AdmissionControl
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.problems import STORE_DOWN, ProblemError
from serving.settings import Settings

if TYPE_CHECKING:
    from anomaly_vae.review import Label, LabelStore

T = TypeVar("T")


def check_address(address: str) -> None:
    """Check the address of a label store, if there is one, without connecting to it.

    Raises:
        ConfigError: the address is wrong, or the extra `review` is missing.
    """
    if address:
        from anomaly_vae.review import LabelStore

        LabelStore(address).close()


class LabelWriter:
    """A label store, the thread that writes to it, and the limits on requests that wait for it.

    Raises:
        ConfigError: the address of the store is wrong, or the extra `review` is missing.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        from anomaly_vae.review import LabelStore

        self.store: LabelStore = LabelStore(settings.label_store)
        self.admission = AdmissionControl(settings, metrics)
        self._settings, self._metrics = settings, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="labels")
        self._failed_at = -float("inf")

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on the thread of the store.

        Raises:
            ProblemError: too many requests wait for the store.
        """
        with self.admission.job():
            return await asyncio.wrap_future(self._thread.submit(function, *args))

    def add(self, labels: Sequence[Label]) -> list[bool]:
        """Add labels, all of them or none, and return which of them were new.

        Raises:
            ProblemError: the store cannot be used now.
        """
        if time.monotonic() - self._failed_at < self._settings.retry_after_seconds:
            raise self._down()  # requests that waited for the attempt that failed
        try:
            added = self.store.add(labels)
        except StoreError as error:
            self._note_failure(error)
            raise self._down() from None
        for label, is_new in zip(labels, added, strict=True):
            if is_new:
                self._metrics.labels.labels(label.label).inc()
        return added

    def prepare(self) -> None:
        """Create or update the tables before the first label arrives, if the store is reachable."""
        try:
            self.store.prepare()
        except StoreError as error:
            self._note_failure(error)

    def _note_failure(self, error: StoreError) -> None:
        self._failed_at = time.monotonic()
        self._metrics.label_store_errors.inc()
        fields = {logs.LOG_FIELDS: {"reason": str(error)}}
        logs.failures.warning("the label store cannot be used; scoring goes on", extra=fields)

    def _down(self) -> ProblemError:
        detail = "the label store cannot be used now; send the labels again later"
        return ProblemError(STORE_DOWN, detail, headers=self._settings.retry_headers)

    def start(self) -> None:
        """Prepare the store in the background."""
        self._thread.submit(self.prepare)

    def close(self) -> None:
        """Wait for the labels in progress, and close the connections."""
        self._thread.shutdown()
        self.store.close()
