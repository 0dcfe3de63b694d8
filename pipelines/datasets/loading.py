"""Load tables or images, whichever the configuration or the model is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import ImageData, TabularData
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
    """N labelled rows for a model, and the columns of their group and time, where present."""

    table: pa.Table
    group: str | None
    time: str | None = None
    batch: RawBatch | None = None
    """The rows as the model reads them, where the table does not hold them (images)."""
    files: tuple[Path, ...] = ()
    """(N,) file of each row, where rows have files of their own (images)."""


def load_labelled(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    """Read labelled tables or images, whichever the model is for.

    Args:
        bundle: the model.
        paths: CSV or Parquet files for a model of tables; CSV manifests for a model of images.
        label: the column with the labels.

    Raises:
        DataError: unreadable input, or manifests without the label column.
    """
    return LOADERS[bundle.manifest["kind"]](bundle, paths, label)


def _labelled_table(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    del label  # checked where the labels are read
    table, data = read_table(find_files(paths)), bundle.manifest["config"]["data"]
    return LabelledInput(table, _present(table, data["group"]), _present(table, data.get("time")))


def _labelled_images(bundle: Bundle, paths: Sequence[str], label: str) -> LabelledInput:
    from pipelines.datasets.images import read_labelled

    schema, _ = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    table, batch, files = read_labelled(paths, schema, label)
    return LabelledInput(table, _present(table, GROUP), None, batch, files)


def _present(table: pa.Table, column: str | None) -> str | None:
    return column if column in table.column_names else None


LOADERS = {"tabular": _labelled_table, "image": _labelled_images}
"""How labelled input is read, by kind of data."""
