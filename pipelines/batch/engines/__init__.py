"""Run the work of a batch: on the cores of this machine, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipelines.batch import Engine
from pipelines.batch.engines.local import run_locally
from pipelines.batch.engines.ray import run_on_ray
from pipelines.batch.units import Report, Work

__all__ = ["engine_of"]

Run = Callable[[Work, int | None, Report], None]
"""Function that does all work with this number of workers, and reports what was written."""


def engine_of(engine: Engine, ray_address: str | None = None) -> Run:
    """Return the function that does the work of a run."""
    if engine == Engine.RAY:
        return partial(run_on_ray, address=ray_address)
    return run_locally
