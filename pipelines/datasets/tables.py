"""Load tables as data sets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.config.data import TabularData
from anomaly_vae.data.arrow import normalise_array, times_from_arrow
from anomaly_vae.data.spans import describe_time, resolve_spans
from anomaly_vae.data.splitting import TRAIN, assign
from anomaly_vae.data.type_inference import (
    check_present,
    infer_schema,
    read_times,
    time_column,
)
from anomaly_vae.errors import DataError
from anomaly_vae.features.definition import WindowDefinition
from anomaly_vae.messages import listed
from pipelines import console
from pipelines.datasets.dataset import Dataset, unlabelled_note, unreadable_note, without_unreadable
from pipelines.datasets.files import (
    absent_columns,
    find_files,
    heads_by_file,
    read_table,
)
from pipelines.datasets.labels import labelled_rows, merge_late_labels, window_labels
from pipelines.datasets.reading.partitions import Partitions
from pipelines.datasets.reading.parts import Reading
from pipelines.datasets.windows import with_windows


@dataclass(frozen=True, eq=False)
class LoadContext:
    """Facts besides the configuration of the data that determine a data set."""

    model: str | None = None
    """Name of the model, whose late labels a store is asked for; None for those of all models."""
    frozen: pa.Table | None = None
    """A frozen test split, whose days spans skip; None if there is none."""
    until: float | None = None
    """Time in seconds since 1970 from which rows are not read; None reads all rows."""
    known: bool = False
    """Whether the model learns from known anomalies; see `assign`."""


NO_CONTEXT = LoadContext()


def load_table(data: TabularData, context: LoadContext = NO_CONTEXT) -> Dataset:
    """Read a table, split it and infer its schema, from the training rows alone.

    Args:
        data: the configuration of the data.
        context: facts besides the configuration that determine the data set.

    Raises:
        DataError: the input is unreadable, its columns are inconsistent, or a split is empty.
    """
    files, reading = find_files(data.paths), Reading.of_training(data)
    heads, folders = heads_by_file(files, reading), Partitions.of(files)
    table = read_table(files, reading, lambda name: _is_used(name, data))
    if not len(table):
        raise DataError(f"no rows in {listed(data.paths)}; the header alone cannot train a model")
    check_present(table, data)
    has_label = bool(data.label)
    table, data, label_notes = merge_late_labels(table, data, context.model)
    data, notes = _without_constants(table, data, folders)
    time, time_format = _times(table, data)
    if time is not None and context.until is not None:
        table, time = _earlier(table, time, context.until)
    windows = with_windows(table, data, time_format)
    table, data = windows.table, windows.data
    rows = labelled_rows(table, data.label, data.positive, data.group, time, check=has_label)
    if windows.past and time is not None:
        rows = replace(rows, warm_up=windows.past.warm_up(time, data.windows_warm_up))
    spans, times = None, rows.split_times
    if data.splits.by_span and times is not None:
        spans = resolve_spans(times, data.splits, _frozen_times(context.frozen, data, time_format))
    planned = assign(rows, spans.splits if spans else data.splits, context.known)
    inferred = infer_schema(table.take(pa.array(planned.rows(TRAIN))), data)
    computed = set(WindowDefinition(data.windows).names)
    needed = dict.fromkeys([*inferred.schema.names, *sorted(data.window_columns)])
    notes += absent_columns(heads, [name for name in needed if name not in computed])
    batch = inferred.schema.from_arrow(table)
    batch = replace(batch, problems=(*batch.problems, *windows.problems))
    return Dataset(
        table=table,
        schema=inferred.schema,
        batch=batch,
        rows=rows,
        assignment=without_unreadable(planned, batch),
        notes=(
            *reading.notes,
            *notes,
            *inferred.notes,
            *windows.notes,
            *(windows.past.note(time, planned) if windows.past and time is not None else ()),
            *unreadable_note(batch),
            *unlabelled_note(rows, planned),
        ),
        label=data.label,
        group=data.group,
        id=data.id,
        time=data.time,
        time_format=time_format,
        spans=spans,
        label_delay=data.label_delay,
        duplicate_ids=_duplicates(table, data.id),
        label_notes=label_notes,
        windows=WindowDefinition(data.windows).digest if data.windows else None,
        window_labels=window_labels(table, data),
    )


def _earlier(
    table: pa.Table, time: NDArray[np.float64], until: float
) -> tuple[pa.Table, NDArray[np.float64]]:
    """Return the rows of a table, and their times (N,), without those from a moment on."""
    kept = ~(time >= until)
    if not kept.all():
        console.info(
            f"{int((~kept).sum()):,} rows from {describe_time(until)} on are left out: they are "
            "newer than the model's data"
        )
    return table.filter(pa.array(kept)), time[kept]


def _frozen_times(
    frozen: pa.Table | None, data: TabularData, time_format: str | None
) -> NDArray[np.float64] | None:
    """Return the times (M,) of a frozen test split; None if it has none."""
    if frozen is None or data.time not in frozen.column_names:
        return None
    return read_times(frozen.column(data.time), time_format)


def _is_used(name: str, data: TabularData) -> bool:
    """Return whether a column is or may become a feature, or has a role."""
    return name in {*data.roles, data.time, *data.window_columns} or data.reads(name)


def _without_constants(
    table: pa.Table, data: TabularData, folders: Partitions
) -> tuple[TabularData, list[str]]:
    """Ignore columns from folders that have one value, as in a year; return notes on folders."""
    names = [name for name in folders.types if _is_used(name, data)]
    if not names:
        return data, []
    named = {*data.roles, data.time, *(data.features or ()), *data.types}
    constant = [n for n in names if n not in named and len(table.column(n).unique()) < 2]
    notes = [f"columns from the names of folders: {listed(names)}"]
    notes += [f"column '{n}': left out, the folders give it one value" for n in constant]
    return data.model_copy(update={"ignore": (*data.ignore, *constant)}), notes


def _times(table: pa.Table, data: TabularData) -> tuple[NDArray[np.float64] | None, str | None]:
    """Return the times of the rows (N,), None without a time column, and their format."""
    if not data.time:
        return None, None
    try:
        found = time_column(table.column(data.time), data.time_format)
        seconds, problems = times_from_arrow(table.column(data.time), found.format)
    except DataError as error:
        raise _wrong_time(data.time, f": {error}") from None
    if problems:
        reason = found.problem or problems[0].reason
        raise _wrong_time(data.time, f", row {problems[0].row}: {reason}")
    return seconds, found.format


def _wrong_time(name: str, reason: str) -> DataError:
    remedy = "" if "data.time_format" in reason else "; set data.time_format"
    return DataError(f"data.time names the column '{name}'{reason}{remedy}", column=name)


def _duplicates(table: pa.Table, name: str | None) -> int:
    """Count the rows whose id an earlier row already has."""
    if not name:
        return 0
    ids = normalise_array(table.column(name)).drop_null()
    try:
        return len(ids) - len(ids.unique())
    except pa.ArrowNotImplementedError:
        reason = f"data.id names the column '{name}', whose values ({ids.type}) name no rows"
        raise DataError(reason, column=name) from None
