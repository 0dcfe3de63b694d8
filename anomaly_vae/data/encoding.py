"""Encode a `RawBatch` as a float32 matrix; encodings are fitted on the training rows.

The matrix (N, F) has first the numeric columns (standardised numbers), then the binary columns
(zeros and ones), then the categorical columns (level codes). Missing cells are NaN. Code 0 means a
level that training did not keep because it was rare, or did not see. In columns where this concerns
many rows, code 0 means a value that training never saw, and the codes after those of the kept
levels are bands of values that it saw equally often (`anomaly_vae.data.frequency`). A time is
encoded by its position in two cycles: sine and cosine of the hour of the day and of the day of the
week.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from anomaly_vae.data.converters import Levels, as_levels
from anomaly_vae.data.frequency import (
    MIN_POOLED_SHARE,
    MIN_POOLED_VALUES,
    FrequencyBands,
    ValueCounts,
    fit_bands,
)
from anomaly_vae.data.schema import RawBatch, TabularSchema, Values
from anomaly_vae.data.times import format_time
from anomaly_vae.types import MAX_LEVELS, MIN_COUNT, RARITY, ColumnType

Matrix = NDArray[np.float32]

EXTREME = 1e4
"""Maximum absolute value of a standardised number; the limit keeps every score finite."""
LARGEST, SMALLEST = float(np.finfo(np.float64).max), float(np.finfo(np.float64).tiny)
"""Largest finite double, and smallest positive double with full precision."""
HEAVY_TAIL = 10.0
"""Ratio of standard to robust deviation above which a column is encoded on an asinh scale."""
CYCLES: tuple[tuple[Literal["hour", "weekday"], float, float], ...] = (
    ("hour", 86_400.0, 0.0),
    ("weekday", 604_800.0, 3 * 86_400.0),  # 1970-01-01 was a Thursday: week starts on Monday
)
MIN_PERIODS = 4
"""Minimum number of periods that the training rows must span for a cycle to be encoded."""
USUAL_SHARE = 0.9
"""Share of the training rows whose values of a column are called usual."""
OPTIONAL_KEYS = ("bands", "limits", "usual")
"""Keys of encoded columns that are omitted from the manifest unless they have a value."""
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of the encoded matrix.

    ``n_levels`` counts the codes of each categorical column, including code 0.
    """

    n_numeric: int
    n_binary: int
    n_levels: tuple[int, ...]
    log_shares: tuple[tuple[float, ...], ...] = ()
    """Term of each code of each categorical column in the log-likelihood, nats; see
    `FrequencyBands.log_shares`. Empty if all terms are 0."""

    @property
    def n_categorical(self) -> int:
        """Number of categorical columns."""
        return len(self.n_levels)

    @property
    def n_columns(self) -> int:
        """Number F of encoded columns."""
        return self.n_numeric + self.n_binary + self.n_categorical

    @property
    def max_levels(self) -> int:
        """Largest number of levels of a categorical column; 0 without categorical columns."""
        return max(self.n_levels, default=0)

    def split(self, x: Any) -> tuple[Any, Any, Any]:
        """Split a matrix (..., F) into numeric, binary and categorical columns."""
        a, b = self.n_numeric, self.n_numeric + self.n_binary
        return x[..., :a], x[..., a:b], x[..., b:]


class _Encoded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str

    @property
    def label(self) -> str:
        """Name of the column in explanations."""
        return self.name

    @property
    def typical(self) -> Any:
        """Typical value of the column."""
        return 0

    def with_fields(self, **fields: Any) -> Self:
        """Return a copy with other values of these fields and nothing cached."""
        return type(self)(
            **{name: getattr(self, name) for name in type(self).model_fields} | fields
        )

    def observed(self, values: Any) -> list[Any]:
        """Return raw values (N,) in the form that explanations show."""
        return [_rounded(value) for value in values.tolist()]


