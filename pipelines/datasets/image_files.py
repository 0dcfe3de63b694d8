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

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import HEAD_BYTES, is_image_file, read_file, recognise_format
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageBatch, ImageSchema, image_batch
from anomaly_vae.messages import listed
from pipelines import console

PATH, FRAME, LABEL = "path", "frame", "label"


BATCH_SIZE = 64
"""Number of images scored at a time."""
MAX_SKIPPED_NAMES = 3
"""Maximum number of skipped files that are named."""


@dataclass(frozen=True)
class ImageFile:
    """A file to read: its path, its name in outputs, and its manifest row (empty without one)."""

    path: Path
    name: str
    attributes: dict[str, str | None]

    @classmethod
    def from_path(cls, path: Path) -> ImageFile:
        """Create the entry of a file without a manifest; invalid bytes of its name are escaped."""
        return cls(path, os.fsencode(path).decode(errors="backslashreplace"), {})


@dataclass(frozen=True)
class Batch:
    """Consecutive images with their files and frames."""

    files: tuple[int, ...]
    """Index of the file of each image."""
    frames: tuple[int | None, ...]
    """Frame of each image in its file, from 0; None for a file that cannot be read at all."""
    images: ImageBatch


def find_images(paths: Sequence[str]) -> list[ImageFile]:
    """Find image files by files, folders (searched recursively), globs and manifests.

    Files in the folders that are not images are skipped and reported.

    Raises:
        DataError: A path leads to no image, or a manifest or a folder cannot be read.
    """
    found: dict[str, ImageFile] = {}
    skipped: dict[str, Path] = {}
    for path in paths:
        files = list(_expand(path, skipped))
        if not files:
            raise DataError(f"'{path}': no image is there", path=path)
        for file in files:
            known = found.get(key := _file_key(file.path))
            if known is None or not known.attributes:  # prefer the entry of a manifest
                found[key] = file
    _report_skipped([path for key, path in skipped.items() if key not in found])
    return list(found.values())


def _file_key(path: Path) -> str:
    """Return the absolute path of a file, without following links, to detect duplicates."""
    short = os.path.abspath(path)  # noqa: PTH100 removes "..", which `Path.absolute` keeps
    with suppress(OSError):  # nothing is there: only the paths can be compared
        if ".." in path.parts and not path.samefile(short):  # ".." after a link
            return str(path.absolute())
    return short


def _report_skipped(skipped: Sequence[Path]) -> None:
    """Print how many files in the folders are not images."""
    if not skipped:
        return
    names = ", ".join(repr(path.name) for path in skipped[:MAX_SKIPPED_NAMES])
    names += ", …" if len(skipped) > MAX_SKIPPED_NAMES else ""
    several = "files in the folders are no images and were"
    what = several if len(skipped) > 1 else "file in the folders is no image and was"
    console.info(f"{len(skipped)} {what} skipped: {names}")


def _expand(pattern: str, skipped: dict[str, Path]) -> Iterator[ImageFile]:
    path = Path(pattern)
    if path.suffix.lower() == ".csv" and path.is_file():
        yield from _read_manifest(path)
    elif path.is_dir():
        yield from _search(path, skipped)
    elif os.path.lexists(path):  # reading it will report whether it is an image
        yield ImageFile.from_path(path)
    else:
        for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 absolute ones too
            readable = Path(name).is_dir() or is_image_file(Path(name))
            yield from _expand(name, skipped) if readable else ()


def _search(folder: Path, skipped: dict[str, Path]) -> Iterator[ImageFile]:
    for path in sorted(_visible_files(folder)):
        if is_image_file(path):
            yield ImageFile.from_path(path)
        else:
            skipped[_file_key(path)] = path


