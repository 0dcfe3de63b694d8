"""Score images as a stream into a folder, and draw heatmaps of flagged ones.

Every image is scored, or rejected with a reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.geometry import Box, Grid
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
from pipelines.batch import ExplainedRows, MapFormat
from pipelines.batch.common import (
    GROUP_COLUMNS,
    NO_HEATMAPS,
    RESULT_COLUMNS,
    UNREADABLE,
    Explain,
    Explaining,
    HeatmapOptions,
    ImageRows,
    Reject,
    counts_of,
    exclude_output,
    max_contributions,
    model_entry,
    reject_table,
    result_table,
    summary_of,
)
from pipelines.batch.fdr import FdrPass, check_controllable
from pipelines.batch.options import ALL_ROWS, OutputOptions
from pipelines.batch.result.candidates import Candidates
from pipelines.batch.result.counts import Counts, Highest
from pipelines.batch.result.folder import (
    DICOM,
    FILE,
    HEATMAPS,
    MAPS,
    Record,
    ResultFolder,
    rejects_of,
)
from pipelines.batch.result.groups import GroupPass, missing_kinds
from pipelines.batch.result.highest import show_highest
from pipelines.batch.result.maps import NO_LOCALIZATION, MapWriter
from pipelines.batch.result.object_folder import result_folder
from pipelines.batch.result.plan import Piece, Place, Plan, Unit, cut, input_of
from pipelines.batch.result.ranking import FEATURES
from pipelines.batch.run import DEFAULTS, Batch, RunOptions, run_batch
from pipelines.batch.top import TopPass
from pipelines.batch.units import Scored
from pipelines.datasets.images.batches import Batch as ImagesOfFiles
from pipelines.datasets.images.batches import read_images
from pipelines.datasets.images.files import FRAME, ID, PATH, ImageFile, Reasons, is_dicom
from pipelines.datasets.images.groups import group_name
from pipelines.datasets.images.listing import list_files
from pipelines.datasets.reading.objects import place
from pipelines.registry.model_uri import LoadedModel

PART_FILES, PART_BYTES = 512, 1 << 28
"""Number of files, or of their bytes, from which a part is complete."""
TASK_FILES = 16
"""Number of files that are read and scored at once."""
FILES_SCORED, IN_COLOUR = "files_scored", "in_colour"
"""Counts of files with a scored frame, and of scored images in colour."""
SERIES_UID, SLICE_POSITION = "series_uid", "slice_position"
"""Columns of the DICOM series of an image, and of its position across its plane, in mm."""
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
    explain_rows: ExplainedRows = ExplainedRows.FLAGGED,
    run: RunOptions = DEFAULTS,
    outputs: OutputOptions = ALL_ROWS,
) -> dict[str, Any]:
    """Score every image of every file into a folder, and return the summary.

    Each file is scored or rejected: also hidden files, and files in folders that are not images.

    Args:
        source: The model.
        paths: Image files, folders, globs or manifests; files in ``output`` are ignored.
        output: The folder; an unfinished result in it is continued, a finished one is left.
        explain: Number of regions with the largest contributions to list, or "all".
        heatmaps: Formats of the heatmaps of flagged images.
        fdr: False discovery rate at which to flag images, instead of by the threshold.
        explain_rows: The images whose regions are listed.
        run: Options that do not affect the result.
        outputs: The images and columns of a manifest that are written, and how.

    Raises:
        ConfigError: Images are to be ranked by day.
        DataError: A column of ``outputs`` is not in the manifest, no file is found, one lies in
            ``output``, or ``output`` holds other files or a result of another model, of other
            options or of other files.
        BundleError: The model is for tables.
    """
    output, calibration = place(output), source.bundle.detector.calibration
    check_controllable(calibration, fdr)
    scorer = source.bundle.scorer
    schema, encoding = image_modality(scorer.schema, scorer.encoding)
    files = exclude_output(paths, list_files(paths), output, lambda file: file.path)
    found, files = len(files), files[: outputs.limit]
    key = ID_FIELD if any(ID in file.attributes for file in files) else None
    _check_outputs(outputs, files, key)
    layout = outputs.layout([PATH, FRAME])
    ids = () if key is None else (ID,)
    candidates = Candidates.of_layout(layout, (*ids, *outputs.top_columns()))
    explaining = Explaining(explain, explain_rows, fdr)
    options = {
        **explaining.in_plan,
        "--heatmaps": heatmaps.png,
        "--dicom-out": heatmaps.dicom,
        **({"--maps": heatmaps.maps} if heatmaps.maps else {}),
        **outputs.in_plan,
    }
    columns = tuple(dict.fromkeys((*outputs.part_columns, *outputs.top_columns())))
    plan = _plan(model_entry(source), options, files, columns)
    folder = result_folder(output)
    writer = _HeatmapWriter(source, encoding, folder, heatmaps)
    job = ImageJob(
        source,
        schema,
        tuple(files),
        key,
        explaining,
        writer,
        columns,
        outputs.part_columns,
        candidates,
    )
    wording = Wording.of(encoding)

    def summarise(counts: Counts, records: Sequence[Record]) -> dict[str, Any]:
        reasons = _reasons(folder, records, files)
        reasons.show()
        _show_colour(schema, counts)
        for note in missing_kinds(counts, source.bundle.image_groups):
            console.info(note)
        summary = summary_of(source, len(files), counts, records)
        scored = counts.others[FILES_SCORED]
        if outputs.limit is not None:
            summary |= {"limit": outputs.limit, "limited": found > outputs.limit}
        return summary | {
            "files_scored": scored,
            "files_rejected": len(files) - scored,
            "rejected_by_reason": dict(reasons.counts.most_common()),
            **{name: counts.others[name] for name in writer.counted},
        }

    batch = Batch(
        job,
        plan,
        key,
        [file.name for file in files],
        lambda _: None,
        summarise,
        FdrPass.of(calibration, fdr, explain_rows, layout),
        layout,
        TopPass.of_layout(layout, job.explain_rows, wording, explain),
        total=len(files),
        unit="images",
        groups=GroupPass(source.bundle.image_groups),
    )
    summary = run_batch(batch, output, run)
    show_highest(output, summary["parts"], wording)
    return summary


def _check_outputs(
    outputs: OutputOptions, files: Sequence[ImageFile], key: pa.Field | None
) -> None:
    """Check the columns of the manifests that a result is to have.

    Raises:
        ConfigError: images are to be ranked by day.
        DataError: a column is unknown, or has the name of a result column.
    """
    if outputs.per_day:
        raise ConfigError("--per day is for tables, as images have no times; leave it out")
    available = {name for file in files for name in file.attributes}
    places = (PATH, FRAME, SERIES_UID, SLICE_POSITION)
    reserved = {*RESULT_COLUMNS, *GROUP_COLUMNS, "regions", *places} - {"group"}
    outputs.check(available, reserved, ID if key is not None else None)


def _plan(
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Sequence[ImageFile],
    columns: Sequence[str],
) -> Plan:
    """Plan the scoring of these files; ``columns`` are those of manifests that are carried."""
    inputs = tuple(input_of(file.path, None, file.name, _detail(file, columns)) for file in files)
    pieces = [
        Piece(Place(i), max(1 / PART_FILES, item.bytes / PART_BYTES))
        for i, item in enumerate(inputs)
    ]
    return Plan(model, options, inputs, tuple(cut(pieces, Place(len(files)))))


def _detail(file: ImageFile, columns: Sequence[str]) -> str:
    """Return a digest of what the result has of a file's row in a manifest; empty without one."""
    if file.row is None and not file.problem:
        return ""
    cells = [file.attributes.get(name) for name in (ID, *columns)]
    content = [str(file.path), *cells, file.problem, file.row, file.place]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _reasons(
    folder: ResultFolder, records: Sequence[Record], files: Sequence[ImageFile]
) -> Reasons:
    """Return the reasons why images are rejected, from the parts."""
    reasons = Reasons()
    for table in rejects_of(folder, records):
        pairs = zip(table[FILE].to_pylist(), table["reason"].to_pylist(), strict=True)
        for index, reason in pairs:
            file = files[index]
            reasons.add(file, (file.problem if file.place else None) or reason)
    return reasons


