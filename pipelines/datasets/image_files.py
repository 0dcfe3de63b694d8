"""Find and read image files."""

from __future__ import annotations

import csv
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import is_picture, read_file
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageSchema, batch_of
from anomaly_vae.messages import listed
from pipelines import console

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
    console.info(f"{len(skipped)} {what} skipped: {names}")


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
        pictures: Iterator[tuple[int, DecodedImage | DecodeFailure]],
    ) -> Iterator[DecodedImage | DecodeFailure]:
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
