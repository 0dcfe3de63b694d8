"""What is known of an image without looking at it: size, format, header; and at a glance.

None of it should tell anomalies from normal images. Where it does, they come from different
sources, and a detector may tell the sources. Values never leave this process: headers hold names.
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
from pipelines.datasets.image_files import is_dicom

BORDER = 16
"""The border of an image is this part of its side."""
HEADER = (
    "Manufacturer", "ManufacturerModelName", "Rows", "Columns", "BitsStored", "Modality",
    "PhotometricInterpretation", "PixelSpacing",
)  # fmt: skip
"""What is read of a DICOM header: nothing that names a patient."""


def file_facts(files: Sequence[Path]) -> dict[str, Values]:
    """Facts of N files; missing where a file has none such."""
    known: dict[Path, dict[str, Any]] = {}
    for file in files:
        if file not in known:
            known[file] = dict(_facts(file))
    names = dict.fromkeys(name for facts in known.values() for name in facts)
    return {name: _values([known[file].get(name) for file in files]) for name in names}


def glances(batch: RawBatch) -> dict[str, Values]:
    """What a glance at N images shows, before they are standardised."""
    images = np.asarray(batch.values[IMAGE]).mean(1, dtype=np.float64)
    margin = max(images.shape[-1] // BORDER, 1)
    inner = np.zeros(images.shape[1:], bool)
    inner[margin:-margin, margin:-margin] = True
    return {
        "brightness": images.mean((1, 2)),
        "contrast": images.std((1, 2)),
        "brightness at the border": images[:, ~inner].mean(1),
    }


def _facts(file: Path) -> Iterator[tuple[str, Any]]:
    with suppress(OSError):
        yield "size in bytes", file.stat().st_size
    yield "suffix", file.suffix.lower() or None
    with LIBRARIES_SILENCED, suppress(Exception):  # what is damaged was told when it was read
        yield from _dicom_header(file) if is_dicom(file) else _raster_header(file)


def _raster_header(file: Path) -> Iterator[tuple[str, Any]]:
    with Image.open(file) as picture:
        yield "format", picture.format
        yield "colour mode", picture.mode
        yield "width", picture.width
        yield "height", picture.height
        yield "header fields", ", ".join(sorted(map(str, picture.info)))


def _dicom_header(file: Path) -> Iterator[tuple[str, Any]]:
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER), force=True)
    yield "format", "DICOM"
    for name in HEADER:
        if name in header:
            yield name, str(header[name].value)


def _values(found: list[Any]) -> Values:
    numeric = all(isinstance(value, int | None) for value in found)
    return (numbers_from_values if numeric else levels_from_values)(found)[0]
