"""Run a batch: begin or continue a result, have its units scored, and complete it."""

from __future__ import annotations

import json
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from anomaly_vae.errors import DataError
from pipelines import console
from pipelines.batch import Engine, Format
from pipelines.batch.engines import engine_of
from pipelines.batch.fdr import FdrPass
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import (
    PLAN,
    REJECTS,
    REJECTS_CSV,
    SUMMARY,
    Record,
    ResultFolder,
    is_sound,
    merge_rejects,
    records_of,
)
from pipelines.batch.result.groups import NO_GROUPS, GroupPass
from pipelines.batch.result.layout import PLAIN, Layout
from pipelines.batch.result.object_folder import result_folder
from pipelines.batch.result.plan import Plan, check_same
from pipelines.batch.top import TopPass, parquet_as_csv
from pipelines.batch.units import Job, Report, Work, total
from pipelines.datasets.reading.parts import first_line
from pipelines.registry.model_uri import LoadedModel, open_model


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not affect its result."""

    workers: int | None = None
    """Number of threads or, on Ray, of actors that score; None for one per core."""
    engine: Engine = Engine.LOCAL
    restart: bool = False
    """Whether a result of other inputs, options or another model is replaced."""
    ray_address: str | None = None
    """HOST:PORT of the cluster for Ray; None for a local Ray."""


DEFAULTS = RunOptions()


@dataclass(frozen=True)
class Batch:
    """Input of a run, and the completion of its result."""

    job: Job
    plan: Plan
    key: pa.Field | None
    """Column of ids; None if rows have none."""
    names: Sequence[str]
    """Name of each file in the result."""
    starts: Callable[[Counts], Sequence[int] | None]
    """Function that returns the position of each file's first row in the whole input; None if
    rejects keep their positions in the files."""
    summarise: Callable[[Counts, Sequence[Record]], dict[str, Any]]
    """Function that returns the summary."""
    second_pass: FdrPass | None = None
    layout: Layout = PLAIN
    """The files of the parts."""
    top: TopPass | None = None
    """The pass that ranks the highest rows; None if they are not ranked."""
    total: int | None = None
    """Number of rows to score, for the progress bar; None if it is not known."""
    unit: str = "rows"
    """Word for rows in the progress bar."""
    groups: GroupPass = NO_GROUPS
    """The pass that decides on groups of images; tables have none."""

    @property
    def last_files(self) -> tuple[str, ...]:
        """Names of the files that are written when all parts are finished, before the summary."""
        csv = (REJECTS_CSV,) if self.layout.format == Format.CSV else ()
        top = self.top.files if self.top else ()
        return (REJECTS, *csv, *top, *self.groups.files)


def run_batch(batch: Batch, output: Path, options: RunOptions) -> dict[str, Any]:
    """Score what is not scored yet, and return the summary.

    Raises:
        DataError: the folder holds another result or other files, is in use, or is full.
    """
    folder = result_folder(output)
    try:
        with folder.locked():
            return _run(batch, folder, options)
    except OSError as error:
        raise _unwritable(output, error) from None


def _run(batch: Batch, folder: ResultFolder, options: RunOptions) -> dict[str, Any]:
    plan = _begin(folder, batch.plan, options.restart)
    batch, held = replace(batch, plan=plan), batch.second_pass is not None
    records = [r for r in records_of(folder, plan) if is_sound(folder, r)]
    work = Work(batch.job, folder, plan, held, batch.layout).after(records)
    finished = folder.read(SUMMARY)
    if finished and not work.units and all(map(folder.has, batch.last_files)):
        console.info(f"'{folder.path}' holds the finished result; nothing is scored again")
        summary: dict[str, Any] = json.loads(finished)
        return summary
    folder.remove(SUMMARY)
    try:
        return _complete(batch, folder, work, records, options)
    except KeyboardInterrupt:
        console.info("interrupted: the same command continues with the parts that are missing")
        raise


def _begin(folder: ResultFolder, plan: Plan, restart: bool) -> Plan:
    """Return the plan of the folder, after storing this one in an empty folder."""
    folder.check(restart)
    content = folder.read(PLAN)
    stored = Plan.from_bytes(content) if content else None
    if stored is not None and not restart:
        check_same(folder.path, stored, plan)
        folder.tidy()
        return stored
    if content is not None and not restart:
        raise DataError(
            f"--output '{folder.path}' holds a result that another version began; choose another "
            "folder, or add --restart, which replaces it"
        )
    folder.clear()
    folder.write(PLAN, plan.to_bytes())
    return plan


def _complete(
    batch: Batch,
    folder: ResultFolder,
    work: Work,
    records: Sequence[Record],
    options: RunOptions,
) -> dict[str, Any]:
    start, before = time.monotonic(), total(records)
    if records:
        console.info(
            f"continuing: {before.scored + before.rejected:,} rows in {len(records):,} parts are "
            "finished"
        )
    meter = console.Meter("Scoring", batch.unit, batch.total, before.scored + before.rejected)
    with meter.shown():
        report = _reporter(meter, before)
        engine_of(options.engine, options.ray_address)(work, options.workers, report)
    records = records_of(folder, batch.plan)
    entries: dict[str, Any] = {}
    if batch.second_pass:
        records, entries = batch.second_pass.run(folder, records)
    counts = total(records)
    starts = batch.starts(counts)
    merge_rejects(folder, records, batch.key, batch.names, starts)
    if REJECTS_CSV in batch.last_files:
        parquet_as_csv(folder, REJECTS, REJECTS_CSV)
    if batch.top:
        entries |= batch.top.run(folder, records, entries.get("alpha"))
    entries |= batch.groups.run(folder, counts)
    summary = _with_shares(batch.summarise(counts, records) | entries)
    new = counts.scored + counts.rejected - before.scored - before.rejected
    summary |= _measured(new, time.monotonic() - start)
    folder.write(SUMMARY, f"{json.dumps(summary, indent=1)}\n".encode())
    return summary


def _reporter(meter: console.Meter, before: Counts) -> Report:
    """Return a function that adds up what is scored and shows it."""
    flagged, rejected = before.flagged, before.rejected
    lock = threading.Lock()

    def report(counts: Counts) -> None:
        nonlocal flagged, rejected
        with lock:
            flagged += counts.flagged
            rejected += counts.rejected
            note = f"{flagged:,} flagged, {rejected:,} rejected"
            meter.advance(counts.scored + counts.rejected, note)

    return report


def _with_shares(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with the share of flagged rows, and the share that alpha lets expect."""
    share = summary["flagged"] / summary["scored"] if summary["scored"] else None
    expected = summary["alpha"] if summary["fdr"] is None else None
    return {**summary, "flagged_share": share, "expected_share": expected}


