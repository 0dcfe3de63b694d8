"""Measure what image models of several sizes cost: memory, time to fit and time to score.

Simulated scans are prepared at sides of 64 to 256 pixels. The default model, and the model with a
localisation head, are fitted for a few epochs only, each in a process of its own; minutes are those
of a whole fit, from the CPU time of an epoch and the number of epochs that a fit may take. Memory
is the peak of the process, with libraries and images.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from anomaly_vae.config import validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.config.training import FitConfig
from anomaly_vae.images.schema import ImageSchema, image_batch
from anomaly_vae.simulation.scans import simulate_scans
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import (
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    one_thread,
    summary_table,
)
from benchmarks.scans import prepared
from benchmarks.sizes import peak_memory

SIDES, SHORT_SIDES = (64, 96, 128, 192, 256), (64,)
"""Sides of images to measure, in pixels."""
SEEDS = 1
"""Number of seeds."""
IMAGES, HELD_OUT, SCORED = 192, 20, 8
"""Numbers of images that train, that validate, and whose scoring is timed."""
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "localization_head": {"model": {"localization_head": True}, "score": "contamination"},
}
"""Overrides of the default configuration."""
KEYS = ("model", "side", "seed")
RESULT_COLUMNS = {
    "step_seconds": Column("step, CPU-s", ".2f", show_deviation=False),
    "fit_minutes": Column("fit, CPU-min", ".1f", show_deviation=False),
    "score_ms": Column("score an image, CPU-ms", ".1f", show_deviation=False),
    "peak_mib": Column("memory, MiB", ".0f", show_deviation=False),
}


def measure(method: str, side: int, seed: int) -> dict[str, float]:
    """Measure the cost of a model; meant to run in a process of its own."""
    scans = simulate_scans(IMAGES + HELD_OUT, seed, size=96, lesion_share=0).images
    images = prepared(scans, side)
    parts = image_batch(images[HELD_OUT:]), image_batch(images[:HELD_OUT])
    config, ends = _config(method, side, seed), list[float]()
    encoded = prepare(config, ImageSchema(side, 1), *parts)
    with one_thread():
        fitted, whole = cpu_seconds(
            lambda: fit_bundle(config, encoded, {}, lambda *_: ends.append(time.process_time()))
        )
        scorer = fitted.bundle.scorer
        scorer.score(parts[1].take(np.arange(1)))  # the first image loads the graph
        _, score = cpu_seconds(lambda: scorer.score(parts[1].take(np.arange(SCORED))))
    epoch = ends[1] - ends[0]
    step = epoch / math.ceil(IMAGES / config.training.resolve(IMAGES).batch_size)
    return {
        "step_seconds": step,
        "fit_minutes": (whole - 2 * epoch + FitConfig.STEPS * step) / 60,
        "score_ms": 1000 * score / SCORED,
        "peak_mib": peak_memory(),
    }


def _config(method: str, side: int, seed: int) -> Any:
    base = {
        "kind": "image",
        "name": "sizes",
        "data": {"path": "images", "size": side},
        "training": {"seed": seed, "epochs": 2},
    }
    return validate_config(merged(base, METHODS[method]))


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    ledger = Ledger(options.result_path("image_sizes.csv"), KEYS)
    for key in _plan(options):
        if key not in ledger:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                ledger.add(key, pool.submit(measure, *key).result())
    tables = (
        f"{name}\n\n{summary_table(rows.sort_values('side'), 'side', RESULT_COLUMNS)}"
        for name, rows in ledger.rows.groupby("model", sort=False)
    )
    text = "\n".join((*tables, environment()))
    options.result_path("image_sizes.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _plan(options: Options) -> Iterator[tuple[str, int, int]]:
    for side in SHORT_SIDES if options.short else SIDES:
        wanted = [name for name in METHODS if options.wants(f"{name}/{side}")]
        yield from ((name, side, seed) for name in wanted for seed in range(SEEDS))
