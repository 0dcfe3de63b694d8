"""Plan, run and sum up the scoring of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomaly_vae.errors import ConfigError
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch import ExplainedRows
from pipelines.batch.common import (
    GROUP_COLUMNS,
    NO_HEATMAPS,
    RESULT_COLUMNS,
    Explain,
    Explaining,
    HeatmapOptions,
    exclude_output,
    model_entry,
    summary_of,
)
from pipelines.batch.fdr import FdrPass, check_controllable
from pipelines.batch.images.heatmaps import HeatmapWriter
from pipelines.batch.images.job import (
    FILES_SCORED,
    IN_COLOUR,
    SERIES_UID,
    SLICE_POSITION,
    ImageJob,
    ImageListing,
)
from pipelines.batch.options import ALL_ROWS, OutputOptions
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import (
    FILE,
    Record,
    ResultFolder,
    rejects_of,
)
from pipelines.batch.result.groups import GroupPass, missing_kinds
from pipelines.batch.result.highest import show_highest
from pipelines.batch.result.object_folder import result_folder
from pipelines.batch.result.plan import Piece, Place, Plan, cut, input_of
from pipelines.batch.run import DEFAULTS, Batch, RunOptions, run_batch
from pipelines.batch.top import TopPass
from pipelines.datasets.images.files import FRAME, ID, PATH, ImageFile, Reasons
from pipelines.datasets.images.listing import list_files
from pipelines.datasets.reading.objects import place
from pipelines.registry.model_uri import LoadedModel

PART_FILES, PART_BYTES = 512, 1 << 28
"""Number of files, or of their bytes, from which a part is complete."""


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
    output = place(output)
    check_controllable(source.bundle.detector.calibration, fdr)
    listing = _list_images(source, paths, output, outputs)
    explaining = Explaining(explain, explain_rows, fdr)
    plan = _plan(listing, explaining.in_plan | heatmaps.in_plan | outputs.in_plan)
    writer = HeatmapWriter(source, result_folder(output), heatmaps)
    job = ImageJob(listing, explaining, writer)
    summary = run_batch(_batch(job, plan), output, run)
    show_highest(output, summary["parts"], _wording(source))
    return summary


def _list_images(
    source: LoadedModel, paths: Sequence[str], output: Path, outputs: OutputOptions
) -> ImageListing:
    """List the files, and check the columns of the manifests that a result is to have."""
    files = exclude_output(paths, list_files(paths), output, lambda file: file.path)
    listing = ImageListing.of(source, files, outputs)
    _check_outputs(listing)
    return listing


def _check_outputs(listing: ImageListing) -> None:
    """Check the columns of the manifests that a result is to have.

    Raises:
        ConfigError: images are to be ranked by day.
        DataError: a column is unknown, or has the name of a result column.
    """
    if listing.outputs.per_day:
        raise ConfigError("--per day is for tables, as images have no times; leave it out")
    available = {name for file in listing.files for name in file.attributes}
    places = (PATH, FRAME, SERIES_UID, SLICE_POSITION)
    reserved = {*RESULT_COLUMNS, *GROUP_COLUMNS, "regions", *places} - {"group"}
    listing.outputs.check(available, reserved, ID if listing.ids else None)


def _plan(listing: ImageListing, options: Mapping[str, Any]) -> Plan:
    """Plan the scoring of the files, with the options that affect the result."""
    inputs = tuple(
        input_of(file.path, None, file.name, _detail(file, listing.carried))
        for file in listing.files
    )
    pieces = [
        Piece(Place(i), max(1 / PART_FILES, item.bytes / PART_BYTES))
        for i, item in enumerate(inputs)
    ]
    units = cut(pieces, Place(len(inputs)))
    return Plan(model_entry(listing.source), options, inputs, tuple(units))


def _detail(file: ImageFile, columns: Sequence[str]) -> str:
    """Return a digest of what the result has of a file's row in a manifest; empty without one."""
    if file.row is None and not file.problem:
        return ""
    cells = [file.attributes.get(name) for name in (ID, *columns)]
    mask = [str(file.mask)] if file.mask else []
    content = [str(file.path), *cells, file.problem, file.row, file.place, *mask]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _wording(source: LoadedModel) -> Wording:
    return Wording.of(source.bundle.scorer.encoding)


def _batch(job: ImageJob, plan: Plan) -> Batch:
    """Return the run that scores what the plan lists."""
    listing, explaining = job.listing, job.explaining
    source, layout = listing.source, listing.layout
    return Batch(
        job,
        plan,
        listing.key,
        [file.name for file in listing.files],
        lambda _: None,
        lambda counts, records: _summarise(job, counts, records),
        FdrPass.of(source.bundle.detector.calibration, explaining.fdr, explaining.rows, layout),
        layout,
        TopPass.of_layout(layout, job.explain_rows, _wording(source), explaining.most),
        total=len(listing.files),
        unit="images",
        groups=GroupPass(source.bundle.image_groups),
    )


# ---------------------------------------------------------------- the summary


def _summarise(job: ImageJob, counts: Counts, records: Sequence[Record]) -> dict[str, Any]:
    """Return the summary, and print why images are rejected and what the scores do not say."""
    listing = job.listing
    reasons = _reasons(job.writer.folder, records, listing.files)
    reasons.show()
    _show_colour(listing.schema, counts)
    for note in missing_kinds(counts, listing.source.bundle.image_groups):
        console.info(note)
    return {
        **summary_of(listing.source, len(listing.files), counts, records),
        **listing.limit_in_summary,
        "files_scored": counts.others[FILES_SCORED],
        "files_rejected": len(listing.files) - counts.others[FILES_SCORED],
        "rejected_by_reason": dict(reasons.counts.most_common()),
        **{name: counts.others[name] for name in job.writer.counted},
    }


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
