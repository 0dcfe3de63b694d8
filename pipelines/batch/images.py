"""Images → scores: streamed, every image scored or rejected with a reason, flagged ones drawn."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import png
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detections, Explanation, explanations
from anomaly_vae.scoring.localization import Localization, decision_title, localizations
from anomaly_vae.scoring.scorer import ScoreParts
from pipelines import console
from pipelines.batch.common import (
    UNREADABLE,
    Explain,
    Tally,
    answer_columns,
    most_of,
    outside,
    summary_of,
)
from pipelines.batch.fdr import control
from pipelines.batch.results import DICOM, HEATMAPS, SUMMARY, Sink, result_folder
from pipelines.datasets.image_files import (
    FRAME,
    PATH,
    Batch,
    Item,
    find_images,
    is_dicom,
    read_images,
)
from pipelines.registry.model_uri import LoadedModel

REFUSED = "dicom_refused"
"""Flagged DICOM images whose heatmap cannot be DICOM."""


@dataclass(frozen=True)
class Drawing:
    """What is written for each flagged image."""

    heatmaps: bool = False
    dicom: bool = False


NOTHING = Drawing()


def score_images(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    drawing: Drawing = NOTHING,
    fdr: float | None = None,
) -> dict[str, Any]:
    """Score every image of every file into a folder; returns the summary that lies in it.

    Args:
        source: the model.
        paths: image files, folders, globs or manifests; what lies in ``output`` is left out.
        output: the folder; a previous result there is replaced once the new one is whole.
        explain: K pixels with the largest share of each score, or "all".
        drawing: what to write for each flagged image.
        fdr: flag by the false discovery rate of the whole input, instead of by the threshold.

    Raises:
        DataError: no image found, one that lies in ``output``, or ``output`` holds something else.
    """
    output = Path(output)
    items = outside(paths, find_images(paths), output, lambda item: item.file)
    with result_folder(output) as folder, Sink(folder) as sink:
        scoring = _Scoring(source, items, sink, explain, _Artist(source, folder, drawing))
        scoring.take_all()
        sink.close()
        summary = summary_of(source, len(items), scoring.tally, sink)
        summary |= scoring.artist.drawn
        if fdr is not None:
            summary |= control(folder, sink.parts, source.bundle.detector.calibration, fdr)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


class _Artist:
    """Draws flagged images into the result's folder."""

    def __init__(self, source: LoadedModel, folder: Path, drawing: Drawing) -> None:
        self.source, self.folder, self.drawing = source, folder, drawing
        self.wanted = drawing.heatmaps or drawing.dicom
        self.drawn = {HEATMAPS: 0} if drawing.heatmaps else {}
        if drawing.dicom:
            self.drawn |= {DICOM: 0, REFUSED: 0}

    def draw(
        self, items: Sequence[Item], frames: Sequence[int], found: Detections, explained: ScoreParts
    ) -> None:
        """The flagged ones of these images."""
        encoding = self.source.bundle.scorer.encoding
        assert isinstance(encoding, ImageEncoding), "a model of images"
        rows = np.flatnonzero(found.is_anomaly).tolist()
        pictures = localizations(encoding, self.source.bundle.heat_scale, explained, rows)
        for row, finding in zip(rows, pictures, strict=True):
            self._write(items[row], frames[row], finding, decision_title(found, row))

    def _write(self, item: Item, frame: int, finding: Localization, title: str) -> None:
        name = stem_of(item, frame)
        if self.drawing.heatmaps:
            page = finding.draw(f"{item.name}: {title}")
            self._place(HEATMAPS, f"{name}.png").write_bytes(png(page))
            self.drawn[HEATMAPS] += 1
        if self.drawing.dicom and is_dicom(item.file):
            page = finding.draw(
                title
            )  # a file's name may be a patient's, and pixels are not hidden
            self._as_dicom(item, frame, np.asarray(page.convert("RGB")), name)

    def _as_dicom(self, item: Item, frame: int, page: Any, name: str) -> None:
        """A twin of an image that came as DICOM; one that has no study can have none."""
        from pipelines.batch.dicom_heatmaps import write_heatmap

        model = self.source.to_json()
        about = {
            "model": model["name"],
            "version": model["version"] or "",
            "digest": model["digest"],
        }
        try:
            write_heatmap(item.file, frame, page, about, self._place(DICOM, f"{name}.dcm"))
        except DataError as error:
            if not self.drawn[REFUSED]:
                console.say(f"a heatmap cannot be written as DICOM: {error}")
            self.drawn[REFUSED] += 1
        else:
            self.drawn[DICOM] += 1

    def _place(self, kind: str, name: str) -> Path:
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / kind / name


class _Scoring:
    """Takes batches in order."""

    def __init__(
        self,
        source: LoadedModel,
        items: Sequence[Item],
        sink: Sink,
        explain: Explain,
        artist: _Artist,
    ) -> None:
        self.detector, self.items, self.sink = source.bundle.detector, items, sink
        self.explain, self.artist = explain, artist
        self.tally = Tally(source.bundle.monitor)

    def take_all(self) -> None:
        """Score or reject every image."""
        schema = self.detector.scorer.schema
        assert isinstance(schema, ImageSchema), "a model of images"
        with console.progress("Scoring", len(self.items)) as (bar, task):
            for batch in read_images(self.items, schema):
                self.take(batch)
                note = f"{self.tally.flagged:,} flagged, {self.tally.rejected:,} rejected"
                bar.update(task, completed=batch.items[-1] + 1, note=note)

    def take(self, batch: Batch) -> None:
        """Score or reject the images of a batch."""
        for problem in batch.images.problems:
            item = self.items[batch.items[problem.row]]
            self.tally.places[UNREADABLE] += 1
            self.sink.reject(item.name, [batch.frames[problem.row]], problem.reason)
        rows = np.flatnonzero(batch.images.usable)
        if len(rows):
            items = [self.items[batch.items[row]] for row in rows]
            frames = [batch.frames[row] or 0 for row in rows]
            self._score(items, frames, batch.images.take(rows))

    def _score(self, items: Sequence[Item], frames: Sequence[int], images: RawBatch) -> None:
        names = pa.array([item.name for item in items], pa.string())
        keys = {PATH: names, FRAME: pa.array(frames, pa.int32())}
        reasons: Sequence[Explanation] = ()
        if self.explain is None and not self.artist.wanted:
            found = self.detector.detect(images)
        else:
            explained = self.detector.scorer.explain(images)
            found = self.detector.decide(explained.score, explained.observed)
            if self.explain is not None:
                most = most_of(self.explain)
                reasons = explanations(self.detector.scorer, images, explained, most)
            if self.artist.wanted:
                self.artist.draw(items, frames, found, explained)
        self.sink.write(answer_columns(keys, found, reasons))
        self.tally.take(found)


def stem_of(item: Item, frame: int) -> str:
    """A file name of its own for each image: what it is called, and a digest of its whole path."""
    name = re.sub(r"[^\w.-]", "_", Path(item.name).stem, flags=re.ASCII)[:80]
    digest = hashlib.sha256(os.fsencode(item.file.resolve())).hexdigest()[:16]
    return f"{name}-{digest}-{frame}"
