"""Convert records and the rows of data frames into JSON.

Values of pandas and numpy are recognised without importing these libraries. A value that JSON
cannot represent, or that the service would misread, is refused before anything is sent.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from anomaly_vae.errors import DataError, RecordError

if TYPE_CHECKING:
    import pyarrow as pa

Record = Mapping[str, Any]
PANDAS_MISSING = {"NAType", "NaTType"}
"""Names of the types of ``pandas.NA`` and ``pandas.NaT``."""
PANDAS_NAMES = {"Period", "Interval"}
"""Names of the types of pandas' values that name a span, which are sent as texts."""
PLAIN = {type(None), str, bool, int}
"""Types whose values are sent as they are."""
LARGEST_DECIMAL = Decimal(2**63)
"""Bound below which whole decimals are sent as whole numbers, so that ids keep their digits."""

REMEDY = "is no value of JSON; send text, a number, a boolean, a date or time, or None"

_encode = msgspec.json.Encoder().encode


def encode_record(number: int, record: Record) -> bytes:
    """Encode a record as JSON; ``number`` is its position, for error messages.

    Raises:
        RecordError: the record is no mapping, two of its keys are equal as text, or one of its
            values cannot be sent.
    """
    if not isinstance(record, Mapping):
        raise RecordError(number, None, f"expected a mapping, got {type(record).__name__}")
    cells = {str(name): _cell(number, str(name), value) for name, value in record.items()}
    if len(cells) < len(record):
        raise RecordError(number, None, "two keys are equal as text; rename one of them")
    try:
        return _encode(cells)
    except (TypeError, ValueError, RecursionError):
        raise _first_fault(number, cells) from None


def _cell(number: int, field: str, value: Any) -> Any:
    try:
        return json_value(value)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = str(error) if isinstance(error, UnfitValueError) else f"cannot be sent: {error}"
        raise RecordError(number, field, reason) from None


def _first_fault(number: int, cells: Mapping[str, Any]) -> RecordError:
    """Return the error for the first cell that cannot be encoded."""
    for field, value in cells.items():
        try:
            _encode({field: value})
        except (TypeError, ValueError, RecursionError) as error:
            shown = field.encode(errors="backslashreplace").decode()
            return RecordError(number, shown, f"cannot be sent: {error}")
    raise AssertionError("a record whose cells can be encoded can be encoded")


class UnfitValueError(ValueError):
    """A value that cannot be sent, with the remedy."""


def json_value(value: Any) -> Any:
    """Convert a value for JSON; NaN, NaT and NA become None.

    Raises:
        ValueError: the value is infinite, or of a type that cannot be sent.

    >>> json_value(Decimal("12.50")), json_value(float("nan")), json_value(UUID(int=1)).hex[-4:]
    (12.5, None, '0001')
    """
    if type(value) in PLAIN:
        return value
    if type(value).__name__ in PANDAS_MISSING:
        return None
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        return json_value(_from_numpy(value))
    for kind, convert in CONVERTERS.items():
        if isinstance(value, kind):
            return convert(value)
    raise UnfitValueError(f"cannot be sent: {type(value).__name__} {REMEDY}")


def _from_numpy(scalar: Any) -> Any:
    """Convert a scalar of numpy, or of a library like it, into one of Python."""
    if getattr(scalar.dtype, "kind", "") in ("M", "m"):
        scalar = scalar.astype(f"{scalar.dtype.kind}8[us]")  # Python's times have no nanoseconds
    value = scalar.item()
    return float(value) if hasattr(value, "dtype") else value  # numpy.longdouble stays as it is


def _from_float(value: float) -> float | None:
    if math.isinf(value):
        raise UnfitValueError("infinity is not a value; leave it out if it is missing")
    return None if math.isnan(value) else float(value)


def _from_decimal(value: Decimal) -> int | float | None:
    if value.is_finite() and value == value.to_integral_value() and abs(value) < LARGEST_DECIMAL:
        return int(value)
    return _from_float(float(value))


