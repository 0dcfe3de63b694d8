"""Load folders, globs and manifests of images as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.config.data import ImageData
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION, assign, contained_in
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import IMAGE, encode_png
from anomaly_vae.images.notes import image_notes
from anomaly_vae.images.perceptual_hash import has_near_duplicate, perceptual_hash
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.messages import listed
from anomaly_vae.scoring.modality import Encoding
from anomaly_vae.types import SERIES, VOLUME
from pipelines import console
from pipelines.datasets.dataset import (
    GROUP,
    Dataset,
    unlabelled_note,
    without_unreadable,
)
from pipelines.datasets.images.batches import Batch, decoded_images, read_all
from pipelines.datasets.images.files import FRAME, LABEL, PATH, SPLIT, ImageFile, Reasons
from pipelines.datasets.images.groups import image_groups
from pipelines.datasets.images.layouts import TEST as TEST_FOLDER
from pipelines.datasets.images.layouts import TRAIN as TRAIN_FOLDER
from pipelines.datasets.images.listing import find_images, images_and_others
from pipelines.datasets.labels import labelled_rows

# ---------------------------------------------------------------- data sets


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """N images, their labels and groups, and their split."""

    schema: ImageSchema
    image_groups: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """Groups (N,) of the images as codes by kind, see `images.groups`."""
    masks: Mapping[Path, Path] = field(default_factory=dict)
    """File with the pixels that count of each file for which a manifest names one."""

    TWINS = "have a near-twin among those that train or calibrate, which flatters the figures"

    @property
    def test_table(self) -> pa.Table:
        """Images of the test split before preparation, with their labels and groups.

        Paths are left out and groups are numbered, since both may name a patient.
        """
        rows = self.assignment.rows(TEST)
        columns = {IMAGE: pa.array(self._encode(rows), pa.binary())}
        if self.label:
            columns[self.label] = self.table.column(self.label).take(pa.array(rows))
        if self.rows.group is not None:
            columns[GROUP] = pa.array(self.rows.group[rows])
        return pa.table(columns)

    @property
    def read_options(self) -> dict[str, Any]:
        """Options with which the test images were read; see `Dataset.read_options`."""
        options = self.schema.options
        windows = {"windows": options.windows} if options.windows else {}
        read = {"intensity_window": options.intensity_window, "axis": options.axis, **windows}
        return {"reading": read}

    def _encode(self, rows: NDArray[np.intp]) -> list[bytes]:
        """Encode the images of these rows as PNG, reading each file once."""
        wanted: dict[Path, set[int]] = {}
        frames = self.table.column(FRAME).to_pylist()
        for row in rows:
            wanted.setdefault(self.files[row], set()).add(frames[row])
        encoded = [
            encode_png(image)
            for path, numbers in wanted.items()
            for image in decoded_images(
                replace(ImageFile.from_path(path), mask=self.masks.get(path)), self.schema
            )
            if isinstance(image, DecodedImage) and image.frame in numbers
        ]
        if len(encoded) < len(rows):
            raise DataError("images of the test split changed while they were read; run it again")
        return encoded

    def test_twins(self, encoding: Encoding) -> NDArray[np.bool_]:
        """Return a mask (N,) of the test images with a near-duplicate in the other splits.

        A mirrored image is a near-duplicate, too.
        """
        del encoding
        splits = (TRAIN, VALIDATION, CALIBRATION)
        rows = np.concatenate([self.assignment.rows(split) for split in splits])
        return has_near_duplicate(self.hashes[self.assignment.rows(TEST)], self.hashes[rows])

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Perceptual hashes of each image and its mirror image, (N, 2)."""
        grey = np.asarray(self.batch.values[IMAGE]).mean(1)
        pairs = [(perceptual_hash(image), perceptual_hash(image[:, ::-1])) for image in grey]
        return np.array(pairs, np.uint64).reshape(-1, 2)

    def without(self, frozen: pa.Table) -> ImageDataset:
        """Exclude the images in ``frozen``; images are the same if their prepared pixels are."""
        images, own_test = _flatten(self.batch), _flatten(self.part(TEST))
        frozen_images = _flatten(self.schema.from_arrow(frozen))
        return self.excluding(contained_in(images, frozen_images) & ~contained_in(images, own_test))


def _flatten(batch: RawBatch) -> NDArray[np.float32]:
    """Return the images of a batch as rows (N, F)."""
    images: NDArray[np.float32] = np.asarray(batch.values[IMAGE]).reshape(len(batch), -1)
    return images