def _show_colour(schema: ImageSchema, counts: Counts) -> None:
    """Print how many images are in colour if the model sees only their brightness."""
    if schema.channels == 1 and counts.others[IN_COLOUR]:
        seen = f"{counts.others[IN_COLOUR]} of {counts.scored} scored images are in colour"
        console.info(f"{seen}, of which the model sees only the brightness")


def _map_writer(
    source: LoadedModel, folder: ResultFolder, format_: MapFormat | None
) -> MapWriter | None:
    """Return the writer of maps in the pixels of files; None if none are wanted."""
    if format_ is None:
        return None
    if not source.bundle.localizes:
        console.info(NO_LOCALIZATION)
    return MapWriter(source.bundle, folder, format_)


class _HeatmapWriter:
    """A writer of the heatmaps of flagged images."""

    def __init__(
        self,
        source: LoadedModel,
        encoding: ImageEncoding,
        folder: ResultFolder,
        options: HeatmapOptions,
    ) -> None:
        self.source, self.encoding = source, encoding
        self.folder, self.options = folder, options
        self.enabled = options.png or options.dicom
        self.counted = (
            *(HEATMAPS,) * options.png,
            *(DICOM, REFUSED) * options.dicom,
            *(MAPS,) * (options.maps is not None),
        )
        """Entries of the summary."""
        self.maps = _map_writer(source, folder, options.maps)
        self._told: dict[str, object] = {}
        """The task that printed the first refusal."""

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
        from pipelines.batch.dicom_heatmaps import render_heatmap

        model = self.source.to_json()
        about = {
            "model": model["name"],
            "version": model["version"] or "",
            "digest": model["digest"],
        }
        pixels = np.asarray(page.convert("RGB"))
        try:
            content = render_heatmap(file.path, frame, pixels, about)
        except DataError as error:
            if self._told.setdefault(REFUSED, teller := object()) is teller:
                console.info(f"a heatmap cannot be written as DICOM: {error}")
            return REFUSED
        self.folder.write(f"{DICOM}/{name}.dcm", content)
        return DICOM


