"""Read image files in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.geometry import Grid
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageBatch, ImageSchema, Seen, image_batch
from pipelines import console
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.reading.objects import ObjectPath, ahead, refuse_outage
from pipelines.datasets.reading.parts import first_line

BATCH_SIZE = 64
"""Number of images scored at a time."""
FETCHED_AHEAD = 4
"""Number of objects that each reader fetches ahead; they are in memory until they are decoded."""
Content = bytes | DecodeFailure | None
"""Content of an object, or why it cannot be read; None for a file, which is read when decoded."""


@dataclass(frozen=True)
class Batch:
    """Consecutive images with their files and frames."""

    files: tuple[int, ...]
    """Index of the file of each image."""
    frames: tuple[int | None, ...]
    """Frame of each image in its file, from 0; None for a file that cannot be read at all."""
    images: ImageBatch
    series: tuple[str, ...] = ()
    """UID of the DICOM series of each image; empty for other images."""
    positions: tuple[float | None, ...] = ()
    """Position of each image across its plane, in mm; None if its file states none."""
    grids: tuple[Grid | None, ...] = ()
    """Size of each image and of its pixels; None for one that cannot be used."""


def read_images(files: Sequence[ImageFile], schema: ImageSchema) -> Iterator[Batch]:
    """Yield batches of the images in all files, in order; unreadable images become problems.

    Raises:
        OutageError: the object store of a file does not answer.
    """
    numbers: list[int] = []
    frames: list[int | None] = []
    series: list[str] = []
    positions: list[float | None] = []
    grids: list[Grid | None] = []

    def take_batch() -> Iterator[DecodedImage | DecodeFailure]:
        """Yield the images of one batch, each released before the next is decoded."""
        for number, image in itertools.islice(images, BATCH_SIZE):
            numbers.append(number)
            frames.append(image.frame)
            series.append("" if isinstance(image, DecodeFailure) else image.series)
            positions.append(None if isinstance(image, DecodeFailure) else image.position)
            grids.append(_grid(schema, image))
            yield image

    images = (
        (number, image)
        for number, (file, content) in enumerate(zip(files, _contents(files, schema), strict=True))
        for image in _read(file, content, schema)
    )
    while len(batch := schema.from_images(take_batch())):
        yield Batch(
            tuple(numbers), tuple(frames), batch, tuple(series), tuple(positions), tuple(grids)
        )
        for collected in (numbers, frames, series, positions, grids):
            collected.clear()


def _grid(schema: ImageSchema, image: DecodedImage | DecodeFailure) -> Grid | None:
    with suppress(DataError):
        return None if isinstance(image, DecodeFailure) else schema.grid(image)
    return None


def content_of(file: ImageFile, schema: ImageSchema) -> bytes:
    """Return the content of a file, or of one that is too large its beginning.

    Raises:
        OSError: it cannot be opened.
    """
    with file.path.open("rb") as stream:
        return bytes(stream.read(schema.options.max_bytes + 1))


def _read(
    file: ImageFile, content: Content, schema: ImageSchema
) -> Iterator[DecodedImage | DecodeFailure]:
    if file.problem:
        return iter([DecodeFailure(file.problem, None)])
    if isinstance(content, DecodeFailure):
        return iter([content])
    return (
        read_file(file.path, schema.options)
        if content is None
        else read_bytes(content, schema.options)
    )


def _contents(files: Sequence[ImageFile], schema: ImageSchema) -> Iterator[Content]:
    """Yield the content of each object; a few are fetched ahead, since stores answer slowly."""
    fetch = partial(_fetch, schema=schema)
    remote = any(isinstance(file.path, ObjectPath) for file in files)
    return ahead(fetch, files, FETCHED_AHEAD) if remote else map(fetch, files)


def _fetch(file: ImageFile, schema: ImageSchema) -> Content:
    """Return the content of a file in an object store; None for other files.

    Raises:
        OutageError: the store does not answer.
    """
    if file.problem or not isinstance(file.path, ObjectPath):
        return None
    try:
        return content_of(file, schema)
    except OSError as error:
        refuse_outage(file.path, error)
        return DecodeFailure(f"it cannot be opened: {first_line(error)}; check its path", None)


def read_all(files: Sequence[ImageFile], schema: ImageSchema) -> Batch:
    """Read every image of these files into one batch."""
    batches = []
    with console.progress("Reading", "files", len(files)) as (bar, task):
        for batch in read_images(files, schema):
            batches.append(batch)
            bar.update(task, completed=batch.files[-1] + 1, note="")
    return Batch(
        tuple(number for batch in batches for number in batch.files),
        tuple(frame for batch in batches for frame in batch.frames),
        concatenate([batch.images for batch in batches]),
        tuple(uid for batch in batches for uid in batch.series),
        tuple(place for batch in batches for place in batch.positions),
        tuple(grid for batch in batches for grid in batch.grids),
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
    return image_batch(images, problems, sum((batch.seen for batch in batches), Seen()))
