"""Folders, globs and manifests of images, read as a stream or as a data set."""

from __future__ import annotations

import csv
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.config import ImageData
from anomaly_vae.errors import DataError
from anomaly_vae.images import IMAGE, ImageSchema, batch_of, encode_picture
from anomaly_vae.modality import Encoding
from anomaly_vae.pictures import (
    Picture,
    Unreadable,
    hash_twins,
    is_picture,
    perceptual_hash,
    read_file,
)
from anomaly_vae.schema import RawBatch, listed
from anomaly_vae.splits import CALIBRATION, TEST, TRAIN, VALIDATION, Rows, assign, twins
from pipelines import console
from pipelines.data import (
    GROUP,
    Dataset,
    anomaly_mask,
    check_positive,
    group_codes,
    only_fit,
    unfit_note,
    unlabelled_mask,
    unlabelled_note,
)

PATH, FRAME, LABEL = "path", "frame", "label"
BATCH = 64
"""Images that are scored at a time."""
MOST_SKIPPED = 3
"""Files that are no images, that are named."""
OTHERS = (b"\x89PNG", b"\xff\xd8", b"II", b"MM", b"\x1f\x8b", b"\x5c\x01", b"\x00\x00\x01\x5c")
"""How PNG, JPEG, TIFF, gzip and NIfTI begin; DICOM without its preamble begins otherwise."""


@dataclass(frozen=True)
class Item:
    """One file to read: where it lies, what the output calls it, and what its manifest says."""

    file: Path
    name: str
    facts: dict[str, str | None]

    @classmethod
    def of(cls, file: Path) -> Item:
        """A file of which nothing is known; bytes of its name that are no text are spelled out."""
        return cls(file, os.fsencode(file).decode(errors="backslashreplace"), {})


@dataclass(frozen=True)
class Batch:
    """Some images in order, with the file and the frame (None: the whole file) of each."""

    items: tuple[int, ...]
    """which file each is of, by number"""
    frames: tuple[int | None, ...]
    images: RawBatch


def find_images(paths: Sequence[str]) -> list[Item]:
    """Images behind files, folders (searched throughout), globs and manifests.

    What else lies in the folders is told.

    Raises:
        DataError: a path leads to no image, a manifest cannot be read, or a folder not searched.
    """
    found: dict[str, Item] = {}
    skipped: dict[str, Path] = {}
    for path in paths:
        items = list(_items(path, skipped))
        if not items:
            raise DataError(f"'{path}': no image is there", path=path)
        for item in items:
            known = found.get(place := _place(item.file))
            if known is None or not known.facts:  # what a manifest says is not lost
                found[place] = item
    _tell([file for place, file in skipped.items() if place not in found])
    return list(found.values())


def _place(file: Path) -> str:
    """What a file given twice is known by: its absolute path, links as they are called."""
    short = os.path.abspath(file)  # noqa: PTH100 without the steps up
    with suppress(OSError):  # where nothing is there, the path is all that can be compared
        if ".." in file.parts and not file.samefile(short):  # a step up from a link
            return str(file.absolute())
    return short


def _tell(skipped: Sequence[Path]) -> None:
    """Say how many files of the folders are no images."""
    if not skipped:
        return
    names = ", ".join(repr(file.name) for file in skipped[:MOST_SKIPPED])
    names += ", …" if len(skipped) > MOST_SKIPPED else ""
    several = "files in the folders are no images and were"
    what = several if len(skipped) > 1 else "file in the folders is no image and was"
    console.say(f"{len(skipped)} {what} skipped: {names}")


def _items(path: str, skipped: dict[str, Path]) -> Iterator[Item]:
    place = Path(path)
    if place.suffix.lower() == ".csv" and place.is_file():
        yield from _manifest(place)
    elif place.is_dir():
        yield from _folder(place, skipped)
    elif os.path.lexists(place):  # whatever it is: reading it tells
        yield Item.of(place)
    else:
        for name in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 absolute patterns too
            known = Path(name).is_dir() or is_picture(Path(name))
            yield from _items(name, skipped) if known else ()


def _folder(place: Path, skipped: dict[str, Path]) -> Iterator[Item]:
    for file in sorted(_files(place)):
        if is_picture(file):
            yield Item.of(file)
        else:
            skipped[_place(file)] = file


