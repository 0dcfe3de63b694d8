"""Serve image models: decode, score and explain uploads, and draw heatmaps.

This module is imported only if an image model is loaded, because it needs Pillow. A request is
answered by a single thread, which decodes images one at a time while it scores them. Memory
therefore holds only one or two decoded images and one chunk of resized images, whatever the size of
the request.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.client.types import BadRecord, Fault, GroupResult, Region, Result, Schema
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.decoding import count_images, read_bytes
from anomaly_vae.images.encoding import IMAGE, ImageEncoding
from anomaly_vae.images.heatmaps import Scale, png, regions, to_picture
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.review.cases import CaseReason
from anomaly_vae.scoring.detector import Detections, Explanation, RegionContribution
from anomaly_vae.scoring.localization import Localization, localizations, region_explanations
from anomaly_vae.scoring.scorer import ScoreParts
from anomaly_vae.scoring.wording import describe_region
from anomaly_vae.types import REGION
from serving.models.store import BodyDescription, CasePart, ServedModel
from serving.problems import TOO_MANY_RECORDS, TOO_MUCH_EXPLAINED, TOO_SLOW, ProblemError
from serving.scoring import requests, responses
from serving.scoring.handlers import Resources
from serving.scoring.images import uploads
from serving.scoring.images.groups import check_kind, decide_groups
from serving.scoring.images.uploads import ImageOptions, UploadHandler
from serving.scoring.schemas import RegionsResult
from serving.settings import Settings

CHUNK = 32
"""Number of images that are scored at a time."""

DRAWN_REGIONS = 10
"""Maximum number of regions of an image that is drawn but not explained."""


class ImageFiles(list[bytes]):
    """The contents of N files; ``ignored`` names the unknown columns beside them."""

    ignored: tuple[str, ...] = ()


class ScoredImages(NamedTuple):
    """The results of N images, in their order, and the decisions on those that can be used.

    ``detections`` is None if no image can be used. ``groups`` are the decisions on groups.
    """

    results: list[Result]
    detections: Detections | None
    groups: tuple[GroupResult, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ServedImages(ServedModel):
    """A loaded model of images; ``heat_scale`` is the colour scale of its heatmaps."""

    kind: ClassVar[str] = "image"
    reads_files: ClassVar[bool] = True

    heat_scale: Scale
    image_groups: Mapping[str, Calibration] = field(default_factory=dict)
    """Calibrations of groups of images by kind."""

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

    def read_columns(self, columns: Mapping[str, Sequence[Any]]) -> ImageFiles:
        """Return the contents of the files in the column of images."""
        cells = columns[IMAGE]
        reason = "expected the content of an image file, in base64"
        bad = [
            BadRecord(row, IMAGE, reason)
            for row, content in enumerate(cells)
            if not isinstance(content, bytes)
        ]
        if bad:
            raise requests.unfit_records(bad)
        files = ImageFiles(cells)
        files.ignored = tuple(sorted(columns.keys() - {IMAGE} - self.schema.known))
        return files

    def detect(self, content: Sequence[bytes], settings: Settings) -> Detections:
        """Decide on the one image of each file; a file with several images is refused."""
        scored = score(self, content, ImageOptions(), settings)
        uploads.check_all_usable(scored.results)
        files = dict.fromkeys(r.file for r in scored.results if r.frame and r.file is not None)
        if files:
            reason = "holds several images; give one at a time"
            raise requests.unfit_records([BadRecord(file, IMAGE, reason) for file in files])
        assert scored.detections is not None, "a request without images has been refused"
        return scored.detections

    def detect_readable(
        self, content: Sequence[bytes], settings: Settings
    ) -> tuple[NDArray[np.bool_], Detections]:
        """Decide on every image of the files that can be used."""
        scored = score(self, content, ImageOptions(), settings)
        usable = np.array([result.error is None for result in scored.results], bool)
        none = Detections(np.empty(0), np.empty(0), np.empty(0, bool))
        return usable, scored.detections or none

    def localize(self, parts: ScoreParts) -> Iterator[Localization]:
        """Locate the anomalies in N explained images."""
        return localizations(self.encoding, self.heat_scale, parts, range(len(parts.score)))

    def case_parts(
        self,
        records: Sequence[Mapping[str, Any]],
        detections: Detections,  # noqa: ARG002  # tables need it
        explained: NDArray[np.bool_],
        settings: Settings,
    ) -> list[CasePart]:
        """Return the ids of N images, and the regions and kept scans of the explained ones."""
        return [
            self._case_part(record["content"], record.get("frame"), is_explained, settings)
            for record, is_explained in zip(records, explained.tolist(), strict=True)
        ]

    def _case_part(
        self, content: bytes, frame: int | None, is_explained: bool, settings: Settings
    ) -> CasePart:
        digest = hashlib.sha256(content).hexdigest()
        name = f"image-{digest[:16]}" + (f"-{frame}" if frame else "")
        if not is_explained:
            return CasePart(row_id=name)
        image = next(islice(read_bytes(content, self.schema.options), frame or 0, None))
        parts = self.detector.scorer.explain(self.schema.from_images(iter([image])))
        limits = self.encoding, self.heat_scale, parts
        (explanation,) = region_explanations(*limits, DRAWN_REGIONS)
        reasons = tuple(map(_case_reason, explanation.regions))
        if settings.cases_images is None:
            return CasePart(reasons, row_id=name)
        (localization,) = localizations(*limits, [0])
        keep_scan(settings.cases_images / name, localization)
        return CasePart(reasons, row_id=name, image=name)

    @classmethod
    def describe_bodies(cls, models: Sequence[Self], settings: Settings) -> BodyDescription:
        """Describe uploads of images."""
        examples = {model.name: {"externalValue": _data_uri(model)} for model in models}
        kinds = (kind for model in models for kind in model.image_groups)
        return uploads.describe_bodies(examples, settings.max_records, kinds)

    def example_results(self, settings: Settings) -> list[Result]:
        """Score the example."""
        return score(self, [self.example[IMAGE]], ImageOptions(), settings).results


def _case_reason(region: RegionContribution) -> CaseReason:
    box = ",".join(map(str, region.box))
    return CaseReason(REGION, region.nats, box, None, describe_region(region))


def keep_scan(folder: Path, localization: Localization) -> None:
    """Write a scan as the model received it, what it expected, and the heatmap, as PNG."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    images = {"scan": to_picture(localization.scan)}
    if localization.scale.expects:
        images["expected"] = to_picture(localization.expected)
    for name, image in {**images, "heatmap": localization.draw()}.items():
        path = folder / f"{name}.png"
        part = path.with_suffix(".part")
        part.write_bytes(png(image))
        part.rename(path)


