"""Run the work of a batch: on the cores of this machine, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from pipelines.batch.engines.local import run_locally
from pipelines.batch.units import Report, Work

__all__ = ["Engine", "engine_of"]

Run = Callable[[Work, int, Report], None]
"""Function that does all work with this number of workers, and reports what was written."""


class Engine(StrEnum):
    """An engine that scores a batch."""

    LOCAL = "local"


def engine_of(engine: Engine) -> Run:
    """Return the function that does the work of a run."""
    return {Engine.LOCAL: run_locally}[engine]
