"""Make cases of flagged rows, apart from scoring.

Requests hand over their decisions and a function that reads rows again; a thread does the rest: it
reads the flagged rows, explains them, and writes them. A request never waits for it. The thread
rests at least as long as it works. Rows that do not fit into its queue are counted and dropped.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.review.case_maker import CaseFields, CaseMaker
from anomaly_vae.review.cases import Case, day_of
from anomaly_vae.review.p_values import PValueCounts, bin_counts
from anomaly_vae.scoring.detector import Detections
from serving.models.store import CasePart, ServedModel, Store
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.review.case_writer import CaseWriter
from serving.review.spool import Batch
from serving.settings import Settings

log = logging.getLogger("serving.review.cases")

MAX_WAITING_BYTES = 16 * 1024**2
"""Maximum size of all bodies whose flagged rows wait for the thread, in bytes."""
OVERHEAD = 4096
"""Memory that a waiting request takes in addition to its body, in bytes."""
GATHER_SECONDS = 0.2
"""Time during which the thread gathers flagged rows before it writes them, in seconds."""
COUNT_SECONDS = 5.0
"""Time between two writings of counts of p-values, in seconds."""
MAX_EXPLAINED = 200
"""Maximum number of rows that are explained at a time; of more, those of the lowest p-values."""
MAX_UNCOUNTED = 1_000
"""Number of arrays of p-values from which on they are counted at once."""
CLOSING_SECONDS = 10.0
"""Maximum time to wait for the thread on shutdown, in seconds."""

Records = Callable[[Sequence[int]], Sequence[Mapping[str, Any]]]
"""Function that reads the rows at these positions of a request."""


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Rows of an answered request that become cases."""

    model: ServedModel
    detections: Detections
    positions: Sequence[int]
    records: Records
    at: float
    weight: int


class CaseRecorder:
    """The rows that wait to become cases, and the thread that makes and writes the cases."""

    def __init__(self, models: Store, settings: Settings, metrics: Metrics) -> None:
        self.writer = CaseWriter(models, settings, metrics)
        self._settings, self._metrics = settings, metrics
        self._fields = CaseFields(
            frozenset(settings.cases_fields), frozenset(settings.cases_mask), settings.cases_salt
        )
        self._random = np.random.default_rng()
        self._tally = _Tally()
        self._waiting: deque[_Task] = deque()
        self._queued_bytes, self._closed = 0, False
        self._changed = Condition()
        self._thread: Thread | None = None
        self._reported: set[str] = set()
        self._counted_at = time.monotonic()

    # ------------------------------------------------------------ requests

    def offer(
        self, model: ServedModel, detections: Detections, size: int, records: Records
    ) -> None:
        """Count N scored rows, and queue those that become cases if there is room.

        Args:
            model: the model that answered.
            detections: its decisions on N rows.
            size: size of the request in bytes.
            records: function that reads the rows again.
        """
        flags = detections.is_anomaly
        if self._settings.cases_sample:
            flags = flags | (self._random.random(len(flags)) < self._settings.cases_sample)
        positions = np.flatnonzero(flags).tolist()
        with self._changed:
            self._tally.add(model, detections.p_value)
            if positions:
                weight = size + OVERHEAD
                if self._queued_bytes + weight > MAX_WAITING_BYTES or self._closed:
                    self._metrics.dropped_cases["queue"].inc(len(positions))
                    return
                chosen = detections.part(flags)
                task = _Task(model, chosen, positions, records, time.time(), weight)
                self._queued_bytes += weight
                self._waiting.append(task)
                self._changed.notify()

    def start(self) -> None:
        """Start the thread."""
        self._thread = Thread(target=self._run, name="cases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(CLOSING_SECONDS)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        took = 0.0
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed, COUNT_SECONDS)
                seconds = COUNT_SECONDS if self.writer.is_down else GATHER_SECONDS
                self._changed.wait_for(lambda: self._closed, max(seconds, took))
            start = time.monotonic()
            self._write_waiting()
            took = time.monotonic() - start
        self._write_waiting()
        self.writer.close()

    def _write_waiting(self) -> None:
        """Write the cases that wait and, from time to time, the counts of p-values."""
        try:
            self._write(self._take())
            self.writer.maintain()
        except Exception as error:
            self._metrics.dropped_cases["failed"].inc()
            log.exception("cases failed", exc_info=error)

    def _take(self) -> list[_Task]:
        with self._changed:
            tasks = list(self._waiting)
            self._waiting.clear()
            self._queued_bytes = 0
            return tasks

    def _write(self, tasks: Sequence[_Task]) -> None:
        explained = _lowest([task.detections.p_value for task in tasks], MAX_EXPLAINED)
        cases = [
            case
            for task, rows in zip(tasks, explained, strict=True)
            for case in self._cases(task, rows)
        ]
        counts: list[PValueCounts] = []
        if self._closed or time.monotonic() >= self._counted_at + COUNT_SECONDS:
            self._counted_at = time.monotonic()
            with self._changed:
                counts = self._tally.take()
        if (cases or counts) and not self.writer.write(Batch(cases, counts)):
            self._metrics.dropped_cases["spool"].inc(len(cases))
            with self._changed:
                self._tally.put_back(counts)

    def _cases(self, task: _Task, explained: NDArray[np.bool_]) -> list[Case]:
        """Make the cases of a task; those that cannot be made are counted."""
        try:
            records = task.records(task.positions)
            parts = self._parts(task, records, explained)
            maker = self.maker(task.model)
            rows = enumerate(zip(records, parts, strict=True))
            return [_case(maker, task, row, record, part) for row, (record, part) in rows]
        except Exception as error:  # noqa: BLE001  # no score depends on it
            self._metrics.dropped_cases["failed"].inc(len(task.positions))
            self._report(task.model, error)
            return []

    def _parts(
        self, task: _Task, records: Sequence[Mapping[str, Any]], explained: NDArray[np.bool_]
    ) -> list[CasePart]:
        """Explain the selected rows; if that fails, the cases have no reasons."""
        arguments = records, task.detections
        try:
            return task.model.case_parts(*arguments, explained, self._settings)
        except Exception as error:  # noqa: BLE001  # a case without reasons is better than none
            self._report(task.model, error)
            none = np.zeros(len(records), bool)
            return task.model.case_parts(*arguments, none, self._settings)

    def _report(self, model: ServedModel, error: Exception) -> None:
        """Log the first failure of each version of a model."""
        if model.digest not in self._reported:
            self._reported.add(model.digest)
            fields = {"model": model.name, "version": model.version}
            log.warning("cases failed", extra={logs.LOG_FIELDS: fields}, exc_info=error)

    def maker(self, model: ServedModel) -> CaseMaker:
        """Return the maker of the cases of a model."""
        settings = self._settings
        windows = model.windows.definition.features if model.windows else ()
        sources = {one.name: one.column or one.name for one in windows}
        return CaseMaker(
            model=model.name,
            version=model.version,
            alpha=model.detector.calibration.alpha,
            columns=model.case_columns.named(settings.cases_entity, settings.cases_amount),
            names=[*model.schema.names, *sources],
            fields=self._fields,
            unit=model.detector.unit,
            sources=sources,
        )


