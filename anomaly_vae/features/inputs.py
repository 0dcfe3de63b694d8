"""Read the columns of events, such as cards and amounts, from rows of a table."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from anomaly_vae.config.windows import seconds
from anomaly_vae.data.converters import Levels, level_name
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema, Values
from anomaly_vae.data.times import format_time
from anomaly_vae.errors import BundleError
from anomaly_vae.features.definition import MICROSECONDS, WindowDefinition
from anomaly_vae.types import ColumnType

SPELLINGS = {"0": "false", "1": "true", "false": "0", "true": "1"}
"""Equivalent spelling of each boolean label."""


@dataclass(frozen=True)
class Event:
    """A row with what windows need of it; see docs/windows.md.

    Example:
        >>> Event("7", 0, {"card": "12"}, {"amount": 3.5}).anomalous
        frozenset()
    """

    id: str | None
    """Id as text; None if the row has none."""
    time: int | None
    """Time in microseconds since 1970."""
    keys: Mapping[str, str | None]
    """Value of each entity column, and of each column whose values are counted, as text."""
    numbers: Mapping[str, float]
    """Value of each numeric column; NaN if missing."""
    anomalous: frozenset[str] = frozenset()
    """Label columns that mark the row as an anomaly."""


@dataclass(frozen=True)
class WindowInputs:
    """The window definition of a model, and the columns that it is computed of.

    Example:
        >>> card = EntityWindows(over=("1h",), count=True)
        >>> WindowInputs(WindowDefinition({"card": card}), time="at").columns
        ('at', 'card')
    """

    definition: WindowDefinition
    time: str
    """Column of the times."""
    id: str | None = None
    """Column of the ids; None if rows have none."""
    positive: Any = 1
    """Value of label columns that means anomaly."""
    horizon: int = 86_400 * MICROSECONDS
    """Greatest delay with which an event may arrive, in microseconds."""
    time_format: str | None = None
    """Format of the times, as in `data.time_format`."""

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> WindowInputs | None:
        """Return the windows of a bundle; None if it has none.

        Raises:
            BundleError: the definition in the manifest cannot be read.
        """
        data = manifest["config"].get("data", {})
        if not data.get("windows"):
            return None
        try:
            horizon = seconds(data.get("windows_horizon", "1d")) * MICROSECONDS
            definition = WindowDefinition.of_config(data)
            definition.reach  # noqa: B018  # reads every duration
        except (TypeError, ValueError) as error:
            reason = f"its windows cannot be read: {' '.join(str(error).split())[:200]}"
            raise BundleError(f"bundle '{manifest['name']}': {reason}; train it again") from None
        return cls(
            definition, data["time"], data.get("id"), data.get("positive", 1), horizon,
            data.get("time_format"),
        )  # fmt: skip

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Columns that mark known anomalies."""
        risks = (w.risk.label for w in self.definition.windows.values() if w.risk)
        return tuple(dict.fromkeys(risks))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Columns of entities, and of the values that are counted."""
        return tuple(dict.fromkeys((*self.definition.entities, *self.definition.values)))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that are read, without labels."""
        named = (self.id, self.time, *self.keys, *self.definition.numbers)
        return tuple(dict.fromkeys(name for name in named if name))

    def raw_schema(self, schema: TabularSchema) -> TabularSchema:
        """Return the schema of the rows that are sent: without windows, with all they need."""
        kept = [c for c in schema.columns if c.name not in self.definition.names]
        present = {column.name for column in kept}
        kept += [self._column(name) for name in self.columns if name not in present]
        return replace(schema, columns=tuple(kept), known=schema.known | {*self.labels})

    def _column(self, name: str) -> Column:
        if name == self.time:
            return Column(name, ColumnType.DATETIME, self.time_format)
        is_number = name in self.definition.numbers
        return Column(name, ColumnType.NUMERIC if is_number else ColumnType.CATEGORICAL)

    def event_schema(self, schema: TabularSchema) -> TabularSchema:
        """Return the schema of events that are not scored: as `raw_schema`, with the labels."""
        raw = self.raw_schema(schema)
        columns = [column for column in raw.columns if column.name in self.columns]
        columns += [self._column(name) for name in self.labels if name not in self.columns]
        return replace(raw, columns=tuple(columns), known=raw.known | {*raw.names})

    def example(self, schema: TabularSchema) -> dict[str, Any]:
        """Return a value for each column that is read, in the form in which it is sent."""
        noon = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
        (form,) = (column.format for column in schema.columns if column.name == self.time)
        cells = dict.fromkeys(self.columns, "1") | dict.fromkeys(self.definition.numbers, 1.0)
        return {**cells, self.time: format_time(noon, form) if form else noon.isoformat()}

    def events(self, batch: RawBatch) -> list[Event]:
        """Return N rows, read with `raw_schema` or `event_schema`, as events."""
        count, values = len(batch), batch.values
        ids = _texts(values[self.id]) if self.id else [None] * count
        keys = _rows(self.keys, [_texts(values[name]) for name in self.keys], count)
        names = self.definition.numbers
        numbers = _rows(names, [_numbers(values[name]) for name in names], count)
        anomalous = zip(
            *(self._marks(values.get(name), count) for name in self.labels), strict=True
        )
        marks = map(self._marked, anomalous) if self.labels else repeat(frozenset[str](), count)
        parts = zip(ids, _times(values[self.time]), keys, numbers, marks, strict=True)
        return [Event(*part) for part in parts]

    def _marks(self, values: Values | None, count: int) -> list[bool]:
        if values is None:
            return [False] * count
        return [self.is_anomaly(text) for text in _texts(values)]

    def _marked(self, marks: Sequence[bool]) -> frozenset[str]:
        return frozenset(name for name, mark in zip(self.labels, marks, strict=True) if mark)

    def is_anomaly(self, label: object) -> bool:
        """Return whether a label means anomaly.

        >>> WindowInputs(WindowDefinition({}), "at", positive=1).is_anomaly(True)
        True
        """
        name, positive = level_name(label), level_name(self.positive)
        return name is not None and (name == positive or SPELLINGS.get(name) == positive)