def load_images(data: ImageData) -> ImageDataset:
    """Read and split all images, keeping the frames of a file in the same split.

    Raises:
        DataError: The input cannot be read, a column is unknown or a split is empty.
    """
    found, schema = images_and_others(data.paths, data.layout), ImageSchema.from_config(data)
    files = found.images
    read = read_all(files, schema)
    label = _find_column(files, data.label, LABEL)
    group = _find_column(files, data.group, GROUP)
    table = build_index(files, read, label, group)
    groups = GROUP if GROUP in table.column_names else None
    rows = labelled_rows(table, LABEL if label else None, data.positive, groups, configured=label)
    rows = replace(rows, test=_given_test(files, read))
    planned = assign(rows, data.splits)
    return ImageDataset(
        table=table,
        schema=schema,
        batch=read.images,
        rows=rows,
        assignment=without_unreadable(planned, read.images),
        notes=(
            *found.lines,
            *unreadable(files, read).lines(),
            *image_notes(read.images, schema),
            *unlabelled_note(rows, planned),
        ),
        label=LABEL if label else None,
        group=GROUP if rows.group is not None else None,
        files=tuple(files[number].path for number in read.files),
        left_out=dict(found.others.counts),
        image_groups=image_groups(files, read, group),
        masks={file.path: file.mask for file in files if file.mask},
    )


def _given_test(files: Sequence[ImageFile], read: Batch) -> NDArray[np.bool_] | None:
    """Return a mask (N,) of the images in folders to test on; None if no folder names a split."""
    splits = [files[number].attributes.get(SPLIT) for number in read.files]
    return np.array(splits) == TEST_FOLDER if any(splits) else None


def unreadable(files: Sequence[ImageFile], read: Batch) -> Reasons:
    """Return the images that cannot be read, by reason."""
    reasons = Reasons()
    for problem in read.images.problems:
        reasons.add(files[read.files[problem.row]], problem.reason)
    return reasons


def read_labelled(
    paths: Sequence[str], schema: ImageSchema, label: str | None
) -> tuple[pa.Table, RawBatch, tuple[Path, ...]]:
    """Read all images with their labels, if wanted, and return their index, batch and files.

    Raises:
        DataError: No manifest has the column ``label``; see also `find_images`.
    """
    files = _to_test(find_images(paths, "auto"))
    column = label and _find_column(files, label, label)
    group = _find_column(files, None, GROUP)
    if label and column is None:
        raise DataError(f"the labels are in no manifest; give one with the column '{label}'")
    read = read_all(files, schema)
    unreadable(files, read).show()
    table = build_index(files, read, column, None if column == GROUP else group)
    names = [label if label and name == LABEL else name for name in table.column_names]
    paths_read = tuple(files[number].path for number in read.files)
    return table.rename_columns(names), read.images, paths_read


def _to_test(files: Sequence[ImageFile]) -> Sequence[ImageFile]:
    """Leave out images of folders to train on, if others are to test on."""
    test = [file for file in files if file.attributes.get(SPLIT) != TRAIN_FOLDER]
    if len(test) < len(files):
        trained = len(files) - len(test)
        console.info(f"{trained:,} images of folders to train on are left out of the evaluation")
    return test


def build_index(
    files: Sequence[ImageFile], read: Batch, label: str | None, group: str | None
) -> pa.Table:
    """Return a table of the images: path, frame, label, group and other columns of manifests.

    Images without a group are grouped by file, if any file has several frames, or by DICOM series,
    if any series has several images.
    """
    numbers = read.files

    def attribute(name: str) -> list[str | None]:
        return [files[number].attributes.get(name) or None for number in numbers]

    columns = {
        PATH: pa.array([files[number].name for number in numbers], pa.string()),
        FRAME: pa.array(read.frames, pa.int32()),
    }
    if label:
        columns[LABEL] = pa.array(attribute(label), pa.string())
    groups: list[str | None] = attribute(group) if group else [None] * len(numbers)
    series = [uid or f"file {n}" for uid, n in zip(read.series, numbers, strict=True)]
    if len(set(series)) < len(series):
        groups = [name or own for name, own in zip(groups, series, strict=True)]
    if any(groups):
        columns[GROUP] = pa.array(groups, pa.string())
    for name in dict.fromkeys(name for file in files for name in file.attributes):
        if name and name not in {*columns, label, group, LABEL, GROUP}:
            columns[name] = pa.array(attribute(name), pa.string())
    return pa.table(columns)


def _find_column(files: Sequence[ImageFile], name: str | None, default: str) -> str | None:
    """Return the column ``name`` or, if that is None, the default if any manifest has it.

    Raises:
        DataError: No manifest has the column ``name``.
    """
    known = set().union(*(file.attributes for file in files))
    if not known or (default == GROUP and name in {SERIES, VOLUME} - known):
        return None  # there is no manifest, or files state their groups
    if name is not None and name not in known:
        found = listed(sorted(known))
        raise DataError(f"no manifest has the column '{name}'; found {found}", column=name)
    return name or (default if default in known else None)