def _data_uri(model: ServedImages) -> str:
    """Return the example image, a PNG, as a URI (RFC 2397)."""
    return f"data:image/png;base64,{base64.b64encode(model.example[IMAGE]).decode()}"


# ---------------------------------------------------------------- scoring


def score(
    model: ServedImages, files: Sequence[bytes], options: ImageOptions, settings: Settings
) -> ScoredImages:
    """Decide on every image of these files, and report those that cannot be read or are blank.

    Args:
        model: the model that scores.
        files: the content of each file.
        options: parts of a result besides the decision.
        settings: limits on images, contributions, heatmaps and time.

    Raises:
        ProblemError: a limit is exceeded.
    """
    check_kind(options.group, model.image_groups)
    check_cost(model, files, options, settings)
    stream = ImageStream(files, model.schema.options, settings)
    images, results, found = iter(stream), list[Result](), list[Detections]()
    while len(batch := model.schema.from_images(islice(images, CHUNK))):
        positions = stream.positions[-len(batch) :]
        usable, good = batch.usable, iter(list[Result]())
        if usable.any():
            detections, chunk = _score_chunk(model, batch.take(usable), options)
            good = iter(chunk)
            found.append(detections)
        faults = {p.row: Result(error=Fault(IMAGE, p.reason)) for p in batch.problems}
        chunk_results = (faults.get(row) or next(good) for row in range(len(batch)))
        results += map(_locate, chunk_results, positions)
    groups = decide_groups(model.image_groups, results, stream.series, options.group)
    decisions = Detections.concatenate(found) if found else None
    return ScoredImages(results, decisions, tuple(groups))


