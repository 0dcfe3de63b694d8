"""Read the columns of a table by which its rows become events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.converters import CellProblem, label_spellings, too_large
from anomaly_vae.data.schema import RowProblem
from anomaly_vae.errors import DataError
from anomaly_vae.features.definition import LARGEST, MICROSECONDS, WindowDefinition

if TYPE_CHECKING:
    import pyarrow as pa

Cells = tuple[Any, list[CellProblem]]


@dataclass(frozen=True, eq=False)
class Events:
    """N rows as events.

    ``columns`` has the columns ``id``, ``time`` (microseconds since 1970), one of canonical text
    for each of the definition's keys, one of float64 for each of its numbers, and one of booleans
    for each of its labels; the latter three begin with ``key:``, ``number:`` and ``label:``.
    """

    columns: pa.Table
    problems: tuple[RowProblem, ...] = ()

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Mask (N,) of the rows without problems."""
        mask = np.ones(len(self.columns), bool)
        mask[[problem.row for problem in self.problems]] = False
        return mask


@dataclass(frozen=True)
class EventReader:
    """Reader of the columns that a definition of windows needs.

    Example:
        >>> import pyarrow as pa
        >>> from anomaly_vae.config.windows import EntityWindows
        >>> definition = WindowDefinition({"card": EntityWindows(over=("1h",), count=True)})
        >>> table = pa.table({"card": [12.0, None], "at": ["1970-01-01T00:00:01", "soon"]})
        >>> events = EventReader(definition, time="at").read(table)
        >>> events.columns["key:card"].to_pylist(), events.columns["time"].to_pylist()
        (['12', None], [1000000, None])
        >>> str(events.problems[0])
        "column 'at', row 1: expected an ISO 8601 date or time, got 'soon'"
    """

    definition: WindowDefinition
    time: str
    """Column with the time of each event."""
    id: str | None = None
    """Column with the id of each event; None if events have none."""
    time_format: str | None = None
    """Format of times that need one; see `times.parse_time`."""
    positive: Any = 1
    """Value of label columns that means anomaly."""

    @classmethod
    def of_config(
        cls, data: Mapping[str, Any], time_format: str | None = None
    ) -> EventReader | None:
        """Return the reader of a configuration's windows; None if it has none.

        Args:
            data: the section ``data`` of the configuration, as a manifest contains it.
            time_format: the format of times that was found in training, if any.
        """
        definition = WindowDefinition.of_config(data)
        if not definition.windows:
            return None
        time_format = time_format or data.get("time_format")
        return cls(definition, data["time"], data.get("id"), time_format, data["positive"])

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Columns without which features are missing or wrong, except labels."""
        return tuple(dict.fromkeys([*self.definition.keys, *self.definition.numbers, self.time]))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Columns that are read, including the id and labels."""
        ids = [self.id] if self.id else []
        return tuple(dict.fromkeys([*self.needed, *self.definition.labels, *ids]))

    def read(self, table: pa.RecordBatch | pa.Table) -> Events:
        """Read N rows; the values of an absent column are missing.

        Raises:
            DataError: the type of a column cannot hold what is expected.
        """
        import pyarrow as pa

        columns: dict[str, Any] = {}
        problems: list[RowProblem] = []
        for target, (source, read) in self._readers.items():
            absent = source is None or source not in table.schema.names
            cells = pa.nulls(len(table)) if absent else table.column(source)
            columns[target] = _read(source, read, cells, problems)
        return Events(pa.table(columns), tuple(problems))

    @cached_property
    def _readers(self) -> Mapping[str, tuple[str | None, Callable[[Any], Cells]]]:
        """Source and reader of each column of `Events.columns`."""
        return {
            "id": (self.id, lambda cells: (_texts(cells)[0], [])),  # such a row is rejected anyway
            "time": (self.time, partial(_micros, time_format=self.time_format)),
            **{f"key:{name}": (name, _texts) for name in self.definition.keys},
            **{f"number:{name}": (name, _numbers) for name in self.definition.numbers},
            **{
                f"label:{name}": (name, partial(_known, positive=self.positive))
                for name in self.definition.labels
            },
        }


def _read(
    name: str | None, read: Callable[[Any], Cells], cells: Any, row_problems: list[RowProblem]
) -> Any:
    try:
        values, problems = read(cells)
    except DataError as error:
        raise DataError(f"column '{name}': {error}", column=name) from None
    row_problems.extend(RowProblem(problem.row, name, problem.reason) for problem in problems)
    return values


def _texts(cells: Any) -> Cells:
    import pyarrow as pa

    from anomaly_vae.data.arrow import levels_from_arrow, normalise_array

    array = normalise_array(cells)
    if pa.types.is_integer(array.type):
        return array.cast(pa.string()), []
    levels, problems = levels_from_arrow(array)
    codes = pa.array(levels.codes, mask=levels.codes < 0)
    names = [name or None for name in levels.names]  # an empty text is missing
    return pa.array(names, pa.string()).take(codes), problems


def _micros(cells: Any, time_format: str | None) -> Cells:
    import pyarrow as pa

    from anomaly_vae.data.arrow import times_from_arrow

    seconds, problems = times_from_arrow(cells, time_format)
    missing = np.isnan(seconds)
    micros = np.round(np.where(missing, 0, seconds) * MICROSECONDS).astype(np.int64)
    return pa.array(micros, mask=missing), problems


def _numbers(cells: Any) -> Cells:
    import pyarrow as pa

    from anomaly_vae.data.arrow import numbers_from_arrow

    values, problems = numbers_from_arrow(cells)
    return pa.array(values), [*problems, *too_large(values, LARGEST)]


def _known(cells: Any, positive: Any) -> Cells:
    import pyarrow as pa

    from anomaly_vae.data.arrow import levels_from_arrow

    levels, problems = levels_from_arrow(cells)
    wanted = label_spellings(positive)
    codes = [code for code, name in enumerate(levels.names) if name in wanted]
    return pa.array(np.isin(levels.codes, codes)), problems
