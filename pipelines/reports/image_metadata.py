"""Collect metadata and simple statistics of images, to find leakage of the labels.

Neither should separate anomalies from normal images. If they do, anomalies and normal images come
from different sources, and a detector may learn the sources. The values are never written or
printed, since headers may hold names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly_vae.data.converters import levels_from_values, numbers_from_values
from anomaly_vae.data.schema import RawBatch, Values
from anomaly_vae.images.decoding import LIBRARIES_SILENCED
from anomaly_vae.images.encoding import IMAGE
from pipelines.datasets.images.files import is_dicom

BORDER = 16
"""Ratio of an image's side to the width of its border."""
HEADER = (
    "Manufacturer", "ManufacturerModelName", "Rows", "Columns", "BitsStored", "Modality",
    "PhotometricInterpretation", "PixelSpacing",
)  # fmt: skip
"""Elements of a DICOM header that are read, none of which names a patient."""


def file_metadata(files: Sequence[Path]) -> dict[str, Values]:
    """Read the metadata of N files, (N,) each; values that a file lacks are missing."""
    known: dict[Path, dict[str, Any]] = {}
    for file in files:
        if file not in known:
            known[file] = dict(_metadata(file))
    names = dict.fromkeys(name for metadata in known.values() for name in metadata)
    return {name: _values([known[file].get(name) for file in files]) for name in names}


def image_statistics(batch: RawBatch) -> dict[str, Values]:
    """Compute brightness and contrast of N images before they are standardised, (N,) each."""
    images = np.asarray(batch.values[IMAGE]).mean(1, dtype=np.float64)
    margin = max(images.shape[-1] // BORDER, 1)
    inner = np.zeros(images.shape[1:], bool)
    inner[margin:-margin, margin:-margin] = True
    return {
        "brightness": images.mean((1, 2)),
        "contrast": images.std((1, 2)),
        "brightness at the border": images[:, ~inner].mean(1),
    }


def _metadata(file: Path) -> Iterator[tuple[str, Any]]:
    with suppress(OSError):
        yield "size in bytes", file.stat().st_size
    yield "suffix", file.suffix.lower() or None
    with LIBRARIES_SILENCED, suppress(Exception):  # damage was reported when the file was decoded
        yield from _dicom_header(file) if is_dicom(file) else _raster_header(file)


def _raster_header(file: Path) -> Iterator[tuple[str, Any]]:
    with Image.open(file) as image:
        yield "format", image.format
        yield "colour mode", image.mode
        yield "width", image.width
        yield "height", image.height
        yield "header fields", ", ".join(sorted(map(str, image.info)))


def _dicom_header(file: Path) -> Iterator[tuple[str, Any]]:
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER), force=True)
    yield "format", "DICOM"
    for name in HEADER:
        if name in header:
            yield name, str(header[name].value)


def _values(cells: list[Any]) -> Values:
    numeric = all(isinstance(cell, int | None) for cell in cells)
    return (
        numbers_from_values(cells)[0] if numeric else levels_from_values(cells)[0].without_markers()
    )