def entity_text(value: object) -> str | None:
    """Return the text by which an entity, an id or a counted value is compared; None if missing.

    >>> entity_text(12), entity_text(12.0), entity_text(" 12 "), entity_text("")
    ('12', '12', '12', None)
    """
    return level_name(value) or None


def _texts(values: Values) -> list[str | None]:
    """Return a column (N,) as texts; None where missing."""
    if isinstance(values, Levels):
        names = [*(name or None for name in values.names), None]
        return [names[code] for code in values.codes.tolist()]
    return [entity_text(value) for value in values.tolist()]


def _numbers(values: Values) -> list[float]:
    """Return a column (N,) as numbers; NaN where missing."""
    if not isinstance(values, Levels):
        return values.tolist()  # type: ignore[no-any-return]  # numpy's types say Any
    numbers = [*map(_number, values.names), math.nan]
    return [numbers[code] for code in values.codes.tolist()]


def _number(text: str) -> float:
    try:
        return float(SPELLINGS.get(text, text)) if text in ("true", "false") else float(text)
    except ValueError:
        return math.nan


def _times(values: Values) -> list[int | None]:
    """Return seconds since 1970 (N,) as whole microseconds; None where missing."""
    assert not isinstance(values, Levels), "the schema reads times as seconds"
    missing = np.isnan(values)
    micros = np.rint(np.where(missing, 0.0, values) * MICROSECONDS).astype(np.int64)
    pairs = zip(micros.tolist(), missing.tolist(), strict=True)
    return [None if absent else micro for micro, absent in pairs]


def _rows(
    names: Sequence[str], columns: Sequence[Sequence[Any]], count: int
) -> Iterator[dict[str, Any]]:
    """Yield N rows of columns (N,), each with its values by name."""
    if not names:
        return iter([{} for _ in range(count)])
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
