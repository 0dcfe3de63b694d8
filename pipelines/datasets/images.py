"""Folders, globs and manifests of images, read as a stream or as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.config import ImageData
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import (
    CALIBRATION,
    TEST,
    TRAIN,
    VALIDATION,
    Rows,
    assign,
    contained_in,
)
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import IMAGE, encode_picture
from anomaly_vae.images.perceptual_hash import hash_twins, perceptual_hash
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.messages import listed
from anomaly_vae.scoring.modality import Encoding
from pipelines.datasets.dataset import GROUP, Dataset, only_fit, unfit_note, unlabelled_note
from pipelines.datasets.image_files import FRAME, LABEL, PATH, Batch, Item, find_images, read_all
from pipelines.datasets.labels import anomaly_mask, check_positive, group_codes, unlabelled_mask

# ---------------------------------------------------------------- data sets


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """N images, their labels and groups, and their split."""

    schema: ImageSchema

    TWINS = "have a near-twin among those that train or calibrate, which flatters the figures"

    @property
    def test_table(self) -> pa.Table:
        """The images of the test split as they came, and nothing else of their files.

        No paths, and groups as numbers: either may name a patient.
        """
        rows = self.assignment.rows(TEST)
        columns = {IMAGE: pa.array(self._pictures(rows), pa.binary())}
        if self.label:
            columns[self.label] = self.table.column(self.label).take(pa.array(rows))
        if self.rows.group is not None:
            columns[GROUP] = pa.array(self.rows.group[rows])
        return pa.table(columns)

    @property
    def rules(self) -> dict[str, Any]:
        """See `Dataset.rules`."""
        reading = self.schema.reading
        return {"reading": {"window": reading.window, "axis": reading.axis}}

    def _pictures(self, rows: NDArray[np.intp]) -> list[bytes]:
        """PNGs of these images; each file is read once."""
        frames: dict[Path, set[int]] = {}
        known = self.table.column(FRAME).to_pylist()
        for row in rows:
            frames.setdefault(self.files[row], set()).add(known[row])
        found = [
            encode_picture(picture)
            for file, wanted in frames.items()
            for picture in read_file(file, self.schema.reading)
            if isinstance(picture, DecodedImage) and picture.frame in wanted
        ]
        if len(found) < len(rows):
            raise DataError("images of the test split changed while they were read; run it again")
        return found

    def test_twins(self, encoding: Encoding) -> NDArray[np.bool_]:
        """Test images with a near-twin, mirrored or not, among those that train or calibrate."""
        del encoding
        splits = (TRAIN, VALIDATION, CALIBRATION)
        rows = np.concatenate([self.assignment.rows(split) for split in splits])
        return hash_twins(self.hashes[self.assignment.rows(TEST)], self.hashes[rows])

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """(N, 2): the perceptual hash of each image and of its mirror image."""
        grey = np.asarray(self.batch.values[IMAGE]).mean(1)
        pairs = [(perceptual_hash(image), perceptual_hash(image[:, ::-1])) for image in grey]
        return np.array(pairs, np.uint64).reshape(-1, 2)

    def without(self, frozen: pa.Table) -> ImageDataset:
        """See `Dataset.without`; images are the same where their prepared pixels are."""
        theirs = self.schema.from_arrow(frozen)
        known = contained_in(_flat(self.batch), _flat(theirs)) & ~contained_in(
            _flat(self.batch), _flat(self.part(TEST))
        )
        return self.excluding(known)


def _flat(batch: RawBatch) -> NDArray[np.float32]:
    """(N, F)"""
    images: NDArray[np.float32] = np.asarray(batch.values[IMAGE]).reshape(len(batch), -1)
    return images


def load_images(data: ImageData) -> ImageDataset:
    """Read every image, and split them; the frames of a file stay together.

    Raises:
        DataError: unreadable input, unknown columns or an empty split.
    """
    items, schema = find_images(data.paths), ImageSchema.of(data)
    read = read_all(items, schema)
    label, group = _column(items, data.label, LABEL), _column(items, data.group, GROUP)
    table = index_of(items, read, label, group)
    rows = _rows(table, data, label)
    planned = assign(rows, data.splits)
    return ImageDataset(
        table=table,
        schema=schema,
        batch=read.images,
        rows=rows,
        assignment=only_fit(planned, read.images),
        notes=(*unfit_note(read.images), *unlabelled_note(rows, planned)),
        label=LABEL if label else None,
        group=GROUP if rows.group is not None else None,
        files=tuple(items[number].file for number in read.items),
    )


def read_labelled(
    paths: Sequence[str], schema: ImageSchema, label: str
) -> tuple[pa.Table, RawBatch, tuple[Path, ...]]:
    """The index of all images with their labels, the images, and the file of each.

    Raises:
        DataError: see `find_images`, or no manifest has such a column.
    """
    items = find_images(paths)
    column, group = _column(items, label, label), _column(items, None, GROUP)
    if column is None:
        raise DataError(f"the labels are in no manifest; give one with the column '{label}'")
    read = read_all(items, schema)
    table = index_of(items, read, column, None if column == GROUP else group)
    names = [label if name == LABEL else name for name in table.column_names]
    files = tuple(items[number].file for number in read.items)
    return table.rename_columns(names), read.images, files


def index_of(items: Sequence[Item], read: Batch, label: str | None, group: str | None) -> pa.Table:
    """What is known of each image: path, frame, label and group, and what else manifests say.

    The frames of one file belong together where nothing else is said.
    """
    numbers = read.items
    columns = {
        PATH: pa.array([items[n].name for n in numbers], pa.string()),
        FRAME: pa.array(read.frames, pa.int32()),
    }
    if label:
        columns[LABEL] = pa.array([items[n].facts.get(label) or None for n in numbers], pa.string())
    named = [items[n].facts.get(group) or None if group else None for n in numbers]
    if len(set(numbers)) < len(numbers):
        named = [name or f"file {n}" for name, n in zip(named, numbers, strict=True)]
    if any(named):
        columns[GROUP] = pa.array(named, pa.string())
    for name in dict.fromkeys(name for item in items for name in item.facts):
        if name and name not in {*columns, label, group, LABEL, GROUP}:
            cells = [items[n].facts.get(name) or None for n in numbers]
            columns[name] = pa.array(cells, pa.string())
    return pa.table(columns)


def _column(items: Sequence[Item], name: str | None, usual: str) -> str | None:
    """The column of that name, or without one the usual, where any manifest has it.

    Raises:
        DataError: there is none of that name.
    """
    known = set().union(*(item.facts for item in items))
    if not known:  # no manifest: nothing is known of the images
        return None
    if name is not None and name not in known:
        found = listed(sorted(known))
        raise DataError(f"no manifest has the column '{name}'; found {found}", column=name)
    return name or (usual if usual in known else None)


def _rows(table: pa.Table, data: ImageData, label: str | None) -> Rows:
    anomaly = unlabelled = np.zeros(len(table), bool)
    if label:
        labels = table.column(LABEL)
        check_positive(labels, data.positive, label)
        anomaly = anomaly_mask(labels, data.positive, label)
        unlabelled = unlabelled_mask(labels, label)
    group = GROUP if GROUP in table.column_names else None
    return Rows(anomaly, unlabelled, None, group_codes(table, group))
