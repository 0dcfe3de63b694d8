"""Load tables or images, depending on the kind of the configuration or the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.data import ImageData, TabularData
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.modality import image_modality
from pipelines.datasets.dataset import GROUP, Dataset
from pipelines.datasets.files import find_files, read_table
from pipelines.datasets.tables import load_table


def load_dataset(data: TabularData | ImageData) -> Dataset:
    """Read and split the data of a configuration.

    Raises:
        DataError: see `load_table` and `images.load_images`.
    """
    if isinstance(data, TabularData):
        return load_table(data)
    from pipelines.datasets.images import load_images

    return load_images(data)


@dataclass(frozen=True, eq=False)
class LabelledInput:
    """N labelled rows for a model, and the names of their group and time columns, if present."""

    table: pa.Table
    group: str | None
    time: str | None = None
    batch: RawBatch | None = None
    """Images as the model reads them; None for a table, which contains its rows."""
    files: tuple[Path, ...] = ()
    """File of each row (N,) for images; empty for tables."""


def load_labelled(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    """Read labelled tables or images, depending on the kind of the model.

    Args:
        bundle: the model.
        paths: CSV or Parquet files for a model of tables; CSV manifests for a model of images.
        label: the column with the labels.

    Raises:
        DataError: the input is unreadable, or manifests lack the label column.
    """
    return LOADERS[bundle.manifest["kind"]](bundle, paths, label)


def _labelled_table(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    data = bundle.manifest["config"]["data"]
    roles = (label, data.get("id"), data.get("group"), data.get("time"))
    used = {*bundle.scorer.schema.names, *roles}
    table = read_table(find_files(paths), used.__contains__)
    return LabelledInput(table, _present(table, data["group"]), _present(table, data.get("time")))


def _labelled_images(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    from pipelines.datasets.images import read_labelled

    schema, _ = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    table, batch, files = read_labelled(paths, schema, label)
    return LabelledInput(table, _present(table, GROUP), None, batch, files)


def _present(table: pa.Table, column: str | None) -> str | None:
    return column if column in table.column_names else None


LOADERS = {"tabular": _labelled_table, "image": _labelled_images}
"""Function that reads labelled input, by kind of data."""
