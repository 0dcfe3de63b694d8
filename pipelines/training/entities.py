"""Find the columns that name entities, such as customers, whose rows resemble each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.config import Config
from anomaly_vae.config.data import TabularData
from anomaly_vae.data.identifiers import seems_to_name_things
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.messages import listed
from anomaly_vae.monitoring.cycles import Timeline
from anomaly_vae.monitoring.entities import MIN_ENTITIES, Bins, effective_number
from anomaly_vae.monitoring.exchangeability import Monitor
from anomaly_vae.types import ColumnType
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.labels import column_codes

MAX_COLUMNS = 16
"""Maximum number of columns that are taken to name entities, those with the fewest first."""


def entities_of(data: Dataset, config: Config, rows: NDArray[np.intp]) -> dict[str, Bins]:
    """Return the number of the entity of each row, for each column that names entities.

    These are the columns that the configuration names as such (`data.windows`, `data.group`,
    `calibration.entity`, `evaluation.entity`), and others of which many rows share each value, also
    if the model does not read them. Columns that it reads as numbers are no entities, unless
    their names say so.

    Args:
        data: the data set.
        config: the configuration.
        rows: positions (N,) of rows.
    """
    named, table = _named(config), data.table.take(pa.array(rows))
    found = {
        name: column_codes(table, name).astype(np.int64) for name in _candidates(data, table, named)
    }
    sizes = {name: effective_number(numbers) for name, numbers in found.items()}
    kept = [name for name in found if _tells(sizes[name], name in named)]
    kept.sort(key=lambda name: (name not in named, sizes[name]))
    return {name: found[name] for name in kept[:MAX_COLUMNS]}


def describe_entities(monitor: Monitor, timeline: Timeline) -> str | None:
    """Say after how many rows a change is noticed, given entities; None if there is nothing to say.

    Args:
        monitor: the monitor of the calibrated model.
        timeline: times and entities of the calibration rows.
    """
    noticed, longest = monitor.noticed_after, monitor.window_rows
    rows = [count for count in noticed.values() if count is not None and count <= longest]
    if not timeline.entities or not rows:
        return None
    days = [_days(count, timeline) for count in (min(rows), max(rows))]
    unnoticed = [name for name, count in noticed.items() if count not in rows]
    text = (
        f"monitoring: rows of one {' or '.join(map(repr, timeline.entities))} resemble each other, "
        "so many rows may say little. If a tenth of the rows change in a column, it is usually "
        f"noticed after {min(rows):,} to {max(rows):,} rows, {' to '.join(days)} days of such rows"
    )
    if not unnoticed:
        return text
    return f"{text}; in {listed(unnoticed)} only larger changes are, as values drift by themselves"


def _days(rows: int, timeline: Timeline) -> str:
    return f"{rows * timeline.n_days / len(timeline.seconds):.2g}"


def _named(config: Config) -> set[str]:
    data, calibration = config.data, config.calibration
    windows = data.windows if isinstance(data, TabularData) else {}
    found = (*windows, data.group, calibration.entity, config.evaluation.entity)
    return {name for name in found if name}


def _tells(effective: float, is_named: bool) -> bool:
    """Return whether this effective number of entities is small, but enough to compare them."""
    return effective < math.inf and (is_named or effective >= MIN_ENTITIES)


def _candidates(data: Dataset, table: pa.Table, named: set[str]) -> Iterator[str]:
    for name in table.column_names:
        if name in (data.label, data.id, data.time):
            continue
        column = table.column(name)
        if name in named or (_is_discrete(column) and not _is_measured(name, column, data.schema)):
            yield name


def _is_discrete(column: pa.ChunkedArray) -> bool:
    kind = column.type
    if pa.types.is_floating(kind):
        return bool(pc.all(pc.equal(pc.floor(column), column)).as_py())
    kinds = pa.types.is_string, pa.types.is_large_string, pa.types.is_integer
    return any(is_kind(kind) for is_kind in kinds)


def _is_measured(name: str, column: pa.ChunkedArray, schema: object) -> bool:
    """Return whether the model reads a column as numbers or times, and its name agrees."""
    columns = schema.columns if isinstance(schema, TabularSchema) else ()
    types: Mapping[str, ColumnType] = {one.name: one.type for one in columns}
    if types.get(name, ColumnType.CATEGORICAL) == ColumnType.CATEGORICAL:
        return False
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return not (numbers and seems_to_name_things(name, column.drop_null()))
