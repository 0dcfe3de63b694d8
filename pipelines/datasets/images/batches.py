"""Read image files in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_bytes, read_file
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.geometry import Grid
from anomaly_vae.images.masking import OWN
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
NOT_ZERO = (0.5, 1.0)
"""Center and width of the window that makes values above 0 white."""
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
    return decoded_images(file, schema, content)


def decoded_images(
    file: ImageFile, schema: ImageSchema, content: bytes | None = None
) -> Iterator[DecodedImage | DecodeFailure]:
    """Yield the images of a file, each with its own mask if the model needs it.

    Raises:
        OutageError: the object store of a mask does not answer.
    """
    options = schema.options
    images = read_file(file.path, options) if content is None else read_bytes(content, options)
    if schema.mask != OWN or file.mask is None:
        return images
    masks = _masks(file.mask, schema)
    return (_with_mask(image, masks) for image in images)


def _masks(path: Path, schema: ImageSchema) -> list[DecodedImage | DecodeFailure]:
    """Return the frames of a mask, or why they cannot be read; not black is what counts."""
    options = replace(schema.options, intensity_window=NOT_ZERO, windows=())
    try:
        with path.open("rb") as stream:
            content = bytes(stream.read(options.max_bytes + 1))
    except (OSError, ValueError) as error:
        refuse_outage(path, error)
        return [DecodeFailure("it cannot be opened; check its path", None)]
    return list(read_bytes(content, options))


def _with_mask(
    image: DecodedImage | DecodeFailure, masks: Sequence[DecodedImage | DecodeFailure]
) -> DecodedImage | DecodeFailure:
    """Return an image with the frame of the mask that belongs to it, or why there is none."""
    if isinstance(image, DecodeFailure):
        return image
    mask = next((one for one in masks if len(masks) == 1 or one.frame == image.frame), None)
    if mask is None:
        return DecodeFailure("its mask has no such frame; give one for each frame", image.frame)
    if isinstance(mask, DecodeFailure):
        return DecodeFailure(f"its mask cannot be used: {mask.reason}", image.frame)
    pixels = mask.pixels if mask.pixels.ndim == 2 else mask.pixels.max(2)
    shape = image.pixels.shape[:2]
    if pixels.shape != shape:
        size, other = (f"{width} × {height}" for height, width in (pixels.shape, shape))
        reason = f"its mask has {size} pixels, and the image {other}; give one of the same size"
        return DecodeFailure(reason, image.frame)
    return replace(image, mask=pixels > 0)


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
