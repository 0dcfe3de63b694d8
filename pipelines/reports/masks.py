"""Compare the maps of labelled images with masks of their anomalies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.localization import PixelFigures, pixel_figures
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.modality import image_modality
from pipelines import console
from pipelines.datasets.images.files import DEFECT, FRAME, ImageFile
from pipelines.datasets.images.listing import list_files
from pipelines.reports.labelled import Judged, Labelled

Mask = NDArray[np.bool_]
SUFFIXES = ("_mask", "-mask", "_gt", "_seg")
"""Endings that the name of a mask may have after the name of its image."""
BATCH_IMAGES = 64
"""Number of images whose maps are computed at a time."""
MAX_SIDE = 512
"""Longest side of the maps that are compared, in pixels; of larger ones every n-th pixel is."""


class Masks:
    """Mask files, found by the names of images and of the folders they are in."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: dict[tuple[str, str], list[ImageFile]] = defaultdict(list)
        files = [file for file in list_files([folder]) if not file.problem]
        for file in files:
            name = _stem(file.path)
            self._files[file.path.parent.name, name].append(file)
            self._files["", name].append(file)
        self.count = len(files)

    def of(self, image: Path) -> Path | None:
        """Return the mask of an image: in a folder of the same name, else the only one so named.

        Raises:
            DataError: several masks may belong to the image.
        """
        beside = self._files.get((image.parent.name, image.stem), ())
        found = beside or self._files.get(("", image.stem), ())
        if len(found) > 1:
            names = f"'{found[0].path}' and '{found[1].path}'"
            raise DataError(
                f"{names} may both be the mask of '{image}'; put masks into folders named like "
                "those of their images",
                path=str(found[0].path),
            )
        return found[0].path if found else None


def _stem(path: Path) -> str:
    """Return the name of the image that a mask belongs to, without its suffix."""
    for suffix in SUFFIXES:
        if path.stem.endswith(suffix):
            return path.stem.removesuffix(suffix)
    return path.stem


@dataclass(frozen=True)
class PixelReport:
    """Figures of all images with a mask, of those with each defect, and the images without."""

    figures: PixelFigures
    by_defect: Mapping[str, PixelFigures] = field(default_factory=dict)
    without_mask: int = 0
    """Number of anomalous images that no mask belongs to, which no figure counts."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **self.figures.to_json(),
            "without_mask": self.without_mask,
            "by_defect": {name: figures.to_json() for name, figures in self.by_defect.items()},
        }

    def metrics(self) -> dict[str, float]:
        """Return the figures for MLflow."""
        figures = self.figures
        values = {
            "pixel_auroc": figures.auroc,
            "pixel_average_precision": figures.average_precision,
            "region_overlap": figures.region_overlap,
        }
        return {name: value for name, value in values.items() if value is not None}

    def show(self) -> None:
        """Print the figures as a table."""
        console.table(
            "Where the anomalies are: maps against masks",
            ("defect", "images", "pixel AUROC", "pixel average precision", "region overlap"),
            [_row(name, figures) for name, figures in self.by_defect.items()]
            + [_row("all", self.figures)],
        )
        if self.without_mask:
            console.info(f"{self.without_mask} anomalous images have no mask and are left out")


def _row(name: str, figures: PixelFigures) -> tuple[Any, ...]:
    values = (figures.auroc, figures.average_precision, figures.region_overlap)
    return name, figures.images, *values


def pixel_report(bundle: Bundle, judged: Judged, folder: str) -> PixelReport:
    """Compare the maps of scored images with the masks in a folder.

    A normal image needs no mask: none of its pixels is anomalous. Figures of a defect are over its
    images and all normal ones.

    Args:
        bundle: a model of images.
        judged: its decisions on labelled images.
        folder: the folder with masks; see `Masks`.

    Raises:
        DataError: no mask belongs to an anomalous image, or one has another shape than its image.
    """
    masks, labelled = Masks(folder), judged.labelled
    known = np.flatnonzero(judged.known).tolist()
    found = {row: masks.of(labelled.files[row]) for row in known}
    anomalous = {row for row in found if labelled.anomaly[row]}
    rows = [row for row in found if found[row] or row not in anomalous]
    if not anomalous & set(rows):
        raise DataError(
            f"'{folder}': none of its {masks.count} images is a mask of an anomalous image; a mask "
            "is named like its image, with or without _mask, in a folder of the same name",
            path=folder,
        )
    maps, truth = _maps_and_masks(bundle, judged, rows, found)
    normal = ~labelled.anomaly[rows]
    return PixelReport(
        pixel_figures(maps, truth),
        {
            name: pixel_figures(
                [maps[i] for i in np.flatnonzero(normal | chosen)],
                [truth[i] for i in np.flatnonzero(normal | chosen)],
            )
            for name, chosen in _by_defect(judged, rows)
        },
        len(found) - len(rows),
    )


def _maps_and_masks(
    bundle: Bundle, judged: Judged, rows: Sequence[int], masks: Mapping[int, Path | None]
) -> tuple[list[NDArray[np.float32]], list[Mask]]:
    """Return the maps and masks (H, W) of the images at these positions, in their own pixels."""
    schema, maps, truth = _schema(bundle), [], []
    frames = lru_cache(maxsize=2)(partial(_frames, schema))  # an image and its mask
    for row, heat in zip(rows, _model_maps(bundle, judged, rows), strict=True):
        image, mask = _image_and_mask(frames, judged.labelled, row, masks[row])
        step = math.ceil(max(mask.shape) / MAX_SIDE)
        source = schema.to_source(heat, image, outside=float(heat.min()))
        maps.append(source[::step, ::step])
        truth.append(mask[::step, ::step])
    return maps, truth


def _model_maps(bundle: Bundle, judged: Judged, rows: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Yield the smoothed maps (S, S) of the images at these positions."""
    assert judged.batch is not None
    side = _schema(bundle).size
    for start in range(0, len(rows), BATCH_IMAGES):
        batch = judged.batch.take(np.asarray(rows[start : start + BATCH_IMAGES]))
        nats = bundle.scorer.explain(batch).nats
        yield from smoothed(nats.reshape(-1, side, side).astype(np.float32))