class ImageTask(NamedTuple):
    """Files whose images are read and scored at once."""

    first: int
    """Index of the first file."""
    files: tuple[ImageFile, ...]
    share: float = 0.0
    """Share of a part; it is 0 because a unit is one part."""


@dataclass(frozen=True)
class ImageJob:
    """How images are read and scored."""

    source: LoadedModel
    schema: ImageSchema
    files: tuple[ImageFile, ...]
    key: pa.Field | None
    explaining: Explaining
    writer: _HeatmapWriter
    carried: tuple[str, ...] = ()
    """Columns of the manifests that are written or ranked by."""
    columns: tuple[str, ...] = ()
    """Those of them that the parts have."""
    candidates: Candidates | None = None
    """Choice of the images that may be among the highest; None if none are ranked."""

    def read(self, unit: Unit) -> Iterator[ImageTask]:
        """Yield the files of a unit, a few at a time; they are read where they are scored."""
        for first in range(unit.first.file, unit.end.file, TASK_FILES):
            last = min(first + TASK_FILES, unit.end.file)
            yield ImageTask(first, self.files[first:last])

    def size(self, file: int) -> int:
        """Return the size of a file in bytes; -1 if it is not there."""
        return input_of(self.files[file].path, None).bytes

    def shared(self, folder: ResultFolder) -> AbstractContextManager[ImageJob]:  # noqa: ARG002
        """Return the job itself: all machines see the same files."""
        return nullcontext(self)

    def score(self, task: ImageTask) -> Scored:
        """Score or reject the images of a few files."""
        counts, files, scored = Counts(), set[int](), []
        flagged: dict[int, set[int]] = defaultdict(set)
        for batch in read_images(task.files, self.schema):
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
        """Write the maps of files with flagged frames; return their number, if any are wanted."""
        writer = self.writer.maps
        if writer is None:
            return Counter()
        pairs = flagged.items()
        return Counter(
            {MAPS: sum(writer.write(task.files[i], frames, file_stem) for i, frames in pairs)}
        )

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
        return scored._replace(rejects=reject_table(rejects, self.key))

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
        files = [task.files[batch.files[row]] for row in rows]
        frames = [batch.frames[row] or 0 for row in rows]
        images, bundle = batch.images.take(rows), self.source.bundle
        detections = bundle.detector.detect(images)
        counts = counts_of(bundle.monitor, detections)
        for row in rows[detections.is_anomaly].tolist():
            flagged[batch.files[row]].add(batch.frames[row] or 0)
        listed, drawn = self.explaining.of(detections), self._drawn(detections)
        explained = np.union1d(listed, drawn)
        column = {}
        if len(explained):
            parts = bundle.detector.scorer.explain(images.take(explained))
            column = dict(zip(explained.tolist(), self._explain(parts), strict=True))
            column = {row: column[row] for row in listed.tolist()}
            counts.others.update(self._draw(files, frames, detections, drawn, explained, parts))
        columns = self._columns(files, frames)
        series, positions = ([of[row] for row in rows] for of in (batch.series, batch.positions))
        self._count_groups(counts, files, frames, series, detections)
        table = result_table(
            {name: columns[name] for name in columns if self._is_shown(name)},
            detections,
            self.explaining.column(detections, column),
            ImageRows(
                {
                    SERIES_UID: pa.array([uid or None for uid in series], pa.string()),
                    SLICE_POSITION: pa.array(positions, pa.float64()),
                },
                lambda i, box: self._to_source(batch.grids[rows[i]], box),
            ),
        )
        if self.candidates is None:
            return Scored(table, None, counts)
        indexes = task.first + np.array(batch.files)[rows]
        chosen = self.candidates.of(
            columns,
            detections,
            None,
            lambda positions: pa.array(indexes[positions], pa.int64()),
        )
        return Scored(table, None, counts, chosen)

    def _to_source(self, grid: Grid | None, box: Box) -> Box | None:
        return None if grid is None else self.schema.box_to_source(box, grid)

    def _count_groups(
        self,
        counts: Counts,
        files: Sequence[ImageFile],
        frames: Sequence[int],
        series: Sequence[str],
        detections: Detections,
    ) -> None:
        """Count images in the groups for which the model has thresholds."""
        images = list(zip(files, frames, series, detections.score.tolist(), strict=True))
        for kind in self.source.bundle.image_groups:
            for file, frame, uid, score in images:
                if name := group_name(kind, file, uid):
                    counts.add_image(kind, name, Highest(score, 1, file.name, frame))

    def _is_shown(self, name: str) -> bool:
        """Return whether the parts have a column."""
        return name in (PATH, FRAME, ID, *self.columns)

    def explain_rows(self, rows: pa.Table) -> list[Explanation | None]:
        """Explain images, which are read again; None for one that has changed in the meantime."""
        pairs = zip(rows[FEATURES].to_pylist(), rows[FRAME].to_pylist(), strict=True)
        return [self._explain_image(*pair) for pair in pairs]

    def _explain_image(self, index: int, frame: int) -> Explanation | None:
        for batch in read_images([self.files[index]], self.schema):
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
        self,
        files: Sequence[ImageFile],
        frames: Sequence[int],
        detections: Detections,
        drawn: NDArray[np.intp],
        explained: NDArray[np.intp],
        parts: ScoreParts,
    ) -> Counter[str]:
        rows = drawn.tolist()
        titles = [decision_title(detections, row) for row in rows]
        chosen = parts.part(np.searchsorted(explained, drawn))
        return self.writer.write(
            [files[row] for row in rows], [frames[row] for row in rows], titles, chosen
        )

    def _explain(self, parts: ScoreParts) -> list[Explanation]:
        scale, most = self.source.bundle.heat_scale, max_contributions(self.explaining.most)
        return region_explanations(self.writer.encoding, scale, parts, most)

    def _columns(self, files: Sequence[ImageFile], frames: Sequence[int]) -> dict[str, pa.Array]:
        """Return the columns that identify images, and those of the manifests that are carried."""
        names = (*([ID] if self.key is not None else ()), *self.carried)
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


def file_stem(file: ImageFile, frame: int) -> str:
    """Return a unique file stem for an image's heatmap, from its name, path digest and frame."""
    name = re.sub(r"[^\w.-]", "_", Path(file.name).stem, flags=re.ASCII)[:80]
    digest = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()[:16]
    return f"{name}-{digest}-{frame}"