class ImageStream:
    """An iterable of the images in a request's files, which are decoded one at a time.

    ``positions`` lists the file and frame of each image decoded so far, and ``series`` the UID of
    its DICOM series.
    """

    def __init__(self, files: Sequence[bytes], decoding: DecodeOptions, settings: Settings) -> None:
        self.positions: list[tuple[int, int | None]] = []
        self.series: list[str] = []
        self._files, self._decoding = files, decoding
        self._max_images, self._seconds = settings.max_records, settings.image_seconds
        self._start = time.monotonic()

    def __iter__(self) -> Iterator[DecodedImage | DecodeFailure]:
        for number, content in enumerate(self._files):
            for image in read_bytes(content, self._decoding):
                self._check_limits()
                self.positions.append((number, image.frame))
                self.series.append("" if isinstance(image, DecodeFailure) else image.series)
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


def check_cost(
    model: ServedImages, files: Sequence[bytes], options: ImageOptions, settings: Settings
) -> None:
    """Refuse a request that needs too many contributions or heatmaps, before any is computed."""
    if not options.adds_parts:
        return
    images = sum(count_images(content, model.schema.options) for content in files)
    if options.max_contributions != 0:
        requests.check_contributions(images * model.width, settings.max_contributions)
    if options.heatmap and images > settings.max_heatmaps:
        detail = f"{images} images to draw; at most {settings.max_heatmaps} images are drawn at a "
        detail += "time: send fewer, or leave out 'heatmap'"
        raise ProblemError(TOO_MUCH_EXPLAINED, detail)


def _score_chunk(
    model: ServedImages, batch: RawBatch, options: ImageOptions
) -> tuple[Detections, list[Result]]:
    """Decide on a batch of readable images; the results lack their file and frame."""
    detector = model.detector
    if not options.adds_parts:
        detections = detector.detect(batch)
        return detections, responses.results(detections)
    parts = detector.scorer.explain(batch)
    detections = detector.decide(parts.score, parts.observed, parts.terms)
    results = map(
        partial(_explain, options), responses.results(detections), _regions(model, parts, options)
    )
    if options.heatmap:
        results = map(_draw, results, model.localize(parts))
    return detections, list(results)


Regions = tuple[tuple[Region, ...], Explanation]


def _regions(model: ServedImages, parts: ScoreParts, options: ImageOptions) -> Iterator[Regions]:
    """Yield the regions of each image and the explanation that they are part of."""
    limit = options.max_contributions
    limit = DRAWN_REGIONS if limit == 0 else limit
    explained = region_explanations(model.encoding, model.heat_scale, parts, limit)
    maps = parts.nats.reshape(-1, model.schema.size, model.schema.size)
    for heat, explanation in zip(maps, explained, strict=True):
        found = regions(heat, model.heat_scale, limit)
        pairs = zip(found, explanation.regions, strict=True)
        yield tuple(Region(**asdict(one), **asdict(part)) for one, part in pairs), explanation


def _explain(options: ImageOptions, result: Result, found: Regions) -> Result:
    """Add regions, and with an explanation the other parts of the score, to a result."""
    fields = msgspec.structs.asdict(result) | {"regions": found[0]}
    if options.max_contributions != 0:
        fields |= {"rest": found[1].rest, "kl": found[1].kl}
    return RegionsResult(**fields)


def _draw(result: Result, localization: Localization) -> Result:
    """Add a heatmap to a result."""
    return msgspec.structs.replace(result, heatmap=png(localization.draw()))


def _locate(result: Result, position: tuple[int, int | None]) -> Result:
    """Add the file and frame to a result."""
    file, frame = position
    return msgspec.structs.replace(result, file=file, frame=frame)
