"""The engine of this machine: order, bounded reading ahead, and errors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.batch.engines.local import run_locally
from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import ResultFolder, records_of
from pipelines.batch.result.layout import PLAIN
from pipelines.batch.result.plan import Place, Plan, Unit
from pipelines.batch.units import Scored, Work

UNITS, TASKS = 5, 40
MODEL = {"uri": None, "name": "m", "version": None, "alias": None, "digest": "d"}


class Number(NamedTuple):
    """A task: one number, a tenth of a part."""

    value: int
    share: float = 0.1


class Numbers:
    """A job that scores numbers by themselves, in random time."""

    def __init__(self, failing: int | None = None) -> None:
        self.failing = failing
        self.scored: list[int] = []
        self.ahead = self.most_ahead = 0
        self._lock = threading.Lock()
        self._chance = random.Random(0)

    def read(self, unit: Unit) -> Iterator[Number]:
        for i in range(TASKS):
            with self._lock:
                self.ahead += 1
                self.most_ahead = max(self.most_ahead, self.ahead)
            yield Number(unit.first.file * TASKS + i)

    def score(self, task: Number) -> Scored:
        time.sleep(self._chance.random() / 500)
        if task.value == self.failing:
            raise OSError(28, "No space left on device")
        self.scored.append(task.value)
        return Scored(pa.table({"score": [float(task.value)]}), None, Counts(scored=1))

    def written(self, counts: Counts) -> None:
        with self._lock:
            self.ahead -= counts.scored


def work(job: Numbers, folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    units = tuple(Unit(Place(i), Place(i + 1)) for i in range(UNITS))
    plan, target = Plan(MODEL, {}, (), units), ResultFolder(folder)
    return Work(job, target, plan, False, PLAIN).after(records_of(target, plan))


def numbers(folder: Path) -> list[float]:
    tables = map(pq.read_table, sorted(folder.glob("part-*.parquet")))
    return [value for table in tables for value in table["score"].to_pylist()]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_results_are_in_the_order_of_reading(tmp_path: Path, workers: int) -> None:
    job = Numbers()
    run_locally(work(job, tmp_path), workers, job.written)
    assert numbers(tmp_path) == list(range(UNITS * TASKS))
    assert len(list(tmp_path.glob("part-*.parquet"))) == UNITS * 4
    assert job.ahead == 0
    assert job.most_ahead <= 4 * workers + 2 * UNITS
    assert not work(job, tmp_path).units


def test_an_error_stops_all_and_what_was_finished_is_not_scored_again(tmp_path: Path) -> None:
    job = Numbers(failing=95)
    with pytest.raises(OSError, match="No space left"):
        run_locally(work(job, tmp_path), 2, job.written)
    kept = numbers(tmp_path)
    assert kept
    assert not list((tmp_path / ".run").glob("unfinished*"))
    again = Numbers()
    run_locally(work(again, tmp_path), 2, again.written)
    assert numbers(tmp_path) == list(range(UNITS * TASKS))
    assert not {int(value) for value in kept} & set(again.scored)
