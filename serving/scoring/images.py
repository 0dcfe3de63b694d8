"""Serve image models: decode, score and explain uploads, and draw heatmaps.

This module is imported only if an image model is loaded, because it needs Pillow. A request is
answered by a single thread, which decodes images one at a time while it scores them. Memory
therefore holds only one or two decoded images and one chunk of resized images, whatever the size of
the request.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.client.types import BadRecord, Region, Result, Schema
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.encoding import IMAGE, ImageEncoding
from anomaly_vae.images.heatmaps import Scale, png
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detections, explanations
from anomaly_vae.scoring.localization import Localization, localizations
from anomaly_vae.scoring.scorer import ScoreParts
from serving.models.store import BodyDescription, ServedModel
from serving.problems import TOO_MANY_RECORDS, TOO_MUCH_EXPLAINED, TOO_SLOW, ProblemError
from serving.scoring import requests, responses, uploads
from serving.scoring.handlers import Resources
from serving.scoring.schemas import HeatmapResult
from serving.scoring.uploads import ImageOptions, UploadHandler
from serving.settings import Settings

CHUNK = 32
"""Number of images that are scored at a time."""

Scored = tuple[Detections, list[Result]]
"""Decisions on N images, and the result of each."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ServedImages(ServedModel):
    """A loaded model of images; ``heat_scale`` is the colour scale of its heatmaps."""

    kind: ClassVar[str] = "image"
    reads_files: ClassVar[bool] = True

    heat_scale: Scale

    @property
    def schema(self) -> ImageSchema:
        """The size and channels of the images that the model reads."""
        return cast("ImageSchema", self.detector.scorer.schema)

    @property
    def encoding(self) -> ImageEncoding:
        """The encoding of images for the scoring graph."""
        return cast("ImageEncoding", self.detector.scorer.encoding)

    def warm_up(self) -> Detections:
        """Score, explain and draw the example once."""
        detections = ServedModel.warm_up(self)
        batch = self.schema.from_records([self.example])
        for localization in self.localize(self.detector.scorer.explain(batch)):
            png(localization.draw())
        return detections

    def describe_schema(self) -> Schema:
        """Describe the column of images and their size, for `GET /models`."""
        described = ServedModel.describe_schema(self)
        size, channels = self.schema.size, self.schema.channels
        return msgspec.structs.replace(described, size=size, channels=channels)

    def handler(self, resources: Resources) -> UploadHandler:
        """Create the request handler, which reads uploads."""
        return UploadHandler(self, partial(score, self), resources)

    def read_columns(self, columns: Mapping[str, Sequence[Any]]) -> Sequence[bytes]:
        """Return the contents of the files in the column of images."""
        files = columns[IMAGE]
        reason = "expected the content of an image file, in base64"
        bad = [
            BadRecord(row, IMAGE, reason)
            for row, content in enumerate(files)
            if not isinstance(content, bytes)
        ]
        if bad:
            raise requests.unfit_records(bad)
        return files

    def detect(self, content: Sequence[bytes], settings: Settings) -> Detections:
        """Decide on the one image of each file; a file with several images is refused."""
        detections, results = score(self, content, ImageOptions(), settings)
        files = dict.fromkeys(r.file for r in results if r.frame and r.file is not None)
        if files:
            reason = "holds several images; give one at a time"
            raise requests.unfit_records([BadRecord(file, IMAGE, reason) for file in files])
        return detections

    def detect_readable(
        self, content: Sequence[bytes], settings: Settings
    ) -> tuple[NDArray[np.bool_], Detections]:
        """Decide on every image of the files, which all have been read before."""
        detections, results = score(self, content, ImageOptions(), settings)
        return np.ones(len(results), bool), detections

    def localize(self, parts: ScoreParts) -> Iterator[Localization]:
        """Locate the anomalies in N explained images."""
        return localizations(self.encoding, self.heat_scale, parts, range(len(parts.score)))

    @classmethod
    def describe_bodies(cls, models: Sequence[Self], settings: Settings) -> BodyDescription:
        """Describe uploads of images."""
        examples = {model.name: {"externalValue": _data_uri(model)} for model in models}
        return uploads.describe_bodies(examples, settings.max_records)

    def example_results(self, settings: Settings) -> list[Result]:
        """Score the example."""
        return score(self, [self.example[IMAGE]], ImageOptions(), settings)[1]


def _data_uri(model: ServedImages) -> str:
    """Return the example image, a PNG, as a URI (RFC 2397)."""
    return f"data:image/png;base64,{base64.b64encode(model.example[IMAGE]).decode()}"


