"""Tell which images belong together: those of a patient, of a DICOM series or of a file.

A group's score is the highest score of its images. Groups are named by a column of a manifest, or
by one of two words: `SERIES` for the DICOM series, `VOLUME` for the file that holds the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.types import SERIES, VOLUME
from pipelines.datasets.images.batches import Batch
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.labels import column_codes


def group_name(kind: str, file: ImageFile, series: str) -> str | None:
    """Return the name of the group of this kind that an image is in; None if it is in none."""
    if kind in file.attributes:
        return file.attributes[kind] or None
    return {SERIES: series or None, VOLUME: file.name}.get(kind)


def image_groups(
    files: Sequence[ImageFile], read: Batch, column: str | None
) -> Mapping[str, NDArray[np.int32]]:
    """Return the groups (N,) of images as codes, of each kind of which a group has several images.

    Args:
        files: the files that were read.
        read: their N images.
        column: the column of the manifest that names groups; None for none.
    """
    found = {}
    for kind in dict.fromkeys((*([column] if column else ()), SERIES, VOLUME)):
        pairs = zip(read.files, read.series, strict=True)
        names = [group_name(kind, files[number], series) for number, series in pairs]
        codes = column_codes(pa.table({kind: pa.array(names, pa.string())}), kind)
        if np.bincount(codes, minlength=1).max() > 1:
            found[kind] = codes
    return found
