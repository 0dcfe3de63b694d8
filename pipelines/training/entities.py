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
from anomaly_vae.monitoring.cycles import MIN_DAYS, Timeline
from anomaly_vae.monitoring.entities import MIN_ENTITIES, Bins, effective_number
from anomaly_vae.monitoring.exchangeability import Monitor
from anomaly_vae.types import ColumnType
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.labels import column_codes

MAX_COLUMNS = 16
"""Maximum number of columns that are taken to name entities, those with the fewest first."""
SHOWN_COLUMNS = 3
"""Maximum number of columns that a message names."""


def entities_of(data: Dataset, config: Config, rows: NDArray[np.intp]) -> dict[str, Bins]:
    """Return the number of the entity of each row, for each column that names entities.

    These are the columns that the configuration names as such (`data.windows`, `data.group`,
    `calibration.entity`, `evaluation.entity`), and others of which many rows share each value, also
    if the model does not read them: columns of texts, and of whole numbers that are named like an
    id or begin the names of other columns.

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
    if not timeline.entities or not noticed:
        return None
    alike = (
        f"monitoring: rows of one {' or '.join(map(repr, timeline.entities))} resemble each other"
    )
    if not rows:
        return (
            f"{alike} so much that a change of a tenth of the rows is usually not noticed in any "
            f"column within {longest:,} rows; larger ones are"
        )
    ends = sorted({min(rows), max(rows)})
    days = " to ".join(f"{n * timeline.n_days / len(timeline.seconds):.2g}" for n in ends)
    unnoticed = [name for name, count in noticed.items() if count not in rows]
    text = (
        f"{alike}, so many rows may say little. If a tenth of the rows change in a column, it is "
        f"usually noticed after {' to '.join(f'{n:,}' for n in ends)} rows, {days} days of such "
        "rows"
    )
    if not unnoticed:
        return text
    return f"{text}; in {listed(unnoticed, most=SHOWN_COLUMNS)} only larger changes are"


def describe_missing_entities(timeline: Timeline) -> str | None:
    """Say that nothing names entities, whose drift is then not expected; None if something does.

    Args:
        timeline: times and entities of the calibration rows.
    """
    if timeline.entities or timeline.n_days < MIN_DAYS:
        return None
    return (
        "monitoring: no column names what rows have in common, such as a customer or a machine. If "
        "many rows are of few customers, values drift, and the guarantee may become doubtful "
        "although nothing is wrong; keep such a column in the data, in data.ignore if the model "
        "should not read it, and name it as evaluation.entity"
    )


def _named(config: Config) -> set[str]:
    data, calibration = config.data, config.calibration
    windows = data.windows if isinstance(data, TabularData) else {}
    found = (*windows, data.group, calibration.entity, config.evaluation.entity)
    return {name for name in found if name}


def _tells(effective: float, is_named: bool) -> bool:
    """Return whether this effective number of entities is small, but enough to compare them."""
    return effective < math.inf and (is_named or effective >= MIN_ENTITIES)


def _candidates(data: Dataset, table: pa.Table, named: set[str]) -> Iterator[str]:
    types = _types(data.schema)
    for name in table.column_names:
        if name in (data.label, data.id, data.time):
            continue
        if name in named or _names_things(name, table, types.get(name)):
            yield name


def _types(schema: object) -> Mapping[str, ColumnType]:
    columns = schema.columns if isinstance(schema, TabularSchema) else ()
    return {column.name: column.type for column in columns}


def _names_things(name: str, table: pa.Table, read_as: ColumnType | None) -> bool:
    """Return whether a column may name entities, given the type that the model reads it as."""
    column, is_read = table.column(name), read_as not in (None, ColumnType.CATEGORICAL)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return not is_read
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return False
    if seems_to_name_things(name, column.drop_null()):
        return True
    begins = any(other.startswith(f"{name}_") for other in table.column_names)
    return begins and not is_read and _are_whole(column)


def _are_whole(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.equal(pc.floor(column), column)).as_py())
