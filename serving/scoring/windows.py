"""Compute the windows of incoming rows from the window store, and record the rows after scoring.

A row is recorded only once it is scored, so that a request that fails can be sent again. After a
failure the store is left alone for a moment, so that requests do not wait for it one after another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features import WindowInputs
from anomaly_vae.features.inputs import Event
from anomaly_vae.features.store import StoreOptions, WindowStore
from anomaly_vae.features.store.opening import open_backend, required_time
from anomaly_vae.features.store.records import Backend, Recorded
from anomaly_vae.features.store.store import Label, Windows, now_in_microseconds
from anomaly_vae.scoring.detector import Detections
from serving.models.store import ServedModel, Store
from serving.observability.metrics import Metrics
from serving.problems import WINDOWS_DOWN, ProblemError
from serving.settings import Settings

log = logging.getLogger("serving.scoring.windows")

PAUSE_SECONDS = 1.0
"""Time after a failure during which the store is not asked again, in seconds."""
EXPIRED_TOGETHER = 500
"""Number of entities and of ids that are visited at a time to delete expired events."""
DOWN = "the window store cannot be used"

Notes = NDArray[np.uint8]
NO_ID, LATE, SHORT, MISSING, LOST = 1, 2, 4, 8, 16
NOTES = {
    NO_ID: "no id, so that a repeated request would count the record twice in later windows",
    LATE: "older than data.windows_horizon allows, so not counted in later windows",
    SHORT: "windows reach further back than the history that the window store holds; "
    "fill it with: anomaly-vae windows load",
    MISSING: f"windows are missing, because {DOWN}",
    LOST: f"not counted in later windows, because {DOWN}",
}
"""Texts of the warnings about records, by bit."""


def warnings_of(notes: Notes | None) -> list[str]:
    """Return one warning for each kind of note about N records; ``notes`` (N,) are bits."""
    if notes is None or not notes.any():
        return []
    found = ((np.flatnonzero(notes & bit), text) for bit, text in NOTES.items())
    return [warning_about(rows.tolist(), text) for rows, text in found if len(rows)]


def warning_about(rows: Sequence[int], text: str) -> str:
    """Return a warning about the records at these positions."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"record {rows[0]}{more}: {text}"


@dataclass(frozen=True)
class Prepared:
    """Rows with their windows, which are recorded once they are scored.

    ``windows`` is None if the store could not be used; ``notes`` are bits of `NOTES` for each.
    """

    batch: RawBatch
    values: NDArray[np.float64]
    windows: Windows | None
    notes: Sequence[int]


class ModelWindows:
    """The windows of one model."""

    def __init__(self, stores: WindowStores, model: ServedModel, inputs: WindowInputs) -> None:
        self._stores, self._model, self.inputs = stores, model, inputs
        names = inputs.definition.names
        self._type = np.dtype([(name, np.float64) for name in names])

    def prepare(self, batch: RawBatch) -> Prepared:
        """Complete N rows with their windows.

        Raises:
            ProblemError: the store cannot be used, and the settings refuse such requests.
        """
        rows = self.inputs.events(batch)
        notes = [NO_ID * _lacks_id(row) for row in rows]
        try:
            with self._stores.using("read"):
                store = self._stores.store(self.inputs)
                windows = store.features(rows)
        except WindowStoreError:
            self._stores.refuse_if_down()
            values = np.full((len(rows), len(self.inputs.definition.names)), np.nan)
            notes = [note | MISSING for note in notes]
            return Prepared(self._complete(batch, values), values, None, notes)
        if store.lacks_history(windows, rows):
            short = [store.lacks_history(windows, [row]) for row in rows]
            notes = [note | SHORT * lacks for note, lacks in zip(notes, short, strict=True)]
            self._stores.metrics.short_history.inc(sum(short))
        return Prepared(self._complete(batch, windows.values), windows.values, windows, notes)

    def _complete(self, batch: RawBatch, values: NDArray[np.float64]) -> RawBatch:
        return self._model.with_windows(batch, values)

    def finish(self, prepared: Prepared, detections: Detections) -> Detections:
        """Record scored rows, and return their decisions with their windows.

        Raises:
            ProblemError: the store cannot be used, and the settings refuse such requests.
        """
        notes = prepared.notes
        if prepared.windows is not None:
            recorded = self._record(prepared.windows)
            notes = [note | more for note, more in zip(notes, recorded, strict=True)]
        values = np.ascontiguousarray(prepared.values).view(self._type)[:, 0]
        return replace(detections, windows=values, window_notes=np.array(notes, np.uint8))

    def _record(self, windows: Windows) -> Sequence[int]:
        """Record rows, and return the notes about each."""
        try:
            outcomes = iter(self._stores.record(self.inputs, windows).outcomes)
        except WindowStoreError:
            self._stores.refuse_if_down()
            return [LOST * bool(event.parts) for event in windows.events]
        return [LATE * (next(outcomes) == "late") if e.parts else 0 for e in windows.events]


def _lacks_id(row: Event) -> bool:
    return row.id is None and row.time is not None and any(row.keys.values())