# ---------------------------------------------------------------- scoring


def score(
    model: ServedImages, files: Sequence[bytes], options: ImageOptions, settings: Settings
) -> Scored:
    """Decide on every image of these files and build the results.

    Args:
        model: the model that scores.
        files: the content of each file.
        options: parts of a result besides the decision.
        settings: limits on images, contributions, heatmaps and time.

    Raises:
        ProblemError: any of the images cannot be read or is blank, or a limit is exceeded.
    """
    stream = ImageStream(files, model.schema.options, settings)
    images, chunks, bad = iter(stream), list[Scored](), list[BadRecord]()
    while len(batch := model.schema.from_images(islice(images, CHUNK))):
        positions = stream.positions[-len(batch) :]
        bad += [_bad_record(*positions[problem.row], problem.reason) for problem in batch.problems]
        check_cost(model, options, len(stream.positions), settings)
        if not bad:
            detections, results = _score_chunk(model, batch, options)
            chunks.append((detections, list(map(_locate, results, positions))))
    if bad:
        raise requests.unfit_records(bad)
    return _concatenate(chunks)


class ImageStream:
    """An iterable of the images in a request's files, which are decoded one at a time.

    ``positions`` lists the file and frame of each image decoded so far.
    """

    def __init__(self, files: Sequence[bytes], decoding: DecodeOptions, settings: Settings) -> None:
        self.positions: list[tuple[int, int | None]] = []
        self._files, self._decoding = files, decoding
        self._max_images, self._seconds = settings.max_records, settings.image_seconds
        self._start = time.monotonic()

    def __iter__(self) -> Iterator[DecodedImage | DecodeFailure]:
        for number, content in enumerate(self._files):
            for image in read_bytes(content, self._decoding):
                self._check_limits()
                self.positions.append((number, image.frame))
                yield image

    def _check_limits(self) -> None:
        """Refuse the request if it has too many images or takes too long."""
        if len(self.positions) == self._max_images:
            detail = f"more than {self._max_images} images; send fewer in one request"
            raise ProblemError(TOO_MANY_RECORDS, detail)
        if time.monotonic() - self._start > self._seconds:
            done, seconds = len(self.positions), f"{self._seconds:g} seconds"
            detail = f"only {done} images were scored within {seconds}; send fewer at a time"
            raise ProblemError(TOO_SLOW, detail)


def check_cost(model: ServedModel, options: ImageOptions, images: int, settings: Settings) -> None:
    """Refuse a request that needs too many contributions or heatmaps."""
    if options.max_contributions != 0:
        requests.check_contributions(images * model.width, settings.max_contributions)
    if options.heatmap and images > settings.max_heatmaps:
        detail = f"at most {settings.max_heatmaps} images are drawn at a time: send fewer, "
        raise ProblemError(TOO_MUCH_EXPLAINED, detail + "or leave out 'heatmap'")


def _score_chunk(model: ServedImages, batch: RawBatch, options: ImageOptions) -> Scored:
    """Decide on a batch of readable images; the results lack their file and frame."""
    detector = model.detector
    if options == ImageOptions():
        detections = detector.detect(batch)
        return detections, responses.results(detections)
    parts = detector.scorer.explain(batch)
    detections = detector.decide(parts.score, parts.observed)
    reasons = None
    if options.max_contributions != 0:
        reasons = explanations(detector.scorer, batch, parts, options.max_contributions)
    results = responses.results(detections, reasons)
    if options.heatmap:
        results = list(map(_draw, results, model.localize(parts)))
    return detections, results


def _draw(result: Result, localization: Localization) -> Result:
    """Add a heatmap and regions to a result."""
    fields = msgspec.structs.asdict(result) | {
        "heatmap": png(localization.draw()),
        "regions": tuple(Region(**asdict(region)) for region in localization.regions),
    }
    return HeatmapResult(**fields)


def _locate(result: Result, position: tuple[int, int | None]) -> Result:
    """Add the file and frame to a result."""
    file, frame = position
    return msgspec.structs.replace(result, file=file, frame=frame)


def _bad_record(file: int, frame: int | None, reason: str) -> BadRecord:
    return BadRecord(file, IMAGE, reason if frame is None else f"frame {frame}: {reason}")


def _concatenate(chunks: Sequence[Scored]) -> Scored:
    detections = Detections.concatenate(detections for detections, _ in chunks)
    return detections, [result for _, results in chunks for result in results]
