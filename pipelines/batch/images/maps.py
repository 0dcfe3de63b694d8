"""Write the maps of flagged images in the pixels of their files, for other programs to read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.map_files import nifti_map, npy_map, tiff_map
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.modality import image_modality
from pipelines import console
from pipelines.batch import MapFormat
from pipelines.batch.result.folder import MAPS, ResultFolder
from pipelines.datasets.images.batches import content_of
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.reading.parts import first_line

Heat = NDArray[np.float32]


SUFFIXES = {MapFormat.NIFTI: "nii.gz", MapFormat.NPY: "npy", MapFormat.TIFF: "tiff"}
"""Ending of the names of files in each format."""
NO_LOCALIZATION = (
    "this score does not localise: the maps show what each pixel adds to the score, and not where "
    "anomalies are; train with model.localization_head: true and score: contamination to see where"
)
"""Message about maps of a model whose maps do not show inserted lesions."""


@dataclass(frozen=True)
class MapWriter:
    """Writes maps (H, W) of files with flagged images: what each pixel adds to the score.

    Maps are enlarged linearly to the pixels of the image. NPY and TIFF files have the map of one
    flagged image, NIfTI files the maps of all images of a file, on the grid of a volume.
    """

    bundle: Bundle
    folder: ResultFolder
    format: MapFormat

    @property
    def schema(self) -> ImageSchema:
        """How images are read."""
        return image_modality(self.bundle.scorer.schema, self.bundle.scorer.encoding)[0]

    def write(
        self, file: ImageFile, flagged: Collection[int], stem: Callable[[ImageFile, int], str]
    ) -> int:
        """Write the maps of a file with flagged frames; return the number of files.

        A file that has changed since it was scored, and now cannot be read, has none.
        """
        try:
            written = dict(self._files(content_of(file, self.schema), flagged))
        except (OSError, DataError) as error:
            console.info(f"no map of {file.label}: {first_line(error)}")
            return 0
        for frame, content in written.items():
            name = f"{MAPS}/{stem(file, frame)}.{SUFFIXES[self.format]}"
            self.folder.write(name, content)
        return len(written)

    def _files(self, content: bytes, flagged: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the first frame and the content of each file of maps."""
        if self.format == MapFormat.NIFTI:
            yield from self._volume(content)
            return
        encode = (
            npy_map
            if self.format == MapFormat.NPY
            else partial(tiff_map, description=self.bundle.heat_scale.unit)
        )
        for image, heat in self._maps(content, flagged):
            yield image.frame, encode(heat)

    def _volume(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the maps of all frames of a file as one volume."""
        maps, spacing = {}, None
        for image, heat in self._maps(content, None):
            maps[image.frame] = heat
            spacing = image.spacing if image.in_mm else None
        if len({heat.shape for heat in maps.values()}) > 1:
            raise DataError("its images differ in size and are no volume; write --maps tiff")
        if maps:
            yield min(maps), nifti_map(maps, content, self.schema.options, spacing)

    def _maps(
        self, content: bytes, frames: Collection[int] | None
    ) -> Iterator[tuple[DecodedImage, Heat]]:
        """Yield the images of a file with their maps; of some frames, or of all (None)."""
        for image in read_bytes(content, self.schema.options):
            wanted = frames is None or image.frame in frames
            if not isinstance(image, DecodedImage) or not wanted:
                continue
            batch = self.schema.from_images([image])
            if batch.usable.all():
                heat = self.bundle.scorer.explain(batch).nats.reshape(self.schema.size, -1)
                yield image, self.schema.to_source(heat.astype(np.float32), image, np.nan)