class WindowStores:
    """The window store of a process, which all its models share.

    Args:
        models: the served models.
        settings: the URL of the store, and what happens if it cannot be used.
        metrics: counters and durations.
    """

    def __init__(self, models: Store, settings: Settings, metrics: Metrics) -> None:
        self._models, self._settings, self.metrics = models, settings, metrics
        self._options = StoreOptions(
            settings.windows, settings.windows_salt or "", settings.windows_max_events,
            settings.windows_seconds,
        )  # fmt: skip
        self._backend: Backend | None = None
        self._stores: dict[tuple[tuple[str, ...], str, int], WindowStore] = {}
        self._failed_at = -PAUSE_SECONDS
        self._is_down = self._was_filled = False

    def of(self, model: ServedModel) -> ModelWindows | None:
        """Return the windows of a model; None if it has none."""
        return ModelWindows(self, model, model.windows) if model.windows else None

    def layouts(self, name: str | None = None) -> list[ServedModel]:
        """Return one of the models with windows for each layout of events.

        Args:
            name: name of a model and its shadow; None for all.
        """
        served = (*self._models.shadows.values(), *self._models.current.values())
        named = [model for model in served if name is None or model.name == name]
        return list({m.windows.definition.layout: m for m in named if m.windows}.values())

    # ------------------------------------------------------------ the store

    def store(self, inputs: WindowInputs) -> WindowStore:
        """Return the store of a definition, opened when first needed.

        Raises:
            WindowStoreError: it cannot be used.
        """
        key = inputs.definition.names, inputs.definition.digest, inputs.horizon
        if key not in self._stores:
            self._backend = self._backend or open_backend(self._options)
            options = self._options.salt, self._options.max_events
            self._stores[key] = WindowStore(self._backend, inputs, *options)
        return self._stores[key]

    @contextmanager
    def using(self, operation: Literal["read", "record"]) -> Iterator[None]:
        """Use the store: measure the time, and count failures.

        Raises:
            WindowStoreError: it cannot be used, or could not a moment ago.
        """
        start = time.perf_counter()
        if start - self._failed_at < PAUSE_SECONDS:
            raise WindowStoreError(DOWN)
        try:
            yield
        except WindowStoreError as error:
            self._failed_at = time.perf_counter()
            self.metrics.store_failures.inc()
            if not self._is_down:
                log.warning("%s: %s", DOWN, error)
            self._is_down = True
            self._stores.clear()  # opened again, in case that the store is another one by then
            raise
        self.metrics.store_seconds[operation].observe(time.perf_counter() - start)
        if self._is_down:
            log.warning("the window store can be used again")
        self._is_down = False

    def refuse_if_down(self) -> None:
        """Refuse a request because the store cannot be used, unless the settings allow it."""
        if self._settings.windows_down == "refuse":
            raise self.refusal()

    def refusal(self) -> ProblemError:
        """Return the error for a request that needs the store, which cannot be used."""
        detail = f"{DOWN}; try again later"
        return ProblemError(WINDOWS_DOWN, detail, headers=self._settings.retry_headers)

    def record(self, inputs: WindowInputs, windows: Windows) -> Recorded:
        """Record scored rows.

        Raises:
            WindowStoreError: the store cannot be used.
        """
        with self.using("record"):
            return self._counted(self.store(inputs).record(windows.events))

    def add(self, inputs: WindowInputs, rows: Sequence[Event]) -> Recorded:
        """Record rows that are not scored; see `record`."""
        with self.using("record"):
            return self._counted(self.store(inputs).add(rows))

    def label(self, inputs: WindowInputs, labels: Sequence[Label]) -> Sequence[bool]:
        """Label events; return which of them are known; see `record`."""
        with self.using("record"):
            return self.store(inputs).label(labels)

    def _counted(self, recorded: Recorded) -> Recorded:
        for outcome, counter in self.metrics.store_events.items():
            if count := recorded.outcomes.count(outcome):
                counter.inc(count)
        if recorded.dropped:
            self.metrics.store_events["dropped"].inc(recorded.dropped)
        return recorded

    # ------------------------------------------------------------ readiness and upkeep

    def problem(self) -> str | None:
        """Return why the service is not ready; None if it is, as far as windows matter."""
        needed = [model.windows for model in self._models.current.values() if model.windows]
        if not needed:
            return None
        try:
            with self.using("read"):
                newest = [self.store(inputs).state().newest for inputs in needed]
        except WindowStoreError:
            return DOWN if self._settings.windows_down == "refuse" else None
        return self._filling_problem(newest)

    def _filling_problem(self, newest: Sequence[int | None]) -> str | None:
        if not self._settings.windows_filled_to or self._was_filled:
            return None
        required = required_time(self._settings.windows_filled_to, now_in_microseconds())
        self._was_filled = all(time is not None and time >= required for time in newest)
        return None if self._was_filled else (
            "the window store has no events up to ANOMALY_VAE_WINDOWS_FILLED_TO; "
            "run: anomaly-vae windows load"
        )  # fmt: skip

    def entities(self) -> int | None:
        """Return the number of entities in the store; None if it is unknown."""
        if self._backend is None:
            return 0
        try:
            with self.using("read"):
                return self._backend.entities()
        except WindowStoreError:
            return None

    def expire(self) -> None:
        """Delete some expired events; call this about once a second, on a worker thread."""
        try:
            for model in (*self._models.current.values(), *self._models.shadows.values()):
                if model.windows:
                    self.store(model.windows)
            if self._backend is not None:
                self._backend.expire(EXPIRED_TOGETHER)
        except WindowStoreError:
            return


class ShadowWindows:
    """The windows of shadow models, which never delay or refuse a request."""

    def __init__(self, stores: WindowStores) -> None:
        self._stores = stores

    def complete(self, shadow: ServedModel, model: ServedModel, batch: RawBatch) -> RawBatch:
        """Complete rows with the windows of a shadow, and record them where it has other columns.

        Raises:
            WindowStoreError: the store cannot be used.
        """
        if not shadow.windows:
            return batch
        store = self._stores.store(shadow.windows)
        rows = shadow.windows.events(batch)
        windows = store.features(rows)
        if not model.windows or self._stores.store(model.windows).space != store.space:
            store.record(windows.events)
        return shadow.with_windows(batch, windows.values)
