"""Files → pictures → decisions, reasons and drawings: the answers of a model of images.

Imported only where one is served: it needs Pillow. A request is done from end to end on one
thread, and pictures are decoded one after another as they are scored: however many are asked for,
a thread holds a picture or two as they came and a chunk of them at the model's own size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

import msgspec

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.encoding import IMAGE, ImageEncoding
from anomaly_vae.images.heatmaps import png
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detections, explanations
from anomaly_vae.scoring.localization import Localization, localizations
from anomaly_vae.scoring.scorer import ScoreParts
from serving.models.store import ServedModel
from serving.problems import TOO_MANY_RECORDS, TOO_MUCH_EXPLAINED, TOO_SLOW, BadRecord, ProblemError
from serving.scoring import requests, responses, schemas
from serving.scoring.uploads import ImageOptions
from serving.settings import Settings

CHUNK = 32
"""Pictures that are scored at a time."""

Part = tuple[Detections, list[schemas.Result]]


class Intake:
    """The pictures of some files in order; ``places`` is the file and frame of each so far."""

    def __init__(self, files: Sequence[bytes], reading: DecodeOptions, settings: Settings) -> None:
        self.places: list[tuple[int, int | None]] = []
        self._files, self._reading = files, reading
        self._most, self._seconds = settings.max_records, settings.image_seconds
        self._start = time.monotonic()

    def __iter__(self) -> Iterator[DecodedImage | DecodeFailure]:
        for number, content in enumerate(self._files):
            for picture in read_bytes(content, self._reading):
                self._admit()
                self.places.append((number, picture.frame))
                yield picture

    def _admit(self) -> None:
        """Refuse one image too many, or any when time is up."""
        if len(self.places) == self._most:
            detail = f"more than {self._most} images; at most so many fit into one request"
            raise ProblemError(TOO_MANY_RECORDS, detail)
        if time.monotonic() - self._start > self._seconds:
            done, seconds = len(self.places), f"{self._seconds:g} seconds"
            detail = f"{done} images were done after {seconds}; send fewer at a time"
            raise ProblemError(TOO_SLOW, detail)


def score(
    served: ServedModel, files: Sequence[bytes], asked: ImageOptions, settings: Settings
) -> Part:
    """The decisions on every image of these files, and the results that say so.

    Args:
        served: a model of images.
        files: the content of each.
        asked: what results hold beside the decisions.
        settings: how many images, contributions and drawings, and how long it may take.

    Raises:
        ProblemError: an image cannot be read or shows nothing, which refuses them all, or there
            are too many.
    """
    schema = served.detector.scorer.schema
    assert isinstance(schema, ImageSchema), "a model of images"
    intake = Intake(files, schema.options, settings)
    pictures, parts, bad = iter(intake), [], list[BadRecord]()
    while len(batch := schema.from_images(islice(pictures, CHUNK))):
        places = intake.places[-len(batch) :]
        bad += [_bad(*places[problem.row], problem.reason) for problem in batch.problems]
        check_cost(served, asked, len(intake.places), settings)
        if not bad:
            found, results = decide(served, batch, asked)
            parts.append((found, list(map(_placed, results, places))))
    if bad:
        raise requests.unfit_records(bad)
    return _joined(parts)


def _bad(file: int, frame: int | None, reason: str) -> BadRecord:
    return BadRecord(file, IMAGE, reason if frame is None else f"frame {frame}: {reason}")


def _placed(result: schemas.Result, place: tuple[int, int | None]) -> schemas.Result:
    file, frame = place
    assert frame is not None, "what was scored is a picture"
    return msgspec.structs.replace(result, file=file, frame=frame)


def _joined(parts: Sequence[Part]) -> Part:
    found = Detections.concatenate(found for found, _ in parts)
    return found, [result for _, results in parts for result in results]


def check_cost(served: ServedModel, asked: ImageOptions, images: int, settings: Settings) -> None:
    """Refuse to explain or to draw too many images."""
    if asked.most != 0:
        pixels = len(served.detector.scorer.encoding.labels)
        requests.check_contributions(images * pixels, settings.max_contributions)
    if asked.heatmap and images > settings.max_heatmaps:
        detail = f"at most {settings.max_heatmaps} images are drawn at a time: send fewer, "
        raise ProblemError(TOO_MUCH_EXPLAINED, detail + "or leave out 'heatmap'")


def decide(served: ServedModel, batch: RawBatch, asked: ImageOptions) -> Part:
    """The decisions on a batch without problems, and the results without their places."""
    detector = served.detector
    if asked == ImageOptions():
        found = detector.detect(batch)
        return found, responses.results(found, None)
    explained = detector.scorer.explain(batch)
    found = detector.decide(explained.score, explained.observed)
    reasons = None
    if asked.most != 0:
        reasons = explanations(detector.scorer, batch, explained, asked.most)
    results = responses.results(found, reasons)
    if asked.heatmap:
        results = list(map(_drawn, results, _findings(served, explained)))
    return found, results


def _findings(served: ServedModel, explained: ScoreParts) -> Iterator[Localization]:
    encoding, scale = served.detector.scorer.encoding, served.heat_scale
    assert isinstance(encoding, ImageEncoding), "a model of images"
    assert scale is not None, "a model of images"
    return localizations(encoding, scale, explained, range(len(explained.score)))


def _drawn(result: schemas.Result, finding: Localization) -> schemas.Result:
    regions = [schemas.Region(**asdict(region)) for region in finding.regions]
    return msgspec.structs.replace(result, heatmap=png(finding.draw()), regions=regions)
