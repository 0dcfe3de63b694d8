"""Read the columns of events, such as cards and amounts, from rows of a table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any

from anomaly_vae.config.windows import seconds
from anomaly_vae.data.converters import Levels, Numbers, as_levels, level_name
from anomaly_vae.data.schema import Column, RawBatch, RowProblem, TabularSchema, Values
from anomaly_vae.data.times import format_time
from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, Vocabulary
from anomaly_vae.errors import BundleError
from anomaly_vae.features.definition import LARGEST, MICROSECONDS, WindowDefinition
from anomaly_vae.types import ColumnType


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
        >>> from anomaly_vae.config.windows import EntityWindows
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
    normal: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Values that mean normal in each label column, as far as training has recorded them."""

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
        except (TypeError, ValueError) as error:
            reason = f"its windows cannot be read: {' '.join(str(error).split())[:200]}"
            raise BundleError(f"bundle '{manifest['name']}': {reason}; train it again") from None
        return cls(
            definition, data["time"], data.get("id"), data.get("positive", 1), horizon,
            _time_format(manifest, data), _normal_labels(manifest),
        )  # fmt: skip

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns that are read, without labels."""
        named = (self.id, self.time, *self.definition.keys, *self.definition.numbers)
        return tuple(dict.fromkeys(name for name in named if name))

    @cached_property
    def _read(self) -> Mapping[str, Mapping[str, Column]]:
        """Columns by their use and name: those of ids and entities are read as texts."""
        texts = (*self.definition.keys, *([self.id] if self.id else ()))
        return {
            "time": {self.time: Column(self.time, ColumnType.DATETIME, self.time_format)},
            "number": {
                name: Column(name, ColumnType.NUMERIC, limit=LARGEST)
                for name in self.definition.numbers
            },
            "text": {name: Column(name, ColumnType.CATEGORICAL) for name in texts},
        }

    def raw_schema(self, schema: TabularSchema) -> TabularSchema:
        """Return the schema of the rows that are sent: without windows, with all they need.

        A column that the model reads as another type than the windows is read twice.
        """
        kept = [c for c in schema.columns if c.name not in self.definition.names]
        return self._completed(
            replace(schema, known=schema.known | {*self.definition.labels}), kept
        )

    def event_schema(self, schema: TabularSchema) -> TabularSchema:
        """Return the schema of events that are not scored: without features, with the labels."""
        known = schema.known | {*self.raw_schema(schema).names}
        labels = [
            Column(n, ColumnType.CATEGORICAL)
            for n in self.definition.labels
            if n not in self.columns
        ]
        return self._completed(replace(schema, known=known), [], labels)

    def _completed(
        self, schema: TabularSchema, kept: Sequence[Column], others: Sequence[Column] = ()
    ) -> TabularSchema:
        found, again = {column.name: column for column in kept}, dict[str, Column]()
        for use, columns in self._read.items():
            for name, column in columns.items():
                if not _reads_alike(found.setdefault(name, column), column):
                    again[_value_name(use, name)] = column
                elif column.limit is not None:
                    found[name] = replace(found[name], limit=column.limit)
        order = {name: found[name] for name in (*(c.name for c in kept), *self.columns)}
        return replace(schema, columns=(*order.values(), *others), again=again)

    def example(self, schema: TabularSchema) -> dict[str, Any]:
        """Return a value for each column that is read, in the form in which it is sent."""
        noon = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
        (form,) = (column.format for column in schema.columns if column.name == self.time)
        cells = dict.fromkeys(self.columns, "1") | dict.fromkeys(self.definition.numbers, 1.0)
        return {**cells, self.time: format_time(noon, form) if form else noon.isoformat()}

    def events(self, batch: RawBatch) -> list[Event]:
        """Return N rows, read with `raw_schema` or `event_schema`, as events."""
        count, values = len(batch), batch.values
        ids = self._texts(values, self.id) if self.id else [None] * count
        keys = _rows(
            self.definition.keys,
            [self._texts(values, name) for name in self.definition.keys],
            count,
        )
        names = self.definition.numbers
        numbers = _rows(names, [_used(values, "number", name).tolist() for name in names], count)
        times = _times(_used(values, "time", self.time))
        marks = self._anomalous(values, count)
        return [Event(*part) for part in zip(ids, times, keys, numbers, marks, strict=True)]

    def _anomalous(self, values: Mapping[str, Values], count: int) -> Iterable[frozenset[str]]:
        """Return the label columns that mark each of N rows as an anomaly."""
        if not any(name in values for name in self.definition.labels):  # as in records to score
            return repeat(frozenset(), count)
        columns = (self._marks(values.get(name), count) for name in self.definition.labels)
        return map(self._marked, zip(*columns, strict=True))

    @staticmethod
    def _texts(values: Mapping[str, Values], name: str) -> list[str | None]:
        return _texts(_used(values, "text", name))

    def _marks(self, values: Values | None, count: int) -> list[bool]:
        if values is None:
            return [False] * count
        return [self._is_anomaly(text) for text in _texts(as_levels(values))]

    def _is_anomaly(self, text: str | None) -> bool:
        return bool(text) and self.vocabulary.code(str(text)) == ANOMALY

    def _marked(self, marks: Sequence[bool]) -> frozenset[str]:
        return frozenset(
            name for name, mark in zip(self.definition.labels, marks, strict=True) if mark
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Meaning of the values of all label columns.

        >>> WindowInputs(WindowDefinition({}), "at", positive=1).vocabulary.code("true")
        1
        """
        return Vocabulary(self.positive, frozenset().union(*self.normal.values()))

    def unknown_labels(self, batch: RawBatch) -> Iterator[RowProblem]:
        """Yield the labels without a meaning in each label column whose values are recorded.

        Args:
            batch: rows that were read with `event_schema`.
        """
        for column in self.normal.keys() & batch.values.keys():
            yield from self.unknown_in(column, as_levels(batch.values[column]))

    def unknown_in(self, column: str, levels: Levels) -> Iterator[RowProblem]:
        """Yield the labels (N,) without a meaning in one of the columns of `normal`."""
        labels = levels.without_markers()
        vocabulary = Vocabulary(self.positive, self.normal[column])
        codes = [vocabulary.code(name) if name else NORMAL for name in labels.names]
        unknown = {level for level, code in enumerate(codes) if code is None}
        for row, level in enumerate(labels.codes.tolist()):
            if level in unknown:
                yield RowProblem(row, column, vocabulary.explain_unknown(labels.names[level]))


