"""Load tables or images, depending on the kind of the configuration or the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.data import ImageData, TabularData
from anomaly_vae.data.schema import RawBatch, RowProblem, TabularSchema
from anomaly_vae.errors import ConfigError
from anomaly_vae.scoring.modality import image_modality
from pipelines import console
from pipelines.datasets.dataset import GROUP, Dataset
from pipelines.datasets.files import find_files, read_table
from pipelines.datasets.reading.parts import Reading
from pipelines.datasets.tables import NO_CONTEXT, LoadContext, load_table
from pipelines.datasets.windows import windows_of, with_model_windows

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
"""No options of CSV files."""


def load_dataset(data: TabularData | ImageData, context: LoadContext = NO_CONTEXT) -> Dataset:
    """Read and split the data of a configuration.

    Args:
        data: the configuration of the data.
        context: what determines splits that are given as spans of time.

    Raises:
        DataError: see `load_table` and `images.load_images`.
    """
    if isinstance(data, TabularData):
        return load_table(data, context)
    from pipelines.datasets.images.dataset import load_images

    return load_images(data)


@dataclass(frozen=True, eq=False)
class LabelledInput:
    """N labelled rows for a model, and the names of their group and time columns, if present."""

    table: pa.Table
    group: str | None
    time: str | None = None
    time_format: str | None = None
    """Format of the time column, if its values need one."""
    batch: RawBatch | None = None
    """Images, or rows with window features, as the model reads them; None for other tables."""
    files: tuple[Path, ...] = ()
    """File of each row (N,) for images; empty for tables."""


def load_labelled(
    bundle: Bundle,
    paths: Sequence[str],
    label: str | None,
    csv: Mapping[str, Any] = NO_OPTIONS,
    also: Sequence[str] = (),
    history: Sequence[str] = (),
) -> LabelledInput:
    """Read labelled tables or images, depending on the kind of the model.

    Args:
        bundle: the model.
        paths: CSV or Parquet files for a model of tables; CSV manifests for a model of images.
        label: the column with the labels; None for rows without labels.
        csv: keys of `CsvConfig` that differ from the training configuration.
        also: further columns of tables that are used.
        history: files with earlier rows, which feed windows only; see `read_for_model`.

    Raises:
        DataError: the input is unreadable, or manifests lack the label column.
    """
    return LOADERS[bundle.manifest["kind"]](bundle, paths, label, csv, also, history)


@dataclass(frozen=True, eq=False)
class ModelInput:
    """A table with its window features, and the rows whose entity or time cannot be read."""

    table: pa.Table
    problems: tuple[RowProblem, ...] = ()

    def read(self, schema: TabularSchema) -> RawBatch:
        """Return the rows as a model reads them."""
        batch = schema.from_arrow(self.table)
        return replace(batch, problems=(*batch.problems, *self.problems))


def read_for_model(
    bundle: Bundle,
    paths: Sequence[str],
    also: Iterable[str | None] = (),
    csv: Mapping[str, Any] = NO_OPTIONS,
    history: Sequence[str] = (),
) -> ModelInput:
    """Read all rows of these paths as a model of tables reads them, and print notes on text files.

    Args:
        bundle: the model.
        paths: files, folders or globs.
        also: columns that are used besides the model's; other columns are left out if their types
            contradict each other.
        csv: keys of `CsvConfig` that differ from the training configuration.
        history: files, folders or globs with earlier rows, which feed windows only.

    Raises:
        ConfigError: a key of ``csv`` or its value is invalid, or there is history for a model
            without windows.
        DataError: the input is unreadable.
    """
    reading = Reading.of_model(bundle, csv)
    events = windows_of(bundle)
    used = {*bundle.scorer.schema.names, *also, *(events.names if events else ())}
    table = read_table(find_files(paths), reading, used.__contains__)
    for note in reading.notes:
        console.info(note)
    return ModelInput(*with_model_windows(table, bundle, history, csv))


def _labelled_table(
    bundle: Bundle,
    paths: Sequence[str],
    label: str | None,
    csv: Mapping[str, Any],
    also: Sequence[str],
    history: Sequence[str],
) -> LabelledInput:
    data = bundle.manifest["config"]["data"]
    roles = (label, data.get("id"), data.get("group"), data.get("time"), *also)
    given = read_for_model(bundle, paths, roles, csv, history)
    table = given.table
    group, time = _present(table, data["group"]), _present(table, data.get("time"))
    schema = cast("TabularSchema", bundle.scorer.schema)
    found = next((column.format for column in schema.columns if column.name == time), None)
    time_format = found or data.get("time_format")
    events = windows_of(bundle)
    if events is None:
        return LabelledInput(table, group, time, time_format)
    return LabelledInput(table, group, time, events.time_format, given.read(schema))


def _labelled_images(
    bundle: Bundle,
    paths: Sequence[str],
    label: str | None,
    csv: Mapping[str, Any],
    also: Sequence[str],  # noqa: ARG001  # manifests are read completely
    history: Sequence[str],
) -> LabelledInput:
    if csv or history:
        option = "--csv" if csv else "--history"
        raise ConfigError(f"{option} is for models of tables; leave it out")
    from pipelines.datasets.images.dataset import read_labelled

    schema, _ = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    table, batch, files = read_labelled(paths, schema, label)
    return LabelledInput(table, _present(table, GROUP), batch=batch, files=files)


def _present(table: pa.Table, column: str | None) -> str | None:
    return column if column in table.column_names else None


LOADERS = {"tabular": _labelled_table, "image": _labelled_images}
"""Function that reads labelled input, by kind of data."""
