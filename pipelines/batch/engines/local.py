"""Score on the cores of this machine, with threads.

Reading and writing Parquet, ONNX Runtime and most of numpy's work release the interpreter's lock,
so that threads use all cores; they share the model and need no copies of the rows. Each unit has a
thread that reads it and writes its results; its tasks are scored by the workers. No more than a
few tasks of a unit are in memory at once, however large the unit is.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from pipelines.batch.units import MAX_WAITING, Report, Work, score_unit


class _Stopped(Exception):  # noqa: N818  # no error
    """Raised in the threads of a run of which another thread failed."""


def run_locally(work: Work, workers: int | None, report: Report) -> None:
    """Score all unfinished units.

    Args:
        work: the run.
        workers: number of threads that score; None for one per core.
        report: is told what was written, from several threads.

    Raises:
        OSError: a file cannot be written; what is finished stays.
    """
    units, workers = work.units, workers or cores()
    streams = max(1, min(workers, len(units)))
    waiting = max(MAX_WAITING, -(-2 * workers // streams))
    stop = threading.Event()

    def check(counts: Any) -> None:
        if stop.is_set():
            raise _Stopped
        report(counts)

    with ThreadPoolExecutor(workers, "score") as scorers, ThreadPoolExecutor(streams) as readers:
        futures = [
            readers.submit(score_unit, work, unit, scorers.submit, check, waiting) for unit in units
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # also when interrupted
            if any(not future.done() or future.exception() for future in futures):
                stop.set()
                for future in futures:
                    future.cancel()
    errors = [future.exception() for future in done]
    for error in errors:
        if error is not None and not isinstance(error, _Stopped):
            raise error


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