def _time_format(manifest: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Return the format of times that was found in training, or else that of the configuration."""
    found: str | None = manifest.get("data", {}).get("windows", {}).get("time_format")
    return found or data.get("time_format")


def _normal_labels(manifest: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return the values that mean normal in each label column; none in older bundles."""
    found = manifest.get("data", {}).get("windows", {}).get("labels", {})
    return {column: frozenset(values) for column, values in found.items()}


def entity_text(value: object) -> str | None:
    """Return the text by which an entity, an id or a counted value is compared; None if missing.

    >>> entity_text(12), entity_text(12.0), entity_text(" 12 "), entity_text("")
    ('12', '12', '12', None)
    """
    return level_name(value) or None


def _reads_alike(model: Column, windows: Column) -> bool:
    bits = (model.type, windows.type) == (ColumnType.BINARY, ColumnType.NUMERIC)
    return bits or (model.type, model.format) == (windows.type, windows.format)


def _value_name(use: str, name: str) -> str:
    """Return the name of the values of a column that is read again for this use."""
    return f"\0{use}:{name}"  # no column has such a name


def _used(values: Mapping[str, Values], use: str, name: str) -> Any:
    """Return a column (N,) as windows read it."""
    return values.get(_value_name(use, name), values[name])


def _texts(values: Levels) -> list[str | None]:
    """Return a column (N,) as texts; None where missing."""
    names = [*(name or None for name in values.names), None]
    return [names[code] for code in values.codes.tolist()]


def _times(values: Numbers) -> list[int | None]:
    """Return seconds since 1970 (N,) as whole microseconds; None where missing."""
    return [
        None if second != second else round(second * MICROSECONDS)  # noqa: PLR0124 NaN
        for second in values.tolist()
    ]


def _rows(
    names: Sequence[str], columns: Sequence[Sequence[Any]], count: int
) -> Iterator[dict[str, Any]]:
    """Yield N rows of columns (N,), each with its values by name."""
    if not names:
        return iter([{} for _ in range(count)])
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