def _manifest(place: Path) -> Iterator[Item]:
    """The rows of a CSV manifest, one for each file; paths are relative to it."""
    seen: set[str] = set()
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if PATH not in (reader.fieldnames or ()):
                raise DataError(_no_paths(place, reader.fieldnames or ()))
            for row in reader:
                item = _row(place, reader.line_num, row)
                if (known := _place(item.file)) in seen:
                    again = f"'{item.name}' is listed a second time; keep one of its rows"
                    raise DataError(f"'{place}' line {reader.line_num}: {again}")
                seen.add(known)
                yield item
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        no_text = isinstance(error, UnicodeDecodeError)
        reason = "it is not UTF-8 text; save it as UTF-8" if no_text else error
        raise DataError(f"'{place}' cannot be read as a manifest: {reason}") from None


def _no_paths(place: Path, columns: Sequence[str]) -> str:
    found = f"'{place}': a manifest needs a column 'path', found {listed(columns)}"
    return f"{found}; the model scores images"


def _row(place: Path, line: int, row: dict[str, str | None]) -> Item:
    name = row.pop(PATH)
    if not name or None in row:  # where DictReader keeps the cells that are too many
        raise DataError(f"'{place}' line {line}: expected a path and one cell for each column")
    if "\0" in name:
        raise DataError(f"'{place}' line {line}: a path cannot hold a zero byte")
    return Item(place.parent / name, name, row)


def _files(folder: Path) -> Iterator[Path]:
    """What lies in it at any depth and is not hidden; links are followed, in circles but once.

    Raises:
        DataError: a folder that may not be searched.
    """
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, onerror=_unsearched, followlinks=True):
        seen.add(Path(place).resolve())
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and Path(place, name).resolve() not in seen
        ]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _unsearched(error: OSError) -> None:
    """Refuse a folder whose images would be lost without a count."""
    reason = f"'{error.filename}' cannot be searched: {error.strerror}; change its permissions"
    raise DataError(reason, path=str(error.filename)) from None


def read_images(items: Sequence[Item], schema: ImageSchema) -> Iterator[Batch]:
    """Stream the images of all files, in order; what cannot be read is a problem of its batch."""
    numbers: list[int] = []
    frames: list[int | None] = []

    def some(
        pictures: Iterator[tuple[int, Picture | Unreadable]],
    ) -> Iterator[Picture | Unreadable]:
        """So many of them; each is let go of before the next is decoded."""
        for number, picture in itertools.islice(pictures, BATCH):
            numbers.append(number)
            frames.append(picture.frame)
            yield picture

    pictures = (
        (number, picture)
        for number, item in enumerate(items)
        for picture in read_file(item.file, schema.reading)
    )
    while len(batch := schema.from_pictures(some(pictures))):
        yield Batch(tuple(numbers), tuple(frames), batch)
        numbers.clear()
        frames.clear()


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
            if isinstance(picture, Picture) and picture.frame in wanted
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
        known = twins(_flat(self.batch), _flat(theirs)) & ~twins(
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


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM, or can be nothing else that is read."""
    with file.open("rb") as stream:
        head = stream.read(132)
    return head[128:] == b"DICM" or not head.startswith(OTHERS)


def read_all(items: Sequence[Item], schema: ImageSchema) -> Batch:
    """Every image of these files, as one batch."""
    batches = []
    with console.progress("Reading", len(items)) as (bar, task):
        for batch in read_images(items, schema):
            batches.append(batch)
            bar.update(task, completed=batch.items[-1] + 1, note="")
    return Batch(
        tuple(number for batch in batches for number in batch.items),
        tuple(frame for batch in batches for frame in batch.frames),
        joined([batch.images for batch in batches]),
    )


def joined(batches: Sequence[RawBatch]) -> RawBatch:
    """Batches of images as one."""
    starts = np.cumsum([0, *map(len, batches)]).tolist()
    problems = [
        replace(problem, row=problem.row + start)
        for batch, start in zip(batches, starts, strict=False)
        for problem in batch.problems
    ]
    images = np.concatenate([np.asarray(batch.values[IMAGE]) for batch in batches])
    return batch_of(images, problems)


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
