"""Score images as a stream into a folder, and draw heatmaps of flagged ones.

Every image is scored, or rejected with a reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import png
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.localization import (
    Localization,
    decision_title,
    localizations,
    region_explanations,
)
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.scorer import ScoreParts
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch.common import (
    NO_HEATMAPS,
    UNREADABLE,
    Explain,
    HeatmapOptions,
    Tally,
    exclude_output,
    max_contributions,
    result_table,
    summary_of,
)
from pipelines.batch.fdr import check_controllable, open_sink
from pipelines.batch.highest import Highest
from pipelines.batch.results import DICOM, HEATMAPS, SUMMARY, Sink, result_folder
from pipelines.datasets.image_batches import Batch, read_images
from pipelines.datasets.image_files import FRAME, ID, PATH, ImageFile, Reasons, is_dicom
from pipelines.datasets.image_listing import list_files
from pipelines.registry.model_uri import LoadedModel

ID_FIELD = pa.field(ID, pa.string())
"""Column of the ids that a manifest may list."""
REFUSED = "dicom_refused"
"""Summary key: number of flagged DICOM images whose heatmap cannot be written as DICOM."""


def score_images(
    source: LoadedModel,
    paths: Sequence[str],
    output: str | Path,
    explain: Explain = None,
    heatmaps: HeatmapOptions = NO_HEATMAPS,
    fdr: float | None = None,
) -> dict[str, Any]:
    """Score every image of every file into a folder, and return the summary.

    Each file is scored or rejected: also hidden files, and files in folders that are not images.

    Args:
        source: The model.
        paths: Image files, folders, globs or manifests; files in ``output`` are ignored.
        output: The folder; a previous result in it is replaced once the new one is complete.
        explain: Number of regions with the largest contributions to list, or "all".
        heatmaps: Formats of the heatmaps of flagged images.
        fdr: False discovery rate at which to flag images, instead of by the threshold.

    Raises:
        DataError: No file is found, one lies in ``output``, or ``output`` holds other files.
        BundleError: The model is for tables.
    """
    output, calibration = Path(output), source.bundle.detector.calibration
    check_controllable(calibration, fdr)
    scorer = source.bundle.scorer
    schema, encoding = image_modality(scorer.schema, scorer.encoding)
    files = exclude_output(paths, list_files(paths), output, lambda file: file.path)
    has_ids = any(ID in file.attributes for file in files)
    key = ID_FIELD if has_ids else None
    with result_folder(output) as folder, open_sink(folder, calibration, fdr, key) as sink:
        writer = _HeatmapWriter(source, encoding, folder, heatmaps)
        run = _ScoringRun(source, files, sink, explain, writer, has_ids)
        run.score_all(schema)
        entries = sink.finish()
        run.reasons.show()
        run.highest.show()
        summary = summary_of(source, len(files), run.tally, sink)
        summary |= run.counts() | writer.counts | entries
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


class _HeatmapWriter:
    """A writer of the heatmaps of flagged images, which counts them."""

    def __init__(
        self, source: LoadedModel, encoding: ImageEncoding, folder: Path, options: HeatmapOptions
    ) -> None:
        self.source, self.encoding = source, encoding
        self.folder, self.options = folder, options
        self.enabled = options.png or options.dicom
        self.counts = {HEATMAPS: 0} if options.png else {}
        if options.dicom:
            self.counts |= {DICOM: 0, REFUSED: 0}

    def write(
        self,
        files: Sequence[ImageFile],
        frames: Sequence[int],
        detections: Detections,
        explained: ScoreParts,
    ) -> None:
        """Write the heatmaps of those images that are flagged."""
        rows = np.flatnonzero(detections.is_anomaly).tolist()
        flagged = localizations(self.encoding, self.source.bundle.heat_scale, explained, rows)
        for row, localization in zip(rows, flagged, strict=True):
            self._write(files[row], frames[row], localization, decision_title(detections, row))

    def _write(self, file: ImageFile, frame: int, localization: Localization, title: str) -> None:
        name = file_stem(file, frame)
        if self.options.png:
            page = localization.draw(f"{file.name}: {title}")
            self._output_path(HEATMAPS, f"{name}.png").write_bytes(png(page))
            self.counts[HEATMAPS] += 1
        if self.options.dicom and is_dicom(file.path):
            # The title omits the file name, which may name a patient: pixels are not anonymised.
            self._write_dicom(file, frame, localization.draw(title), name)

    def _write_dicom(self, file: ImageFile, frame: int, page: Image.Image, name: str) -> None:
        """Write a heatmap as DICOM; count it as refused if its source cannot be referred to."""
        from pipelines.batch.dicom_heatmaps import write_heatmap

        model = self.source.to_json()
        about = {
            "model": model["name"],
            "version": model["version"] or "",
            "digest": model["digest"],
        }
        pixels = np.asarray(page.convert("RGB"))
        try:
            write_heatmap(file.path, frame, pixels, about, self._output_path(DICOM, f"{name}.dcm"))
        except DataError as error:
            if not self.counts[REFUSED]:
                console.info(f"a heatmap cannot be written as DICOM: {error}")
            self.counts[REFUSED] += 1
        else:
            self.counts[DICOM] += 1

    def _output_path(self, kind: str, name: str) -> Path:
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / kind / name


class _ScoringRun:
    """A run over all batches, which scores and counts their images."""

    def __init__(
        self,
        source: LoadedModel,
        files: Sequence[ImageFile],
        sink: Sink,
        explain: Explain,
        writer: _HeatmapWriter,
        has_ids: bool,
    ) -> None:
        self.detector, self.files, self.sink = source.bundle.detector, files, sink
        self.explain, self.writer = explain, writer
        self.tally = Tally(source.bundle.monitor)
        self.reasons = Reasons()
        self.highest = Highest(Wording.of(writer.encoding))
        self.in_colour = 0
        self._scored: set[int] = set()
        self._has_ids = has_ids

    def score_all(self, schema: ImageSchema) -> None:
        """Score or reject every image."""
        with console.progress("Scoring", len(self.files)) as (bar, task):
            for batch in read_images(self.files, schema):
                self._score_batch(batch)
                note = f"{self.tally.flagged:,} flagged, {self.tally.rejected:,} rejected"
                bar.update(task, completed=batch.files[-1] + 1, note=note)
        if schema.channels == 1 and self.in_colour:
            seen = f"{self.in_colour} of {self.tally.scored} scored images are in colour"
            console.info(f"{seen}, of which the model sees only the brightness")

    def _score_batch(self, batch: Batch) -> None:
        """Score or reject the images of a batch."""
        for problem in batch.images.problems:
            file, frame = self.files[batch.files[problem.row]], batch.frames[problem.row]
            self._reject(file, frame, problem.reason)
        self.in_colour += batch.images.seen.in_colour
        rows = np.flatnonzero(batch.images.usable)
        if len(rows):
            self._scored.update(batch.files[row] for row in rows)
            files = [self.files[batch.files[row]] for row in rows]
            frames = [batch.frames[row] or 0 for row in rows]
            self._score(files, frames, batch.images.take(rows))

    def _reject(self, file: ImageFile, frame: int | None, reason: str) -> None:
        """Reject a frame, a file (``frame`` is None) or a row of a manifest that names no file."""
        self.tally.rejects_by_column[UNREADABLE] += 1
        self.reasons.add(file, reason)
        if file.place and file.problem:
            reason = f"{file.place}: {reason}"
        if not file.is_new:
            frame = file.row
        name = pa.scalar(file.attributes.get(ID), ID_FIELD.type)
        self.sink.reject(file.name, [frame], reason, name=name)

    def counts(self) -> dict[str, Any]:
        """Return the summary's entries about files: scored are those with a scored frame."""
        scored = len(self._scored)
        return {
            "files_scored": scored,
            "files_rejected": len(self.files) - scored,
            "rejected_by_reason": dict(self.reasons.counts.most_common()),
        }

    def _keys(self, files: Sequence[ImageFile], frames: Sequence[int]) -> dict[str, pa.Array]:
        """Return the columns that identify images; ids are written if a manifest has them."""
        keys = {
            PATH: pa.array([file.name for file in files], pa.string()),
            FRAME: pa.array(frames, pa.int32()),
        }
        if self._has_ids:
            keys[ID] = pa.array([file.attributes.get(ID) for file in files], ID_FIELD.type)
        return keys

    def _score(self, files: Sequence[ImageFile], frames: Sequence[int], images: RawBatch) -> None:
        explanations: Sequence[Explanation] = ()
        if self.explain is None and not self.writer.enabled:
            detections = self.detector.detect(images)
        else:
            explained = self.detector.scorer.explain(images)
            detections = self.detector.decide(explained.score, explained.observed, explained.kl)
            if self.explain is not None:
                explanations = self._explain(explained, max_contributions(self.explain))
            if self.writer.enabled:
                self.writer.write(files, frames, detections, explained)
        keys = self._keys(files, frames)
        self.highest.add(keys, detections, explanations)
        self.sink.write(result_table(keys, detections, explanations, images=True))
        self.tally.count(detections)

    def _explain(self, explained: ScoreParts, limit: int | None) -> list[Explanation]:
        scale = self.writer.source.bundle.heat_scale
        return region_explanations(self.writer.encoding, scale, explained, limit)


def file_stem(file: ImageFile, frame: int) -> str:
    """Return a unique file stem for an image's heatmap, from its name, path digest and frame."""
    name = re.sub(r"[^\w.-]", "_", Path(file.name).stem, flags=re.ASCII)[:80]
    digest = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()[:16]
    return f"{name}-{digest}-{frame}"
