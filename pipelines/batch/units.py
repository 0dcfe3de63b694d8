"""Score the units of a plan: the part of a run that every engine has in common.

A `Job` knows how to read and score one kind of data. `score_unit` reads a unit in order, has its
tasks scored anywhere, and writes the results in the order of reading. The parts of a result
therefore depend neither on the engine nor on the number of workers.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from pipelines.batch.result.counts import Counts
from pipelines.batch.result.folder import PartWriter, Record, ResultFolder
from pipelines.batch.result.layout import Layout
from pipelines.batch.result.plan import Plan, Unit

MAX_WAITING = 2
"""Number of tasks of a unit that wait at least, scored or not, until the first one is written."""


class Task(Protocol):
    """An amount of input that is scored at once."""

    @property
    def share(self) -> float:
        """Share of the input that makes a full part."""


class Scored(NamedTuple):
    """The result of a task."""

    rows: pa.Table | None
    rejects: pa.Table | None
    counts: Counts
    candidates: pa.Table | None = None
    """Rows that may be among the highest; None if none are chosen."""


class Job(Protocol):
    """How one kind of data is read and scored; `score` may run in several threads at once."""

    def read(self, unit: Unit) -> Iterator[Any]:
        """Yield the tasks of a unit in order."""

    def score(self, task: Any) -> Scored:
        """Score or reject the rows of a task."""

    def size(self, file: int) -> int:
        """Return the size of a file in bytes, as this machine sees it; -1 if it is not there."""

    def shared(self, folder: ResultFolder) -> AbstractContextManager[Job]:
        """Put what other machines need from this one into the result's folder for a while.

        Yields:
            The job for other machines.
        """


class Result(Protocol):
    """A result that is computed elsewhere, such as a `concurrent.futures.Future`."""

    def result(self) -> Scored:
        """Wait for the result."""


Submit = Callable[[Callable[[Any], Scored], Any], Result]
"""Function that has a task scored, here or elsewhere."""
Report = Callable[[Counts], None]
"""Function that is told the counts of the rows that were written last."""


@dataclass(frozen=True)
class Work:
    """Task of an engine: the unfinished units of a run, and how to score them."""

    job: Job
    folder: ResultFolder
    plan: Plan
    held: bool
    """Whether a second pass will write the parts."""
    layout: Layout
    """The files of the parts."""
    finished: dict[int, set[int]] = field(default_factory=dict)
    """Numbers of the finished parts of each unit that is begun."""
    complete: frozenset[int] = frozenset()
    """Units all of whose parts are finished."""

    def after(self, records: Iterable[Record]) -> Work:
        """Return the work that the records of finished parts leave."""
        finished: dict[int, set[int]] = defaultdict(set)
        ends: dict[int, int] = {}
        for record in records:
            finished[record.unit].add(record.number)
            if record.last:
                ends[record.unit] = record.number
        complete = {u for u, end in ends.items() if finished[u] == set(range(end + 1))}
        return replace(self, finished=dict(finished), complete=frozenset(complete))

    @property
    def units(self) -> list[int]:
        """Indexes of the units to score."""
        return [unit for unit in range(len(self.plan.units)) if unit not in self.complete]


def score_unit(work: Work, unit: int, submit: Submit, report: Report, waiting: int) -> None:
    """Score the parts of a unit that are not finished.

    Args:
        work: the run.
        unit: index of the unit.
        submit: has a task scored.
        report: is told what was written.
        waiting: maximum number of tasks that are read ahead of the one that is written.

    Raises:
        OSError: a file cannot be written; what is finished stays.
    """
    with _Parts(work, unit, report) as parts:
        pending: deque[Result] = deque()
        for number, task in _numbered(work.job.read(work.plan.units[unit])):
            if number in work.finished.get(unit, ()):
                parts.skip(number)
                continue
            pending.append(submit(work.job.score, task))
            parts.expect(number)
            while len(pending) > max(waiting, MAX_WAITING):
                parts.write(pending.popleft().result())
        while pending:
            parts.write(pending.popleft().result())


def _numbered(tasks: Iterable[Task]) -> Iterator[tuple[int, Task]]:
    """Yield tasks with the number of their part; a part is full at a share of 1."""
    number, total = 0, 0.0
    for task in tasks:
        if total >= 1 and task.share:
            number, total = number + 1, 0.0
        total += task.share
        yield number, task


class _Parts:
    """The parts of a unit, which are written one after the other."""

    def __init__(self, work: Work, unit: int, report: Report) -> None:
        self._work, self._unit, self._report = work, unit, report
        self._expected: deque[int] = deque()
        self._writer: PartWriter | None = None
        self._last = 0
        """Number of the last part that was read."""

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                self._finish(last=True)
        finally:
            if self._writer is not None:
                self._writer.close()

    def skip(self, number: int) -> None:
        """Note that a finished part was read."""
        self._last = number

    def expect(self, number: int) -> None:
        """Note that a task of a part was read, whose result will be written."""
        self._last = number
        self._expected.append(number)

    def write(self, scored: Scored) -> None:
        """Append the result of the task that was expected first."""
        number = self._expected.popleft()
        if self._writer is None or self._writer.number != number:
            self._finish(last=False)
            self._writer = self._open(number)
        self._writer.write(*scored)
        self._report(scored.counts)

    def _open(self, number: int) -> PartWriter:
        work = self._work
        return PartWriter(work.folder, self._unit, number, work.held, work.layout)

    def _finish(self, last: bool) -> None:
        finished = self._work.finished.get(self._unit, ())
        if self._writer is None and last and self._last not in finished:
            self._writer = self._open(self._last)  # a unit without tasks
        if self._writer is not None:
            is_last = last and self._writer.number == self._last
            self._writer.finish(self._work.plan.digest, is_last)
            self._writer.close()
            self._writer = None


def in_place(score: Callable[[Any], Scored], task: Any) -> Result:
    """Score a task at once."""
    return _Done(score(task))


class _Done(NamedTuple):
    scored: Scored

    def result(self) -> Scored:
        """Return the result."""
        return self.scored


def total(records: Sequence[Record]) -> Counts:
    """Return the counts of all parts together."""
    counts = Counts()
    for record in records:
        counts.add(record.counts)
    return counts
