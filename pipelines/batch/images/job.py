"""Read, score and explain the images of a few files at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.geometry import Box, Grid
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.localization import (
    decision_title,
    region_explanations,
)
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.scorer import ScoreParts
from pipelines.batch.common import (
    UNREADABLE,
    Explaining,
    ImageRows,
    Reject,
    counts_of,
    max_contributions,
    reject_table,
    result_table,
)
from pipelines.batch.images.heatmaps import HeatmapWriter, file_stem
from pipelines.batch.options import OutputOptions
from pipelines.batch.result.candidates import Candidates
from pipelines.batch.result.counts import Counts, Highest
from pipelines.batch.result.folder import ResultFolder
from pipelines.batch.result.layout import Layout
from pipelines.batch.result.plan import Unit, input_of
from pipelines.batch.result.ranking import FEATURES
from pipelines.batch.units import Scored
from pipelines.datasets.images.batches import Batch as ImagesOfFiles
from pipelines.datasets.images.batches import read_images
from pipelines.datasets.images.files import FRAME, ID, PATH, ImageFile
from pipelines.datasets.images.groups import group_name
from pipelines.registry.model_uri import LoadedModel

TASK_FILES = 16
"""Number of files that are read and scored at once."""
FILES_SCORED, IN_COLOUR = "files_scored", "in_colour"
"""Counts of files with a scored frame, and of scored images in colour."""
SERIES_UID, SLICE_POSITION = "series_uid", "slice_position"
"""Columns of the DICOM series of an image, and of its position across its plane, in mm."""
ID_FIELD = pa.field(ID, pa.string())
"""Column of the ids that a manifest may list."""


@dataclass(frozen=True)
class ImageListing:
    """Files whose images are scored, and what the result has of them."""

    source: LoadedModel
    schema: ImageSchema
    files: tuple[ImageFile, ...]
    outputs: OutputOptions
    limited: bool = False
    """Whether further files were found, beyond the limit of ``outputs``."""

    @classmethod
    def of(
        cls, source: LoadedModel, files: Sequence[ImageFile], outputs: OutputOptions
    ) -> ImageListing:
        """Return the first files, up to the limit.

        Raises:
            BundleError: the model is for tables.
        """
        scorer, first = source.bundle.scorer, tuple(files[: outputs.limit])
        schema, _ = image_modality(scorer.schema, scorer.encoding)
        return cls(source, schema, first, outputs, len(files) > len(first))

    @property
    def limit_in_summary(self) -> dict[str, Any]:
        """Entries of the summary about the limit; empty without one."""
        limit = self.outputs.limit
        return {} if limit is None else {"limit": limit, "limited": self.limited}

    @cached_property
    def key(self) -> pa.Field | None:
        """Column of the ids that a manifest lists; None if there are none."""
        return ID_FIELD if any(ID in file.attributes for file in self.files) else None

    @property
    def ids(self) -> tuple[str, ...]:
        """Name of the column of ids, if there is one."""
        return () if self.key is None else (ID,)

    @property
    def carried(self) -> tuple[str, ...]:
        """Columns of the manifests that are written or ranked by."""
        return tuple(dict.fromkeys((*self.outputs.part_columns, *self.outputs.top_columns())))

    @property
    def layout(self) -> Layout:
        """The files of the parts."""
        return self.outputs.layout([PATH, FRAME])

    @cached_property
    def candidates(self) -> Candidates | None:
        """Choice of the images that may be among the highest; None if none are ranked."""
        return Candidates.of_layout(self.layout, (*self.ids, *self.outputs.top_columns()))


class ImageTask(NamedTuple):
    """Files whose images are read and scored at once."""

    first: int
    """Index of the first file."""
    files: tuple[ImageFile, ...]
    share: float = 0.0
    """Share of a part; it is 0 because a unit is one part."""


@dataclass(frozen=True)
class _ScoredImages:
    """Scored images (N,) of a batch, and where they come from."""

    images: RawBatch
    detections: Detections
    files: Sequence[ImageFile]
    frames: Sequence[int]
    series: Sequence[str]
    """UID of each DICOM series; empty for other images."""
    positions: Sequence[float | None]
    """Position of each slice across its plane, in mm."""
    grids: Sequence[Grid | None]
    """Place of each image in the pixels of its file."""


@dataclass(frozen=True)
class ImageJob:
    """How images are read and scored."""

    listing: ImageListing
    explaining: Explaining
    writer: HeatmapWriter

    @property
    def source(self) -> LoadedModel:
        """The model."""
        return self.listing.source

    def read(self, unit: Unit) -> Iterator[ImageTask]:
        """Yield the files of a unit, a few at a time; they are read where they are scored."""
        for first in range(unit.first.file, unit.end.file, TASK_FILES):
            last = min(first + TASK_FILES, unit.end.file)
            yield ImageTask(first, self.listing.files[first:last])

    def size(self, file: int) -> int:
        """Return the size of a file in bytes; -1 if it is not there."""
        return input_of(self.listing.files[file].path, None).bytes

    def shared(self, folder: ResultFolder) -> AbstractContextManager[ImageJob]:  # noqa: ARG002
        """Return the job itself: all machines see the same files."""
        return nullcontext(self)

    def score(self, task: ImageTask) -> Scored:
        """Score or reject the images of a few files."""
        counts, files, scored = Counts(), set[int](), []
        flagged: dict[int, set[int]] = defaultdict(set)
        for batch in read_images(task.files, self.listing.schema):
            files.update(batch.files[row] for row in np.flatnonzero(batch.images.usable))
            scored.append(self._score_batch(task, batch, flagged))
        counts.others.update(self._write_maps(task, flagged))
        tables = [part.rows for part in scored if part.rows is not None]
        rejects = [part.rejects for part in scored if part.rejects is not None]
        for part in scored:
            counts.add(part.counts)
        counts.others[FILES_SCORED] += len(files)
        chosen = [part.candidates for part in scored if part.candidates is not None]
        return Scored(_joined(tables), _joined(rejects), counts, _joined(chosen))

    def _write_maps(self, task: ImageTask, flagged: Mapping[int, set[int]]) -> Counter[str]:
        """Write the maps of files with flagged frames; return how many, if any are wanted."""
        writer = self.writer.maps
        if writer is None:
            return Counter()
        counts: Counter[str] = Counter()
        for i, frames in flagged.items():
            counts.update(writer.write(task.files[i], frames, file_stem))
        return counts

    def _score_batch(
        self, task: ImageTask, batch: ImagesOfFiles, flagged: dict[int, set[int]]
    ) -> Scored:
        """Score or reject the images of a batch; add the flagged frames of files."""
        rejects = [
            self._reject(task, batch.files[p.row], batch.frames[p.row], p.reason)
            for p in batch.images.problems
        ]
        rows = np.flatnonzero(batch.images.usable)
        none = Scored(None, None, Counts())
        scored = self._score(task, batch, rows, flagged) if len(rows) else none
        scored.counts.rejects_by_column.update([UNREADABLE] * len(rejects))
        scored.counts.others[IN_COLOUR] += batch.images.seen.in_colour
        return scored._replace(rejects=reject_table(rejects, self.listing.key))

    def _reject(self, task: ImageTask, index: int, frame: int | None, reason: str) -> Reject:
        """Return a frame, a file (``frame`` is None) or a row of a manifest that names no file."""
        file = task.files[index]
        if file.place and file.problem:
            reason = f"{file.place}: {reason}"
        if not file.is_new:
            frame = file.row
        return Reject(task.first + index, frame, file.attributes.get(ID), None, reason)

    def _score(
        self,
        task: ImageTask,
        batch: ImagesOfFiles,
        rows: NDArray[np.intp],
        flagged: dict[int, set[int]],
    ) -> Scored:
        """Score the images of a batch at these rows; add the flagged frames of files."""
        found = self._detect(task, batch, rows)
        for row in rows[found.detections.is_anomaly].tolist():
            flagged[batch.files[row]].add(batch.frames[row] or 0)
        counts = counts_of(self.source.bundle.monitor, found.detections)
        explanations, drawn = self._explain_rows(found)
        counts.others.update(drawn)
        self._count_groups(counts, found)
        columns = self._columns(found.files, found.frames)
        return Scored(
            self._table(found, columns, explanations),
            None,
            counts,
            self._candidates(found, columns, task.first + np.array(batch.files)[rows]),
        )

    def _detect(
        self, task: ImageTask, batch: ImagesOfFiles, rows: NDArray[np.intp]
    ) -> _ScoredImages:
        """Score the images of a batch at these rows."""
        images = batch.images.take(rows)
        return _ScoredImages(
            images,
            self.source.bundle.detector.detect(images),
            [task.files[batch.files[row]] for row in rows],
            [batch.frames[row] or 0 for row in rows],
            [batch.series[row] for row in rows],
            [batch.positions[row] for row in rows],
            [batch.grids[row] for row in rows],
        )

    def _explain_rows(self, found: _ScoredImages) -> tuple[dict[int, Explanation], Counter[str]]:
        """Explain and draw the images that are to be; return explanations, and what is drawn."""
        listed, drawn = self.explaining.of(found.detections), self._drawn(found.detections)
        rows = np.union1d(listed, drawn)
        if not len(rows):
            return {}, Counter()
        parts = self.source.bundle.detector.scorer.explain(found.images.take(rows))
        explanations = dict(zip(rows.tolist(), self._explain(parts), strict=True))
        kinds = self._draw(found, drawn, parts.part(np.searchsorted(rows, drawn)))
        return {row: explanations[row] for row in listed.tolist()}, kinds

    def _table(
        self,
        found: _ScoredImages,
        columns: Mapping[str, pa.Array],
        explanations: dict[int, Explanation],
    ) -> pa.Table:
        """Return the result rows of images."""
        about = {
            SERIES_UID: pa.array([uid or None for uid in found.series], pa.string()),
            SLICE_POSITION: pa.array(found.positions, pa.float64()),
        }
        return result_table(
            {name: columns[name] for name in columns if self._is_shown(name)},
            found.detections,
            self.explaining.column(found.detections, explanations),
            ImageRows(about, lambda i, box: self._to_source(found.grids[i], box)),
        )

    def _candidates(
        self, found: _ScoredImages, columns: Mapping[str, pa.Array], indexes: NDArray[np.intp]
    ) -> pa.Table | None:
        """Return the images that may be among the highest, with the indexes of their files."""
        choice = self.listing.candidates
        if choice is None:
            return None
        return choice.of(
            columns,
            found.detections,
            None,
            lambda positions: pa.array(indexes[positions], pa.int64()),
        )

    def _to_source(self, grid: Grid | None, box: Box) -> Box | None:
        return None if grid is None else self.listing.schema.box_to_source(box, grid)

    def _count_groups(self, counts: Counts, found: _ScoredImages) -> None:
        """Count images in the groups for which the model has thresholds."""
        scores = found.detections.score.tolist()
        images = list(zip(found.files, found.frames, found.series, scores, strict=True))
        for kind in self.source.bundle.image_groups:
            for file, frame, uid, score in images:
                if name := group_name(kind, file, uid):
                    counts.add_image(kind, name, Highest(score, 1, file.name, frame))

    def _is_shown(self, name: str) -> bool:
        """Return whether the parts have a column."""
        return name in (PATH, FRAME, ID, *self.listing.outputs.part_columns)

    def explain_rows(self, rows: pa.Table) -> list[Explanation | None]:
        """Explain images, which are read again; None for one that has changed in the meantime."""
        pairs = zip(rows[FEATURES].to_pylist(), rows[FRAME].to_pylist(), strict=True)
        return [self._explain_image(*pair) for pair in pairs]

    def _explain_image(self, index: int, frame: int) -> Explanation | None:
        for batch in read_images([self.listing.files[index]], self.listing.schema):
            usable = batch.images.usable
            found = [i for i, n in enumerate(batch.frames) if (n or 0) == frame and usable[i]]
            if found:
                images = batch.images.take(np.array(found[:1]))
                parts = self.source.bundle.detector.scorer.explain(images)
                scale = self.source.bundle.heat_scale
                return region_explanations(self.writer.encoding, scale, parts, None)[0]
        return None

    def _drawn(self, detections: Detections) -> NDArray[np.intp]:
        """Return the positions of the images that get a heatmap."""
        return np.flatnonzero(detections.is_anomaly & self.writer.enabled)

    def _draw(
        self, found: _ScoredImages, drawn: NDArray[np.intp], parts: ScoreParts
    ) -> Counter[str]:
        """Write the heatmaps of the images at these rows, of which ``parts`` are the scores."""
        rows = drawn.tolist()
        titles = [decision_title(found.detections, row) for row in rows]
        files, frames = ([of[row] for row in rows] for of in (found.files, found.frames))
        return self.writer.write(files, frames, titles, parts)

    def _explain(self, parts: ScoreParts) -> list[Explanation]:
        scale, most = self.source.bundle.heat_scale, max_contributions(self.explaining.most)
        return region_explanations(self.writer.encoding, scale, parts, most)

    def _columns(self, files: Sequence[ImageFile], frames: Sequence[int]) -> dict[str, pa.Array]:
        """Return the columns that identify images, and those of the manifests that are carried."""
        names = (*self.listing.ids, *self.listing.carried)
        return {
            PATH: pa.array([file.name for file in files], pa.string()),
            FRAME: pa.array(frames, pa.int32()),
            **{
                name: pa.array([file.attributes.get(name) for file in files], pa.string())
                for name in names
            },
        }


def _joined(tables: Sequence[pa.Table]) -> pa.Table | None:
    return pa.concat_tables(tables) if tables else None