def _measured(rows: int, seconds: float) -> dict[str, Any]:
    """Return the summary's entries that differ from run to run."""
    return {
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / max(seconds, 1e-9), 1),
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int:
    """Return the largest amount of memory that this process had, in bytes."""
    with suppress(OSError):  # Linux; ru_maxrss is at least that of the process which started it
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(match[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _unwritable(output: Path, error: OSError) -> DataError:
    return DataError(
        f"--output '{output}': {first_line(error)}; what is finished is kept, and the same "
        "command continues"
    )


# ---------------------------------------------------------------- the model


def open_recorded(uri: str, output: Path, restart: bool = False) -> LoadedModel:
    """Open a model, or the version with which the run in the output folder began.

    An alias may have moved since then.

    Raises:
        AnomalyVAEError: see `open_model`.
    """
    recorded = None if restart else _recorded(uri, result_folder(output))
    if recorded is None:
        return replace(open_model(uri), uri=uri)
    console.info(f"continuing with version {recorded['version']}, with which the run began")
    source = open_model(f"models:/{recorded['name']}/{recorded['version']}")
    return replace(source, uri=uri, alias=recorded["alias"])


def _recorded(uri: str, folder: ResultFolder) -> Mapping[str, Any] | None:
    """Return the model of the stored plan, if this URI named it by an alias."""
    content = folder.read(PLAN)
    stored = Plan.from_bytes(content) if content else None
    same = stored is not None and stored.model["uri"] == uri
    return stored.model if stored is not None and same and stored.model["alias"] else None