def _read_manifest(manifest: Path) -> Iterator[ImageFile]:
    """Read a CSV manifest with one row for each file; paths are relative to the manifest."""
    seen: set[str] = set()
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if PATH not in (reader.fieldnames or ()):
                raise DataError(_missing_paths(manifest, reader.fieldnames or ()))
            for row in reader:
                image = _manifest_entry(manifest, reader.line_num, row)
                if (key := _file_key(image.path)) in seen:
                    again = f"'{image.name}' is listed a second time; keep one of its rows"
                    raise DataError(f"'{manifest}' line {reader.line_num}: {again}")
                seen.add(key)
                yield image
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        undecodable = isinstance(error, UnicodeDecodeError)
        reason = "it is not UTF-8 text; save it as UTF-8" if undecodable else error
        raise DataError(f"'{manifest}' cannot be read as a manifest: {reason}") from None


def _missing_paths(manifest: Path, columns: Sequence[str]) -> str:
    found = f"'{manifest}': a manifest needs a column 'path', found {listed(columns)}"
    return f"{found}; the model scores images"


def _manifest_entry(manifest: Path, line: int, row: dict[str, str | None]) -> ImageFile:
    name = row.pop(PATH)
    if not name or None in row:  # key of the cells that exceed the columns
        raise DataError(f"'{manifest}' line {line}: expected a path and one cell for each column")
    if "\0" in name:
        raise DataError(f"'{manifest}' line {line}: a path cannot hold a zero byte")
    return ImageFile(manifest.parent / name, name, row)


def _visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder at any depth that are not hidden.

    Links are followed, but no folder is visited twice.

    Raises:
        DataError: A folder cannot be searched.
    """
    seen: set[Path] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        seen.add(Path(parent).resolve())
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and Path(parent, name).resolve() not in seen
        ]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    """Refuse a folder that cannot be searched, instead of silently missing its images."""
    reason = f"'{error.filename}' cannot be searched: {error.strerror}; change its permissions"
    raise DataError(reason, path=str(error.filename)) from None


def read_images(files: Sequence[ImageFile], schema: ImageSchema) -> Iterator[Batch]:
    """Yield batches of the images in all files, in order; unreadable images become problems."""
    numbers: list[int] = []
    frames: list[int | None] = []

    def take_batch() -> Iterator[DecodedImage | DecodeFailure]:
        """Yield the images of one batch, each released before the next is decoded."""
        for number, image in itertools.islice(images, BATCH_SIZE):
            numbers.append(number)
            frames.append(image.frame)
            yield image

    images = (
        (number, image)
        for number, file in enumerate(files)
        for image in read_file(file.path, schema.options)
    )
    while len(batch := schema.from_images(take_batch())):
        yield Batch(tuple(numbers), tuple(frames), batch)
        numbers.clear()
        frames.clear()


def is_dicom(path: Path) -> bool:
    """Return whether the content of a file is DICOM, with or without its preamble."""
    with path.open("rb") as stream:
        return recognise_format(stream.read(HEAD_BYTES)) == "DICOM"


def read_all(files: Sequence[ImageFile], schema: ImageSchema) -> Batch:
    """Read every image of these files into one batch."""
    batches = []
    with console.progress("Reading", len(files)) as (bar, task):
        for batch in read_images(files, schema):
            batches.append(batch)
            bar.update(task, completed=batch.files[-1] + 1, note="")
    return Batch(
        tuple(number for batch in batches for number in batch.files),
        tuple(frame for batch in batches for frame in batch.frames),
        concatenate([batch.images for batch in batches]),
    )


def concatenate(batches: Sequence[ImageBatch]) -> ImageBatch:
    """Concatenate batches of images."""
    starts = np.cumsum([0, *map(len, batches)]).tolist()
    problems = [
        replace(problem, row=problem.row + start)
        for batch, start in zip(batches, starts, strict=False)
        for problem in batch.problems
    ]
    images = np.concatenate([np.asarray(batch.values[IMAGE]) for batch in batches])
    in_colour = sum(batch.in_colour for batch in batches)
    saturated = sum(batch.saturated for batch in batches)
    return image_batch(images, problems, in_colour, saturated)