def _case(
    maker: CaseMaker, task: _Task, row: int, record: Mapping[str, Any], part: CasePart
) -> Case:
    detections = task.detections
    threshold = task.model.detector.calibration.threshold
    if detections.threshold is not None:
        threshold = float(detections.threshold[row])
    unusual = detections.unusual_input
    return maker.make(
        {**record, **part.values},
        score=float(detections.score[row]),
        p_value=float(detections.p_value[row]),
        threshold=threshold,
        kind="flagged" if detections.is_anomaly[row] else "sample",
        reasons=part.reasons,
        unusual_input=None if unusual is None else unusual[row],
        recorded_at=task.at,
        row_id=part.row_id,
        image=part.image,
    )


def _lowest(p_values: Sequence[NDArray[np.float64]], most: int) -> list[NDArray[np.bool_]]:
    """Return which of the rows of several requests have the lowest p-values, at most ``most``."""
    sizes = [len(one) for one in p_values]
    if sum(sizes) <= most:
        return [np.ones(size, bool) for size in sizes]
    joined = np.concatenate(p_values)
    chosen = np.zeros(len(joined), bool)
    chosen[np.argsort(joined, kind="stable")[:most]] = True
    return np.split(chosen, np.cumsum(sizes)[:-1])


class _Tally:
    """Counts of p-values by model, version and day of scoring (UTC)."""

    def __init__(self) -> None:
        self._new: list[tuple[ServedModel, float, NDArray[np.float64]]] = []
        self._counts: dict[tuple[str, str | None, Any], NDArray[np.int64]] = {}

    def add(self, model: ServedModel, p_values: NDArray[np.float64]) -> None:
        """Note p-values (N,), which are counted later."""
        self._new.append((model, time.time(), p_values))
        if len(self._new) >= MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        found: dict[tuple[str, str | None, Any], list[NDArray[np.float64]]] = {}
        for model, at, p_values in self._new:
            found.setdefault((model.name, model.version, day_of(at)), []).append(p_values)
        self._new.clear()
        for key, arrays in found.items():
            self._counts[key] = self._counts.get(key, 0) + bin_counts(np.concatenate(arrays))

    def take(self) -> list[PValueCounts]:
        """Return the counts since the last time."""
        self._count()
        counts = [PValueCounts.of_bins(*key, bins) for key, bins in self._counts.items()]
        self._counts.clear()
        return counts

    def put_back(self, counts: Sequence[PValueCounts]) -> None:
        """Keep counts that could not be written."""
        for one in counts:
            key, bins = (one.model, one.version, one.day), one.to_bins()
            self._counts[key] = self._counts.get(key, 0) + bins
