"""Score in processes of their own, which are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.batch.result.folder import RUN
from pipelines.batch.result.object_folder import result_folder
from pipelines.datasets.reading.objects import place
from tests.support.paths import ROOT

PROCESS = """
import resource, sys
from anomaly_vae.artifacts.bundle import load_bundle
from pipelines.batch import Engine
from pipelines.batch.images import score as images
from pipelines.batch.result import folder as results
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.options import OutputOptions
from pipelines.batch.run import RunOptions
from pipelines.registry.model_uri import LoadedModel
kind, bundle, out, part, limit, engine, address, options, *paths = sys.argv[1:]
results.PART_ROWS = images.PART_FILES = int(part)
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
source = LoadedModel(load_bundle(bundle))
if kind == "image":
    from pipelines.batch.images import score_images as score
else:
    from pipelines.batch.tables import score_files as score
run = RunOptions(1 if int(limit) else None, Engine(engine), ray_address=address or None)
score(source, paths, out, run=run, **eval(options))
"""
"""A run with smaller parts."""
PART, PART_FILES = 100, 4
"""Rows, or files of images, of a part."""


def start(
    kind: str,
    bundle: Path,
    out: str | Path,
    paths: Sequence[str | Path],
    *,
    part: int | None = None,
    limit: int = 0,
    engine: str = "local",
    address: str = "",
    **options: Any,
) -> subprocess.Popen[str]:
    """Start a run in a process of its own.

    Args:
        kind: ``tabular`` or ``image``.
        bundle: folder of the model.
        out: folder of the result, which may be in an object store.
        paths: input.
        part: rows or files of a part.
        limit: maximum size of a file that the process may write, in bytes; 0 for none.
        engine: engine that scores.
        address: address of the cluster for Ray.
        **options: arguments of the function that scores.
    """
    part = part or (PART if kind == "tabular" else PART_FILES)
    arguments = [kind, bundle, out, part, limit, engine, address, repr(options), *paths]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def n_records(out: str | Path) -> int:
    """Return how many parts are finished."""
    return len(result_folder(place(out)).names(f"{RUN}/[0-9]*.json"))


def kill_after(
    process: subprocess.Popen[str], out: str | Path, records: int, delay: float = 0
) -> None:
    """Kill a run as soon as it has this many records, or after this many seconds more."""
    while process.poll() is None and n_records(out) < records:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def kill_at_random(
    begin: Callable[[], subprocess.Popen[str]], out: str | Path, kills: int, chance: random.Random
) -> None:
    """Begin a run several times, and kill it each time at another moment."""
    for _ in range(kills):
        process = begin()
        kill_after(process, out, n_records(out) + chance.randrange(1, 4), chance.random() / 5)
