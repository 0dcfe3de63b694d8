"""Write heatmaps and maps of flagged images beside their scores."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.heatmaps import png
from anomaly_vae.scoring.localization import Localization, localizations
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.scorer import ScoreParts
from pipelines import console
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.images.maps import MAPS_REFUSED, MapWriter, about_model
from pipelines.batch.result.folder import DICOM, HEATMAPS, MAPS, ResultFolder
from pipelines.datasets.images.files import ImageFile, is_dicom
from pipelines.registry.model_uri import LoadedModel

REFUSED = "dicom_refused"
"""Summary key: number of flagged DICOM images whose heatmap cannot be written as DICOM."""


class HeatmapWriter:
    """A writer of the heatmaps of flagged images."""

    def __init__(self, source: LoadedModel, folder: ResultFolder, options: HeatmapOptions) -> None:
        self.source, self.folder, self.options = source, folder, options
        scorer = source.bundle.scorer
        self.encoding = image_modality(scorer.schema, scorer.encoding)[1]
        self.enabled = options.png or options.dicom
        self.counted = (
            *(HEATMAPS,) * options.png,
            *(DICOM, REFUSED) * options.dicom,
            *(MAPS, MAPS_REFUSED) * (options.maps is not None),
        )
        """Entries of the summary."""
        self.maps = MapWriter.of(source, folder, options.maps) if options.maps else None
        """Writer of maps in the pixels of files; None if none are wanted."""
        self._refusal = console.Once()
        """The first refusal is printed."""

    def write(
        self,
        files: Sequence[ImageFile],
        frames: Sequence[int],
        titles: Sequence[str],
        explained: ScoreParts,
    ) -> Counter[str]:
        """Write the heatmaps of N images; return how many of which kind."""
        written: Counter[str] = Counter()
        scale = self.source.bundle.heat_scale
        drawn = localizations(self.encoding, scale, explained, range(len(files)))
        for image in zip(files, frames, drawn, titles, strict=True):
            written.update(self._write(*image))
        return written

    def _write(
        self, file: ImageFile, frame: int, localization: Localization, title: str
    ) -> Iterator[str]:
        """Write the heatmaps of an image; yield their kinds."""
        name = file_stem(file, frame)
        if self.options.png:
            page = localization.draw(f"{file.name}: {title}")
            self.folder.write(f"{HEATMAPS}/{name}.png", png(page))
            yield HEATMAPS
        if self.options.dicom and is_dicom(file.path):
            # The title omits the file name, which may name a patient: pixels are not anonymised.
            yield self._write_dicom(file, frame, localization.draw(title), name)

    def _write_dicom(self, file: ImageFile, frame: int, page: Image.Image, name: str) -> str:
        """Write a heatmap as DICOM, unless its source cannot be referred to; return the kind."""
        from pipelines.batch.images.dicom_heatmaps import render_heatmap

        pixels = np.asarray(page.convert("RGB"))
        try:
            content = render_heatmap(file.path, frame, pixels, about_model(self.source))
        except DataError as error:
            self._refusal.info(f"a heatmap cannot be written as DICOM: {error}")
            return REFUSED
        self.folder.write(f"{DICOM}/{name}.dcm", content)
        return DICOM


def file_stem(file: ImageFile, frame: int) -> str:
    """Return a unique file stem for an image's heatmap, from its name, path digest and frame."""
    name = re.sub(r"[^\w.-]", "_", Path(file.name).stem, flags=re.ASCII)[:80]
    digest = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()[:16]
    return f"{name}-{digest}-{frame}"
