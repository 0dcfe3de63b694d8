"""Write cases to their store, or keep them on disk while it is down."""

from __future__ import annotations

import logging
import shutil
import time
from typing import TYPE_CHECKING

from anomaly_vae.errors import StoreError
from serving.models.store import Store
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.review.spool import Batch, Spool
from serving.review.webhook import Webhook
from serving.settings import Settings

if TYPE_CHECKING:
    from anomaly_vae.review import CaseRecord, CaseStore, GuaranteeLog

log = logging.getLogger("serving.review.cases")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Shortest and longest time after a failure during which the store is left alone, in seconds."""
STATS_SECONDS = 30.0
"""Time between two looks at the state of the review, in seconds."""
PRUNE_SECONDS = 3600.0
"""Time between two deletions of old cases, in seconds."""


def check_case_settings(settings: Settings) -> None:
    """Check the settings of cases without connecting to the store.

    Raises:
        ConfigError: an address is wrong, or the extra `review` is missing.
    """
    if settings.cases:
        from anomaly_vae.review import CaseStore

        CaseStore(settings.cases, settings.labels).close()


class CaseWriter:
    """The case store of a process; its methods are called by one thread.

    Raises:
        ConfigError: the address of the store is wrong, or the extra `review` is missing.
    """

    def __init__(self, models: Store, settings: Settings, metrics: Metrics) -> None:
        from anomaly_vae.review import CaseStore, GuaranteeLog

        self.store: CaseStore = CaseStore(settings.cases, settings.labels)
        self.guarantees: GuaranteeLog = GuaranteeLog(settings.cases)
        self.spool = Spool(settings.cases_spool, str(self.store), settings.cases_spool_bytes)
        self.webhook = Webhook(settings, metrics) if settings.webhook else None
        self._models, self._settings, self._metrics = models, settings, metrics
        self.is_down = False
        self._pause, self._retry_at = 0.0, -float("inf")
        self._stats_at = self._prune_at = -float("inf")
        metrics.start_cases(models.current)

    def write(self, batch: Batch) -> bool:
        """Store a batch, or keep it on disk; return False if neither is possible."""
        if self._store(batch):
            return True
        kept = self.spool.put(batch)
        self._metrics.spooled.set(self.spool.size)
        return kept

    def _store(self, batch: Batch) -> bool:
        if time.monotonic() < self._retry_at:
            return False
        try:
            records = self.store.record(batch.cases) if batch.cases else []
            if batch.counts:
                self.store.add_p_values(batch.counts, batch.source)
        except StoreError as error:
            self._note_failure(error)
            return False
        self._note_success()
        for record in filter(None, records):
            self._count(record)
        return True

    def _count(self, record: CaseRecord) -> None:
        case = record.case
        self._metrics.cases.labels(case.model, case.kind).inc()
        if case.kind != "flagged":
            return
        if case.snooze is not None:
            self._metrics.suppressed.labels(case.model).inc()
        elif self.webhook:
            self.webhook.announce(record)

    def _note_failure(self, error: StoreError) -> None:
        self._metrics.case_store_errors.inc()
        if not self.is_down:
            fields = {logs.LOG_FIELDS: {"reason": str(error)}}
            log.warning("the case store cannot be used; scoring goes on", extra=fields)
        self.is_down = True
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._retry_at = time.monotonic() + self._pause

    def _note_success(self) -> None:
        if self.is_down:
            log.warning("the case store can be used again")
        self.is_down, self._pause = False, 0.0

    # ------------------------------------------------------------ from time to time

    def maintain(self) -> None:
        """Store the cases that wait on disk, look at the state of the review, delete old cases.

        One worker process of a machine does this.
        """
        now = time.monotonic()
        if now < self._retry_at or not self.spool.is_leader():
            return
        if not self._empty_spool():
            return
        try:
            if now >= self._stats_at:
                self._stats_at = now + STATS_SECONDS
                self._record_stats()
                self._note_guarantees()
            if now >= self._prune_at:
                self._prune_at = now + PRUNE_SECONDS
                self._prune()
        except StoreError as error:
            self._note_failure(error)
        else:
            self._note_success()

    def _empty_spool(self) -> bool:
        """Store the batches on disk; return False if the store cannot be used."""
        is_usable = True
        for path, batch in self.spool.waiting():
            if batch is None:
                self.spool.set_aside(path)
                self._metrics.dropped_cases["failed"].inc()
            elif self._store(batch):
                self.spool.remove(path)
            elif self._answers():  # it is the batch that cannot be stored
                self.spool.set_aside(path)
                self._metrics.dropped_cases["failed"].inc(len(batch.cases))
            else:
                is_usable = False
                break
        self._metrics.spooled.set(self.spool.size)
        return is_usable

    def _answers(self) -> bool:
        """Return whether the store can be used at all."""
        try:
            self.store.prepare()
            self.store.snoozes()
        except StoreError:
            return False
        self._note_success()
        return True

    def _record_stats(self) -> None:
        self.store.prepare()
        for model in self._models.current:
            stats = self.store.stats(model)
            oldest, flags = stats.oldest_open, stats.flags
            age = 0.0 if oldest is None else max(time.time() - oldest, 0.0)
            values = {
                "open_cases": float(stats.statuses["open"]),
                "oldest_unreviewed_flag_seconds": age,
                "reviewed_flags": float(flags.reviewed),
                "reviewed_precision_ratio": flags.value,
                "reviewed_precision_lower_ratio": flags.lower,
                "reviewed_precision_upper_ratio": flags.upper,
            }
            self._metrics.record_review(model, values)

    def _note_guarantees(self) -> None:
        """Store the state of each guarantee that has changed."""
        for model in self._models.current.values():
            status = self._metrics.guarantees.tracker(model).status
            self.guarantees.note(model.name, model.version, status)

    def _prune(self) -> None:
        if not self._settings.cases_days:
            return
        pruned = self.store.prune(self._settings.cases_days)
        if folder := self._settings.cases_images:
            for name in pruned.images:
                shutil.rmtree(folder / name, ignore_errors=True)

    def close(self) -> None:
        """Close the connections and stop the webhooks."""
        if self.webhook:
            self.webhook.close()
        self.spool.close()
        self.guarantees.close()
        self.store.close()
