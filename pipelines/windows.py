"""Fill the window store from files of past events, and forget an entity."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, cast

from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.data.times import EPOCH
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.features import WindowInputs
from anomaly_vae.features.inputs import Event
from anomaly_vae.features.store import StoreOptions, WindowStore, open_store
from anomaly_vae.features.store.opening import forget_entity
from pipelines import console
from pipelines.datasets.files import find_files, heads_by_file, read_chunks
from pipelines.datasets.loading import NO_OPTIONS
from pipelines.datasets.reading.parts import Broken, Chunk, Reading
from pipelines.registry.model_uri import LoadedModel

TOGETHER = 500
"""Number of events that are loaded in one transaction, few enough not to keep a service waiting."""
OUTCOMES = ("recorded", "duplicate", "late", "dropped", "incomplete", "rejected")
"""What may become of rows, in the order of the result."""


def load_windows(
    source: LoadedModel,
    paths: Sequence[str],
    options: StoreOptions,
    csv: Mapping[str, Any] = NO_OPTIONS,
) -> dict[str, Any]:
    """Record every row of past events in the window store, and return what became of them.

    Rows whose ids the store knows are left out, so that a load that was interrupted may be
    repeated.

    Raises:
        ConfigError: the model has no windows.
        DataError: no file is found, or no row can be read.
        WindowStoreError: the store cannot be used.
    """
    inputs = WindowInputs.from_manifest(source.bundle.manifest)
    if inputs is None:
        name = source.bundle.manifest["name"]
        raise ConfigError(f"model '{name}' has no windows; train it with data.windows")
    loading = _Loading(open_store(options, inputs), inputs, source)
    start = perf_counter()
    loading.load(paths, Reading.of_model(source.bundle, csv, score=True))
    seconds = perf_counter() - start
    result = loading.result()
    rate = loading.rows / max(seconds, 1e-9)
    console.info(
        f"{loading.rows:,} rows in {seconds:,.1f} s ({rate:,.0f} rows/s): {_shown(result)}"
    )
    if loading.rows == loading.counts["rejected"]:
        raise DataError(f"no row could be read; the first: {loading.first_problem}")
    if loading.counts["rejected"]:
        console.info(f"the first rejected row: {loading.first_problem}")
    if loading.without_id:
        console.info(
            f"{loading.without_id:,} rows have no id; loading them again counts them twice"
        )
    return result


def _shown(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{result[name]:,} {name}" for name in OUTCOMES if result[name])


class _Loading:
    """A run over files of past events."""

    def __init__(self, store: WindowStore, inputs: WindowInputs, source: LoadedModel) -> None:
        self._store, self._inputs = store, inputs
        self._schema = inputs.event_schema(cast("TabularSchema", source.bundle.scorer.schema))
        self.counts, self.rows, self.without_id = Counter[str](), 0, 0
        self.first_problem: str | None = None

    def load(self, paths: Sequence[str], reading: Reading) -> None:
        """Record every row of every file."""
        files = find_files(paths)
        heads = heads_by_file(files, reading).values()
        sizes = [head.n_rows for head in heads]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with console.progress("Loading", "rows", total) as (bar, task):
            for part in read_chunks(files, select=self._needed, reading=reading):
                bar.update(task, advance=self._load(part))

    def _needed(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._schema.names]

    def _load(self, part: Chunk | Broken) -> int:
        if isinstance(part, Broken):
            return self._reject(part.count, f"'{part.path}': {part.reason}")
        try:
            batch = self._schema.from_arrow(part.table)
        except DataError as error:
            return self._reject(len(part.rows), f"'{part.path}': {error}")
        unknown = self._inputs.unknown_labels(batch)
        batch = replace(batch, problems=(*batch.problems, *unknown))
        if problems := {problem.row: problem for problem in reversed(batch.problems)}:
            first = problems[min(problems)]
            place = replace(first, row=int(part.rows[first.row]))
            self._reject(len(problems), f"'{part.path}': {place}")
        for events in _grouped(self._inputs.events(batch.take(batch.usable))):
            self._record(events)
        return len(part.rows)

    def _reject(self, count: int, reason: str) -> int:
        self.first_problem = self.first_problem or reason
        self.counts["rejected"] += count
        self.rows += count
        return count

    def _record(self, events: Sequence[Event]) -> None:
        recorded = self._store.load(events)
        self.rows += len(events)
        self.without_id += sum(event.id is None for event in events)
        self.counts.update(recorded.outcomes)
        self.counts["dropped"] += recorded.dropped
        self.counts["incomplete"] += len(events) - len(recorded.outcomes)

    def result(self) -> dict[str, Any]:
        """Return what became of the rows, and the times that the store knows events of."""
        state = self._store.state()
        return {
            "rows": self.rows,
            **{name: self.counts[name] for name in OUTCOMES},
            "entities": self._store.backend.entities(),
            "since": _time(state.since),
            "until": _time(state.newest),
        }


def _grouped(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), TOGETHER):
        yield events[start : start + TOGETHER]


def _time(microseconds: int | None) -> str | None:
    if microseconds is None:
        return None
    return (EPOCH + dt.timedelta(microseconds=microseconds)).isoformat()


def forget(entity: str, value: str, options: StoreOptions) -> dict[str, Any]:
    """Delete the past events of an entity, such as CUSTOMER_ID 12, and return how many had any.

    Raises:
        WindowStoreError: the store cannot be used, or was written with another salt.
    """
    count = forget_entity(options, entity, value)
    if not count:
        console.info(f"the window store has no events of {entity} '{value}'")
    return {"entity": entity, "forgotten": count}