class _Linear(_Encoded):
    """A column encoded as (v − shift) / scale, where v is the value or an asinh of it."""

    limits: tuple[float, float] | None = None
    """Least and largest training value; None in models of earlier versions, or without values."""

    def expected(self, values: NDArray[np.float64], x: NDArray[Any]) -> list[float | None]:
        """Decode expected values (N, 1), none of them beyond the training values."""
        del values
        low, high = self.limits or (-math.inf, math.inf)
        return [None if v is None else min(max(v, low), high) for v in self.decode(x)]

    def decode(self, x: NDArray[Any]) -> list[float | None]:
        """Decode (N, 1) into N values, rounded to 6 digits."""
        return [_rounded(v) for v in x[:, 0]]

    @property
    def moments(self) -> tuple[float, float]:
        """Shift and scale."""
        return 0.0, 1.0

    def linearised(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values (N,) on the scale of `moments`."""
        return values

    def encode(self, values: NDArray[np.float64]) -> Matrix:
        """Encode N values as (N, 1)."""
        return _standardise(self.linearised(values), *self.moments)[:, None]


class Numeric(_Linear):
    """A numeric column, encoded as (v − center) / scale.

    A heavy-tailed column (``unit`` is not None) is encoded as (asinh((v − center) / unit) − offset)
    / scale.
    """

    type: Literal["numeric"] = "numeric"
    center: float
    unit: float | None = None
    offset: float = 0.0
    scale: float
    width: int = 1
    usual: tuple[float, float] | None = None
    """Ends of the range of the middle `USUAL_SHARE` of the training values; None as `limits`."""

    @property
    def typical(self) -> float | None:
        """Mean, or median of a heavy-tailed column."""
        return _rounded(self.center)

    @property
    def moments(self) -> tuple[float, float]:
        """Shift and scale."""
        return self.center if self.unit is None else self.offset, self.scale

    def linearised(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values (N,), on the asinh scale if the column is heavy-tailed."""
        if self.unit is None:
            return values
        with np.errstate(over="ignore"):
            return np.arcsinh((values - self.center) / self.unit)

    def decode(self, x: NDArray[Any]) -> list[float | None]:
        """Decode (N, 1) into N values in the column's unit, rounded to 6 digits."""
        return [_rounded(u) for u in self.inverse(x)]

    def inverse(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Decode (N, 1) into values (N,) in the column's unit, without rounding."""
        with np.errstate(over="ignore"):
            v = x[:, 0].astype(np.float64) * self.scale
            if self.unit is not None:
                v = np.sinh(v + self.offset) * self.unit
            return np.clip(v + self.center, -LARGEST, LARGEST)


class Binary(_Linear):
    """A binary column, encoded as zero or one; its expected value is the probability of one."""

    type: Literal["binary"] = "binary"
    width: int = 1

    def levels_from(self, x: NDArray[Any]) -> Levels:
        """Convert encoded values (N, 1) into the levels 0 and 1."""
        return as_levels(x[:, 0])


class Categorical(_Encoded):
    """A categorical column, encoded as a level code from 1 on; 0 means an unknown level.

    With ``bands``, the codes after those of the levels are bands of known values that are not
    levels, and 0 means a value that training never saw.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    type: Literal["categorical"] = "categorical"
    levels: tuple[str, ...]
    width: int = 1
    bands: FrequencyBands | None = None
    counts: ValueCounts | None = Field(None, exclude=True, repr=False)
    """Counts of the values that are not levels; stored beside the manifest."""

    @property
    def typical(self) -> str | None:
        """Most frequent level."""
        return self.levels[0] if self.levels else None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each code."""
        if self.bands is None:
            return ("(other)", *self.levels)
        never, *bands = self.bands.names
        return (never, *self.levels, *bands)

    @cached_property
    def log_shares(self) -> tuple[float, ...]:
        """Term of each code in the log-likelihood; see `FrequencyBands.log_shares`."""
        if self.bands is None:
            return (0.0,) * len(self.names)
        never, *bands = self.bands.log_shares
        return (never, *[0.0] * len(self.levels), *bands)

    @cached_property
    def _index(self) -> dict[str, int]:
        """Codes of the names except code 0, so that decoded rows can be encoded again."""
        return {name: code for code, name in enumerate(self.names[1:], start=1)}

    def encode(self, values: Levels, own: int = 0) -> Matrix:
        """Encode N values as (N, 1).

        Args:
            values: the values.
            own: how often the counts include each row: 1 for training rows, else 0.
        """
        unseen = self._codes_of_others(values.names, own) if self.bands else 0
        codes = values.recode(self._index, unseen).astype(np.float32)
        return np.where(codes < 0, np.float32(np.nan), codes)[:, None]

    def code(self, name: str) -> int:
        """Return the code of one value, as `encode` finds it."""
        code = self._index.get(name)
        if code is None:
            code = self._codes_of_others((name,), 0)[name] if self.bands else 0
        return code

    def _codes_of_others(self, names: Sequence[str], own: int) -> dict[str, int]:
        """Return the codes of those of the names that have none in the index."""
        others = [name for name in names if name not in self._index]
        if not others:
            return {}
        counts = np.maximum(self._count(others) - own, 0)
        return dict(zip(others, self._codes_of_counts(counts).tolist(), strict=True))

    def _codes_of_counts(self, counts: NDArray[Any]) -> NDArray[np.intp]:
        assert self.bands is not None
        bands = self.bands.band(counts)
        return np.where(bands > 0, bands + len(self.levels), 0)

    def _count(self, names: Sequence[str]) -> NDArray[np.int64]:
        assert self.counts is not None, "restore the encoding with its counts"
        return self.counts.look_up(names)

    def observed(self, values: Levels) -> list[str | None]:
        """Return the names of N levels, including unseen ones."""
        return [None if code < 0 else values.names[code] for code in values.codes]

    def expected(self, values: Levels, x: NDArray[Any]) -> list[str | None]:
        """Decode codes (N, 1), and say how often training saw the N values in their place.

        Nothing is said of a value that is a level.
        """
        decoded = self.decode(x)
        if self.bands is None:
            return decoded
        others = [name for name in values.names if name not in self._index]
        counts = dict(zip(others, self._count(others).tolist(), strict=True))
        said = {name: self.bands.describe(count) for name, count in counts.items()}
        notes = [None if code < 0 else said.get(values.names[code]) for code in values.codes]
        return [
            name if note is None else f"{self._describe(name)}; this one was {note}"
            for name, note in zip(decoded, notes, strict=True)
        ]

    def _describe(self, name: str | None) -> str:
        """Describe the expected value in place of one that is not a level."""
        if name not in self.levels:
            return f"a value {str(name).strip('()')}"
        if len(self.levels) == 1:
            return f"the frequent value {name}"
        return f"one of {len(self.levels)} frequent values, such as {name}"

    def decode(self, x: NDArray[Any]) -> list[str | None]:
        """Decode codes (N, 1) into N level names."""
        return [None if math.isnan(code) else self.names[int(code)] for code in x[:, 0]]

    def levels_from(self, x: NDArray[Any]) -> Levels:
        """Convert codes (N, 1) into levels; values that are not levels become missing."""
        codes = np.nan_to_num(x[:, 0]).astype(np.int32)
        return Levels(np.where(codes > len(self.levels), 0, codes) - 1, self.levels)


class Cyclic(_Encoded):
    """A time, encoded by its position in one cycle: a point (sine, cosine) on the unit circle."""

    type: Literal["cyclic"] = "cyclic"
    part: Literal["hour", "weekday"]
    period: float
    shift: float
    width: int = 2
    usual: tuple[int, int] | None = None
    """First and last of the consecutive hours or weekdays, counted from 0 (Monday), of most
    training rows; None if they are nearly all, or in models of earlier versions."""
    NOON: ClassVar[str] = "2024-01-01T12:00:00"

    @property
    def label(self) -> str:
        """Name of the column in explanations."""
        return f"{self.name}.{self.part}"

    @property
    def typical(self) -> str:
        """Noon on a Monday."""
        return self.NOON

    def encode(self, values: NDArray[np.float64]) -> Matrix:
        """Encode seconds since 1970 (N,) as (N, 2)."""
        angle = 2 * np.pi * np.mod(values + self.shift, self.period) / self.period
        return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)

    def observed(self, values: NDArray[np.float64]) -> list[str | None]:
        """Return the hour or the weekday of N times."""
        return self.decode(self.encode(values))

    def expected(self, values: NDArray[np.float64], x: NDArray[Any]) -> list[str | None]:
        """Decode expected points (N, 2)."""
        del values
        return self.decode(x)

    def decode(self, x: NDArray[Any]) -> list[str | None]:
        """Decode (N, 2) into hours such as 14:05, or weekdays such as Mon."""
        turn = np.mod(np.arctan2(x[:, 0], x[:, 1]) / (2 * np.pi), 1.0)
        return [None if math.isnan(u) else self._format_turn(u) for u in turn]

    def _format_turn(self, turn: float) -> str:
        if self.part == "weekday":
            return WEEKDAYS[int(turn * 7 + 1e-6) % 7]
        minutes = round(turn * 1440) % 1440
        return f"{minutes // 60:02d}:{minutes % 60:02d}"


EncodedColumn = Annotated[Numeric | Binary | Categorical | Cyclic, Field(discriminator="type")]
_COLUMNS: TypeAdapter[tuple[EncodedColumn, ...]] = TypeAdapter(tuple[EncodedColumn, ...])
_ORDER = {"numeric": 0, "cyclic": 0, "binary": 1, "categorical": 2}


@dataclass(frozen=True)
class TabularEncoding:
    """The fitted encodings of all columns of a table."""

    columns: tuple[Numeric | Binary | Categorical | Cyclic, ...]

    tile = 512
    """Number of rows scored at a time, small enough for the processor's cache."""

    @cached_property
    def layout(self) -> Layout:
        """Shape of the matrix."""
        numeric = sum(c.width for c in self.columns if _ORDER[c.type] == 0)
        binary = sum(c.type == "binary" for c in self.columns)
        levels = tuple(len(column.names) for column in self._categorical)
        pooled = any(column.bands for column in self._categorical)
        shares = tuple(column.log_shares for column in self._categorical if pooled)
        return Layout(numeric, binary, levels, shares)

    @property
    def _categorical(self) -> tuple[Categorical, ...]:
        return tuple(column for column in self.columns if isinstance(column, Categorical))

    @cached_property
    def parts(self) -> dict[str, tuple[EncodedColumn, ...]]:
        """Encoded columns of each of the C raw columns; only a time has several."""
        grouped = groupby(self.columns, key=attrgetter("name"))
        return {name: tuple(columns) for name, columns in grouped}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Name of each raw column (C,) in explanations."""
        return tuple(self.parts)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Index of the first cell of each column in a row of the matrix."""
        return np.cumsum([0] + [column.width for column in self.columns])[:-1]

    @cached_property
    def first_positions(self) -> dict[str, int]:
        """Index of the first cell of each raw column; a time column has several cells."""
        pairs = zip(self.columns, self.starts.tolist(), strict=True)
        return {column.name: start for column, start in reversed(list(pairs))}

    @cached_property
    def cells(self) -> NDArray[np.bool_]:
        """Mask (C, F) of the cells of each raw column."""
        widths = [sum(part.width for part in parts) for parts in self.parts.values()]
        return np.repeat(np.eye(len(widths), dtype=bool), widths, axis=1)

    @cached_property
    def sources(self) -> NDArray[np.intp]:
        """Index (F,) of the raw column that each cell is encoded from."""
        names, widths = zip(*((column.name, column.width) for column in self.columns), strict=True)
        return np.repeat(np.unique(names, return_inverse=True)[1], widths)

    def encode(self, batch: RawBatch) -> Matrix:
        """Encode rows as (N, F) float32, NaN where missing."""
        return self._encode(batch, own=0)

    def encode_training(self, batch: RawBatch) -> Matrix:
        """Encode the rows that the encoding was fitted on as (N, F) float32, NaN where missing.

        Each row is left out of the counts of its values. A value that only one training row has
        was therefore never seen, as far as this row is concerned. With the row included, no
        training row would have a value that was never seen, and the model could not learn how
        often new rows have one.
        """
        return self._encode(batch, own=1)

    def _encode(self, batch: RawBatch, own: int) -> Matrix:
        out = np.empty((len(batch), self.layout.n_columns), np.float32)
        out[:, self._linear_positions] = self._encode_linear(batch)
        for column, cells in self._nonlinear:
            values: Any = batch.values[column.name]  # the schema gives each type its values
            if isinstance(column, Categorical):
                out[:, cells] = column.encode(values, own)
            else:
                out[:, cells] = column.encode(values)
        return out

    def _encode_linear(self, batch: RawBatch) -> Matrix:
        """Encode all linear columns in one operation, so that scoring single rows is fast."""
        values = [batch.values[column.name] for column in self._linear]
        stacked = np.array(values, np.float64).reshape(len(values), len(batch))
        for index, column in self._heavy_tailed:
            stacked[index] = column.linearised(stacked[index])
        return _standardise(stacked.T, *self._linear_moments)

    @cached_property
    def _linear(self) -> tuple[_Linear, ...]:
        return tuple(column for column in self.columns if isinstance(column, _Linear))

    @cached_property
    def _nonlinear(self) -> tuple[tuple[Categorical | Cyclic, slice], ...]:
        """The other columns, each with its cells in a row."""
        pairs = zip(self.columns, self.starts.tolist(), strict=True)
        return tuple(
            (column, slice(start, start + column.width))
            for column, start in pairs
            if isinstance(column, Categorical | Cyclic)
        )

    @cached_property
    def _heavy_tailed(self) -> tuple[tuple[int, Numeric], ...]:
        """Columns on the asinh scale, each with its index among the linear columns."""
        numbers = ((i, c) for i, c in enumerate(self._linear) if isinstance(c, Numeric))
        return tuple((i, column) for i, column in numbers if column.unit is not None)

    @cached_property
    def _linear_positions(self) -> NDArray[np.intp]:
        starts = zip(self.columns, self.starts, strict=True)
        return np.array([start for column, start in starts if isinstance(column, _Linear)], np.intp)

    @cached_property
    def _linear_moments(self) -> NDArray[np.float64]:
        """Shift and scale (2, P) of the P linear columns."""
        return np.array([column.moments for column in self._linear]).reshape(-1, 2).T

    def decode(self, x: NDArray[Any]) -> list[list[Any]]:
        """Decode a matrix (N, F) into N values per column, in the column's unit."""
        pairs = zip(self.columns, self.starts, strict=True)
        return [column.decode(x[:, start : start + column.width]) for column, start in pairs]

    def levels(self, name: str, x: Matrix) -> Levels:
        """Return the levels of a binary or categorical column of encoded rows (N, F).

        A level that training did not keep becomes missing, because all such levels have the same
        code.

        Raises:
            KeyError: there is no such column.
        """
        start, column = self._discrete[name]
        return column.levels_from(x[:, start : start + 1])

    @cached_property
    def _discrete(self) -> dict[str, tuple[int, Binary | Categorical]]:
        """Binary and categorical columns by name, each with the index of its first cell."""
        pairs = zip(self.starts.tolist(), self.columns, strict=True)
        return {c.name: (start, c) for start, c in pairs if isinstance(c, Binary | Categorical)}

    def observed(self, batch: RawBatch) -> list[list[Any]]:
        """Return the N raw values of each of the C raw columns."""
        return self._joined([column.observed(batch.values[column.name]) for column in self.columns])  # type: ignore[arg-type]  # the schema gives each type its values

    def expected(self, batch: RawBatch, x: NDArray[Any]) -> list[list[Any]]:
        """Decode expected values (N, F) of each of the C raw columns, next to the rows' own."""
        values: Any = batch.values
        pairs = zip(self.columns, self.starts, strict=True)
        return self._joined(
            [c.expected(values[c.name], x[:, start : start + c.width]) for c, start in pairs]
        )

    def _joined(self, texts: list[list[Any]]) -> list[list[Any]]:
        """Join the values of a time's parts, such as "Sun" and "00:02", into one per time."""
        by_part = iter(texts)
        columns = [[next(by_part) for _ in parts] for parts in self.parts.values()]
        return [parts[0] if len(parts) == 1 else _join_parts(parts) for parts in columns]

    def per_column(self, nats: NDArray[Any]) -> NDArray[Any]:
        """Sum cells (N, F) over each raw column, such as the four cells of a time: (N, C)."""
        return np.add.reduceat(nats, self.cells.argmax(1), axis=1)

    def typical_record(self, schema: Any) -> dict[str, Any]:
        """Return a record of typical values, which is not a real row."""
        record: dict[str, Any] = {column.name: None for column in schema.columns}
        formats = {column.name: column.format for column in schema.columns}
        for column in self.columns:
            record[column.name] = column.typical
            if form := formats[column.name]:
                record[column.name] = format_time(dt.datetime.fromisoformat(Cyclic.NOON), form)
        return record

    def to_json(self) -> list[dict[str, Any]]:
        """Return the encoding as plain JSON values, for the manifest, without its counts."""
        return [_without_absent_keys(column.model_dump(mode="json")) for column in self.columns]

    @classmethod
    def from_json(cls, content: Sequence[Mapping[str, Any]]) -> TabularEncoding:
        """Restore an encoding from the result of `to_json`."""
        return cls(_COLUMNS.validate_python(content))

    def counts(self) -> dict[str, NDArray[Any]]:
        """Return the counts of the values of columns with frequency bands, as named tensors."""
        tensors = (c.counts.tensors(c.name) for c in self._categorical if c.counts is not None)
        return {name: tensor for column in tensors for name, tensor in column.items()}

    def with_counts(self, tensors: Mapping[str, NDArray[Any]]) -> TabularEncoding:
        """Return the encoding with the result of `counts`.

        Raises:
            DataError: the counts of a column are absent or damaged.
        """
        return TabularEncoding(tuple(_with_counts(column, tensors) for column in self.columns))


def _without_absent_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Remove the optional keys without a value, which earlier versions do not know."""
    return {k: v for k, v in content.items() if v is not None or k not in OPTIONAL_KEYS}


def _join_parts(parts: list[list[str | None]]) -> list[str | None]:
    """Join the N texts of each part of a time, the last part first: the weekday, then the hour."""
    rows = zip(*parts[::-1], strict=True)
    return [None if None in row else " ".join(filter(None, row)) for row in rows]


def _with_counts(column: EncodedColumn, tensors: Mapping[str, NDArray[Any]]) -> EncodedColumn:
    if not isinstance(column, Categorical) or column.bands is None:
        return column
    counts = ValueCounts.from_tensors(column.name, tensors)
    return column.with_fields(counts=counts)


def fit_encoding(
    schema: TabularSchema, batch: RawBatch, options: Mapping[str, Any] | None = None
) -> TabularEncoding:
    """Fit the encoding of every column on the training rows.

    ``options`` maps categorical columns to objects with ``max_levels``, ``min_count`` and
    ``rarity``.
    """
    options = options or {}
    fitted = [
        encoded
        for column in schema.columns
        for encoded in _fit_column(
            column.name, column.type, batch.values[column.name], options.get(column.name)
        )
    ]
    return TabularEncoding(tuple(sorted(fitted, key=lambda column: _ORDER[column.type])))


def _fit_column(name: str, kind: ColumnType, values: Values, options: Any) -> Iterator[Any]:
    if isinstance(values, Levels):
        yield _fit_categorical(name, values, options)
    elif kind is ColumnType.BINARY:
        yield Binary(name=name, limits=_limits(values[~np.isnan(values)]))
    elif kind is ColumnType.DATETIME:
        yield from _fit_cycles(name, values[~np.isnan(values)])
    else:
        yield _fit_numeric(name, values[~np.isnan(values)])


def _fit_numeric(name: str, values: NDArray[np.float64]) -> Numeric:
    if not len(values):
        return Numeric(name=name, center=0.0, scale=1.0)
    center, scale = _mean_and_scale(values)
    numeric = partial(Numeric, name=name, limits=_limits(values), usual=_usual_range(values))
    low, median, high = np.percentile(values.clip(-LARGEST / 4, LARGEST / 4), [25, 50, 75])
    robust = float(high - low) / 1.349
    if 0 < robust * HEAVY_TAIL < scale:
        with np.errstate(over="ignore"):
            tails = ((values - median) / robust).clip(-LARGEST, LARGEST)
        offset, scale = _mean_and_scale(np.arcsinh(tails))
        return numeric(center=median, unit=robust, offset=offset, scale=scale)
    return numeric(center=center, scale=scale)


def _limits(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the least and the largest of values (N,); None without values."""
    return (float(values.min()), float(values.max())) if len(values) else None


def _usual_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the values (N,) between which the middle `USUAL_SHARE` lie."""
    tail = (1 - USUAL_SHARE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _mean_and_scale(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation, computed without overflow.

    The scale of a constant column is its absolute value, at most 1.
    """
    largest = float(np.abs(values).max()) or 1.0
    unit = values / largest
    center, scale = float(unit.mean()) * largest, float(unit.std())
    if scale < 1e-12:
        return center, min(abs(center) or 1.0, 1.0)
    return center, max(scale * largest, SMALLEST)


def _fit_categorical(name: str, values: Levels, options: Any) -> Categorical:
    limits = (options.max_levels, options.min_count) if options else (MAX_LEVELS, MIN_COUNT)
    rarity = options.rarity if options else RARITY
    occurrences = _count_levels(values)
    levels = _frequent_levels(occurrences, *limits)
    rows, kept = sum(occurrences.values()), set(levels)
    others = {level: n for level, n in occurrences.items() if level not in kept}
    few = len(others) < MIN_POOLED_VALUES or sum(others.values()) < MIN_POOLED_SHARE * rows
    if rarity is None or few:
        return Categorical(name=name, levels=levels)
    counts = np.array(list(others.values()))
    bands, stored = fit_bands(counts, rows, rarity), ValueCounts.of_values(list(others), counts)
    return Categorical(name=name, levels=levels, bands=bands, counts=stored)


def _count_levels(values: Levels) -> dict[str, int]:
    """Return the number of rows of each level that occurs."""
    counts = np.bincount(values.codes[values.codes >= 0], minlength=len(values.names))
    pairs = zip(values.names, counts.tolist(), strict=True)
    return {level: count for level, count in pairs if count}


def _frequent_levels(
    occurrences: Mapping[str, int], max_levels: int, min_count: int
) -> tuple[str, ...]:
    """Return the most frequent levels, in order; ``min_count`` is the least number of rows."""
    frequent = {level: count for level, count in occurrences.items() if count >= min_count}
    return tuple(sorted(frequent, key=lambda level: (-frequent[level], level))[:max_levels])


@dataclass(frozen=True)
class PooledLevels:
    """The values of a categorical column that are not kept as levels."""

    column: str
    values: int
    """Number of values in the training rows, including kept ones."""
    kept: int
    """Number of values kept as levels."""
    share: float
    """Share of the training rows with a value that is not kept."""
    banded: bool
    """Whether these values are told apart by their frequency."""

    def __str__(self) -> str:
        how = (
            "are told apart only by how often training saw them"
            if self.banded
            else f"become one level; data.features.{self.column}.max_levels and min_count keep more"
        )
        return (
            f"column '{self.column}': {self.kept:,} of {self.values:,} values are kept as levels; "
            f"the others, in {self.share:.1%} of the training rows, {how}"
        )


def pooled_levels(encoding: TabularEncoding, train: RawBatch) -> tuple[PooledLevels, ...]:
    """Describe the categorical columns some of whose values are not kept as levels."""
    found = (_pooled_levels(c, train.values[c.name]) for c in encoding.columns)
    return tuple(pooled for pooled in found if pooled)


def pooled_notes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the results of `pooled_levels` that a manifest records, as text."""
    columns = manifest["training"].get("pooled", ())
    return tuple(str(PooledLevels(**column)) for column in columns)


def _pooled_levels(column: EncodedColumn, values: Values) -> PooledLevels | None:
    if not isinstance(column, Categorical) or not isinstance(values, Levels):
        return None
    occurrences = _count_levels(values)
    kept = sum(occurrences.get(level, 0) for level in column.levels)
    rows = sum(occurrences.values())
    share, n_kept = 1 - kept / max(rows, 1), len(column.levels)
    if kept == rows:
        return None
    return PooledLevels(column.name, len(occurrences), n_kept, share, column.bands is not None)


def _fit_cycles(name: str, seconds: NDArray[np.float64]) -> Iterator[Cyclic]:
    """Yield the cycles that the times (N,) span often enough and in which they vary."""
    span = float(np.ptp(seconds)) if len(seconds) else 0.0
    for part, period, shift in CYCLES:
        constant = len(np.unique(np.mod(seconds, period))) < 2
        if span >= MIN_PERIODS * period and not constant:
            usual = _usual_arc(np.mod(seconds + shift, period) / period, BINS_OF_CYCLE[part])
            yield Cyclic(name=name, part=part, period=period, shift=shift, usual=usual)


BINS_OF_CYCLE: Mapping[str, int] = {"hour": 24, "weekday": 7}
"""Number of hours of a day and of weekdays of a week."""


def _usual_arc(turns: NDArray[np.float64], bins: int) -> tuple[int, int] | None:
    """Return the first and last of the fewest consecutive bins that hold `USUAL_SHARE` of points.

    Args:
        turns: points (N,) of a circle, from 0 to 1.
        bins: number of equal bins of the circle.

    Returns:
        The bins, counted from 0; the last may be before the first. None if they are as many as
        evenly spread points need.
    """
    counts = np.bincount((turns * bins).astype(np.intp) % bins, minlength=bins)
    for length in range(1, math.ceil(USUAL_SHARE * bins)):
        sums = np.convolve(np.concatenate([counts, counts[: length - 1]]), np.ones(length), "valid")
        first = int(sums.argmax())
        if sums[first] >= USUAL_SHARE * len(turns):
            return first, (first + length - 1) % bins
    return None


def _standardise(values: NDArray[np.float64], shift: Any, scale: Any) -> Matrix:
    """Compute (v − shift) / scale, clipped to ±EXTREME."""
    with np.errstate(over="ignore"):
        v: NDArray[np.float64] = values - shift
        v /= scale
    np.clip(v, -EXTREME, EXTREME, out=v)
    return v.astype(np.float32)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