def _schema(bundle: Bundle) -> ImageSchema:
    return image_modality(bundle.scorer.schema, bundle.scorer.encoding)[0]


def _image_and_mask(
    frames: Callable[[Path], Sequence[DecodedImage]],
    labelled: Labelled,
    row: int,
    path: Path | None,
) -> tuple[DecodedImage, Mask]:
    """Return an image and its mask (H, W), which is empty without a file."""
    frame, file = labelled.table.column(FRAME)[int(row)].as_py(), labelled.files[row]
    image = _frame(frames(file), file, frame)
    shape = image.pixels.shape[:2]
    if path is None:
        return image, np.zeros(shape, bool)
    pixels = _frame(frames(path), path, frame).pixels
    mask = (pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 0
    if mask.shape != shape:
        size, other = (f"{width} × {height}" for height, width in (mask.shape, shape))
        raise DataError(
            f"'{path}': the mask has {size} pixels, its image {other}; give one of the same size",
            path=str(path),
        )
    return image, mask


def _frames(schema: ImageSchema, path: Path) -> list[DecodedImage]:
    """Return the frames of a file that can be decoded."""
    return [one for one in read_file(path, schema.options) if isinstance(one, DecodedImage)]


def _frame(images: Sequence[DecodedImage], path: Path, frame: int) -> DecodedImage:
    """Return a frame of a file, or the only one it has."""
    for image in images:
        if image.frame == frame or len(images) == 1:
            return image
    raise DataError(f"'{path}': frame {frame} cannot be read; give a mask for it", path=str(path))


def _by_defect(judged: Judged, rows: Sequence[int]) -> Iterator[tuple[str, Mask]]:
    """Yield each defect that folders or a manifest name, with a mask (N,) of its anomalies."""
    table = judged.labelled.table
    if DEFECT not in table.column_names:
        return
    names = table.column(DEFECT).to_pylist()
    defects = np.array([names[row] or "" for row in rows])
    anomaly = judged.labelled.anomaly[rows]
    for name in sorted({*defects[anomaly].tolist()} - {""}):
        yield name, anomaly & (defects == name)