def _from_datetime(value: dt.datetime) -> dt.datetime:
    """Convert a datetime of a subclass, such as ``pandas.Timestamp``, to microseconds."""
    if type(value) is dt.datetime:
        return value
    moment = dt.datetime.combine(dt.date(value.year, value.month, value.day), dt.time.min)
    clock = {part: getattr(value, part) for part in ("hour", "minute", "second", "microsecond")}
    return moment.replace(**clock, tzinfo=value.tzinfo, fold=value.fold)


def _refuse_bytes(value: Any) -> Any:
    raise UnfitValueError(f"cannot be sent: {type(value).__name__}; decode them to text first")


CONVERTERS: Mapping[Any, Any] = {
    Enum: lambda value: json_value(value.value),
    str: str.__str__,
    bool: bool,
    int: int,
    float: _from_float,
    Decimal: _from_decimal,
    dt.datetime: _from_datetime,
    dt.date: lambda value: dt.date(value.year, value.month, value.day),
    dt.time: lambda value: value,
    UUID: lambda value: value,
    (bytes, bytearray, memoryview): _refuse_bytes,
    (list, tuple): lambda value: [json_value(one) for one in value],
    Mapping: lambda value: {str(name): json_value(one) for name, one in value.items()},
}
"""Conversion of each type, and of its subclasses; the first type that fits is used."""


# ---------------------------------------------------------------- data frames


def rows_of(records: Iterable[Record]) -> Iterator[Record]:
    """Iterate over records, or over the rows of a data frame.

    A frame is one of pandas, or one that supports Arrow's protocol.

    Raises:
        DataError: two columns of a frame have the same name, or Arrow cannot read a column.
    """
    if type(records).__module__.startswith("pandas") and hasattr(records, "columns"):
        return map(_with_texts, _pandas_rows(records))
    if not hasattr(records, "__arrow_c_stream__"):
        return iter(records)
    batches = _arrow_table(records).to_batches()
    return map(_with_texts, (row for batch in batches for row in _batch_rows(batch)))


def _batch_rows(batch: pa.RecordBatch) -> list[Record]:
    try:
        rows: list[Record] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a time that Python cannot represent
        raise DataError(f"the data frame cannot be read as rows: {error}") from None
    return rows


def _with_texts(row: Record) -> Record:
    """Return a row of a frame with texts in place of values that stand for a text."""
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> Any:
    """Decode bytes, which some files hold in place of texts, and name periods and intervals."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):  # refused later, by name
            return value.decode().rstrip("\0")  # bytes of a fixed width are filled up with NUL
    return str(value) if type(value).__name__ in PANDAS_NAMES else value


def _pandas_rows(frame: Any) -> list[Record]:
    """Return the rows of a frame; a level of its index is a column if it has a name."""
    named = [level for level in frame.index.names if level is not None]
    frame = frame.reset_index(level=named) if named else frame
    _refuse_duplicates(list(map(str, frame.columns)))
    rows: list[Record] = frame.to_dict("records")
    return rows


def _arrow_table(frame: Any) -> pa.Table:
    """Return a frame as an Arrow table with times in microseconds."""
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError("a data frame of this library needs: pip install pyarrow") from None
    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"the data frame cannot be read: {error}") from None
    _refuse_duplicates(table.column_names)
    table = pa.table({name: _plain_column(table.column(name)) for name in table.column_names})
    return table.cast(pa.schema([_in_microseconds(field) for field in table.schema]), safe=False)


def _plain_column(column: pa.ChunkedArray) -> Any:
    """Return a column with the texts of pandas' periods and intervals in place of numbers."""
    if not getattr(column.type, "extension_name", "").startswith("pandas."):
        return column
    values = column.to_pandas()
    return [None if missing else str(v) for v, missing in zip(values, values.isna(), strict=True)]


def _in_microseconds(field: pa.Field) -> pa.Field:
    import pyarrow as pa

    if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
        return field.with_type(pa.timestamp("us", field.type.tz))
    return field


def _refuse_duplicates(names: Sequence[str]) -> None:
    for name in names if len(set(names)) < len(names) else ():
        if names.count(name) > 1:
            raise DataError(
                f"column '{name}' appears more than once; rename one of them", column=name
            )
