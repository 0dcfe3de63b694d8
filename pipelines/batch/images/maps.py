"""Write the maps of flagged images in the pixels of their files, for other programs to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.images.heatmaps import region_pixels
from anomaly_vae.images.map_files import nifti_map, npy_map, tiff_map
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.localization import LocalizationTest
from anomaly_vae.scoring.modality import image_modality
from pipelines import console
from pipelines.batch import MapFormat
from pipelines.batch.result.folder import MAPS, ResultFolder
from pipelines.datasets.images.batches import content_of, decoded_images
from pipelines.datasets.images.files import ImageFile, is_dicom
from pipelines.datasets.reading.parts import first_line
from pipelines.registry.model_uri import LoadedModel

Heat = NDArray[np.float32]

SUFFIXES = {
    MapFormat.NIFTI: "nii.gz",
    MapFormat.NPY: "npy",
    MapFormat.TIFF: "tiff",
    MapFormat.DICOM: "dcm",
    MapFormat.DICOM_SEG: "seg.dcm",
}
"""Ending of the names of files in each format."""
MAPS_REFUSED = "maps_refused"
"""Summary key: number of files with flagged images whose maps cannot be written."""
NO_LOCALIZATION = (
    "this score does not localise: the maps show what each pixel adds to the score, and not where "
    "anomalies are; to see where, {remedy}"
)
"""Message about maps of a model whose maps do not show inserted lesions."""
NOT_DICOM = "it is not DICOM, so there is no instance to refer to; write --maps npy or tiff"
NO_SEGMENTS = (
    "--maps dicom-seg: this score does not localise, so its regions are no segments; {remedy}, or "
    "leave it out"
)


def about_model(source: LoadedModel) -> dict[str, str]:
    """Return what a DICOM instance says of the model that made it."""
    model = source.to_json()
    return {"model": model["name"], "version": model["version"] or "", "digest": model["digest"]}


@dataclass(frozen=True)
class MapWriter:
    """Writes maps (H, W) of files with flagged images: what each pixel adds to the score.

    Maps are enlarged linearly to the pixels of the image. NPY, TIFF and DICOM files have the map of
    one flagged image, NIfTI files the maps of all images of a file, on the grid of a volume.
    """

    source: LoadedModel
    folder: ResultFolder
    format: MapFormat
    _refusal: console.Once = field(default_factory=console.Once)
    """The first refusal is printed."""

    @classmethod
    def of(cls, source: LoadedModel, folder: ResultFolder, format_: MapFormat) -> MapWriter:
        """Return a writer, and say if the maps do not show where anomalies are.

        Raises:
            ConfigError: They do not, and their regions are to be segments.
        """
        if not source.bundle.localizes:
            remedy = LocalizationTest.remedy(source.bundle.manifest["config"])
            if format_ == MapFormat.DICOM_SEG:
                raise ConfigError(NO_SEGMENTS.format(remedy=remedy))
            console.info(NO_LOCALIZATION.format(remedy=remedy))
        return cls(source, folder, format_)

    @property
    def schema(self) -> ImageSchema:
        """How images are read."""
        scorer = self.source.bundle.scorer
        return image_modality(scorer.schema, scorer.encoding)[0]

    def write(
        self, file: ImageFile, flagged: Collection[int], stem: Callable[[ImageFile, int], str]
    ) -> Counter[str]:
        """Write the maps of a file with flagged frames; return the number of files, or a refusal.

        A file that has changed since it was scored, and now cannot be read, has none.
        """
        try:
            written = dict(self._files(file, flagged))
        except (OSError, DataError) as error:
            self._refusal.info(f"no map of {file.label}: {first_line(error)}")
            return Counter({MAPS_REFUSED: 1})
        for frame, content in written.items():
            name = f"{MAPS}/{stem(file, frame)}.{SUFFIXES[self.format]}"
            self.folder.write(name, content)
        return Counter({MAPS: len(written)})

    def _files(self, file: ImageFile, flagged: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the first frame and the content of each file of maps."""
        content = content_of(file, self.schema)
        if self.format == MapFormat.NIFTI:
            yield from self._volume(file, content)
            return
        encode = self._encoder(file)
        for image, heat in self._maps(file, content, flagged):
            yield image.frame, encode(image, heat)

    def _encoder(self, file: ImageFile) -> Callable[[DecodedImage, Heat], bytes]:
        """Return the function that makes a file of the map (S, S) of an image.

        Raises:
            DataError: The maps are for DICOM images, and the file is none.
        """
        if self.format.is_dicom:
            if not is_dicom(file.path):
                raise DataError(NOT_DICOM)
            return self._dicom_encoder(file)
        unit = self.source.bundle.heat_scale.unit
        encode = npy_map if self.format == MapFormat.NPY else partial(tiff_map, description=unit)
        return lambda image, heat: encode(self._to_source(image, heat))

    def _dicom_encoder(self, file: ImageFile) -> Callable[[DecodedImage, Heat], bytes]:
        from pipelines.batch.images.dicom_maps import About, parametric_map, segmentation

        scale = self.source.bundle.heat_scale
        about = About(about_model(self.source), scale)

        def segments(image: DecodedImage, heat: Heat) -> bytes:
            regions = region_pixels(heat, scale).astype(np.float32)
            inside = self.schema.to_source(regions, image) > 0.5
            return segmentation(file.path, image.frame, inside, about)

        def values(image: DecodedImage, heat: Heat) -> bytes:
            return parametric_map(file.path, image.frame, self._to_source(image, heat), about)

        return values if self.format == MapFormat.DICOM else segments

    def _volume(self, file: ImageFile, content: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the maps of all frames of a file as one volume."""
        maps, spacing = {}, None
        for image, heat in self._maps(file, content, None):
            maps[image.frame] = self._to_source(image, heat)
            spacing = image.spacing if image.in_mm else None
        if len({heat.shape for heat in maps.values()}) > 1:
            raise DataError("its images differ in size and are no volume; write --maps tiff")
        if maps:
            yield min(maps), nifti_map(maps, content, self.schema.options, spacing)

    def _maps(
        self, file: ImageFile, content: bytes, frames: Collection[int] | None
    ) -> Iterator[tuple[DecodedImage, Heat]]:
        """Yield the images of a file with their maps (S, S); of some frames, or of all (None)."""
        for image in decoded_images(file, self.schema, content):
            wanted = frames is None or image.frame in frames
            if not isinstance(image, DecodedImage) or not wanted:
                continue
            batch = self.schema.from_images([image])
            if batch.usable.all():
                nats = self.source.bundle.scorer.explain(batch).nats
                yield image, nats.reshape(self.schema.size, -1).astype(np.float32)

    def _to_source(self, image: DecodedImage, heat: Heat) -> Heat:
        """Return a map (S, S) in the pixels (H, W) of its image."""
        return self.schema.to_source(heat, image, np.nan)
