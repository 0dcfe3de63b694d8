"""Print progress and tables for people on stderr, and a command's JSON result on stdout."""

from __future__ import annotations

import datetime as dt
import json
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from anomaly_vae.masking import masked
from anomaly_vae.messages import Pace

MAX_WIDTH = 10_000
"""Maximum width of a table, in characters."""
_json = threading.Event()
"""Set if results are printed as JSON on a terminal, too."""


class MaskedStream:
    """A text stream that writes no passwords and otherwise behaves as the stream it wraps."""

    def __init__(self, unmasked: TextIO) -> None:
        self.unmasked = unmasked

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unmasked, name)

    def write(self, text: str) -> int:
        """Write text without passwords and tokens."""
        self.unmasked.write(masked(text))
        return len(text)


@contextmanager
def masked_output() -> Iterator[None]:
    """Mask passwords in all text written to stdout and stderr: tables, warnings, tracebacks."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast("TextIO", MaskedStream(out)), cast("TextIO", MaskedStream(err))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


console = Console(stderr=True, highlight=False, soft_wrap=True)


def info(text: str) -> None:
    """Print a line of text."""
    console.print(text, markup=False)


class Once:
    """A line that is printed only once, whichever thread is the first."""

    def __init__(self) -> None:
        self._teller: dict[bool, object] = {}

    def info(self, text: str) -> None:
        """Print a line of text if none was printed before."""
        if self._teller.setdefault(True, teller := object()) is teller:
            info(text)


def heading(text: str) -> None:
    """Print the heading of a part of the work."""
    console.print(text, style="bold", markup=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numeric columns are right-aligned.

    A table that is wider than the terminal is printed with one field per line. A file gets each
    row on one line, however wide.
    """
    cells = [[format_value(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    grid = _grid(title, header, cells, numeric)
    options = console.options.update(width=MAX_WIDTH)
    width = Measurement.get(console, options, grid).maximum
    if console.is_terminal and width > console.width:
        _print_records(title, header, cells)
    else:
        Console(stderr=True, highlight=False, width=width).print(grid)


def _grid(
    title: str, header: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> Table:
    """Return a table whose cells stay on one line."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD
    )
    for name, is_number in zip(header, numeric, strict=True):
        grid.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in cells:  # no markup: names may have brackets
        grid.add_row(*(Text(" ".join(cell.split())) for cell in row))
    return grid


def _print_records(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print each row as a block with one field per line, wrapped between words."""
    heading(title)
    indent = max(map(len, header)) + 4
    for row in cells:
        for name, cell in zip(header, row, strict=True):
            first = f"  {name:<{indent - 2}}"
            info(textwrap.fill(cell, max(console.width, indent + 20), initial_indent=first,
                               subsequent_indent=" " * indent, break_long_words=False,
                               break_on_hyphens=False) or first.rstrip())  # fmt: skip
        info("")


def format_value(value: object) -> str:
    """Format a value for people: 4 significant digits, thousands separators, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return masked(str(value))  # before a table breaks it over lines


class _Bar(Progress):
    """A progress bar, which is a line of text now and then where there is no terminal."""

    pace, unit = Pace(), ""
    first: tuple[float, float] | None = None
    """Time and amount done at the first update; before it, an earlier process may have worked."""

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change the fields of a task; see `Progress.update`."""
        super().update(task_id, **changes)
        task = self.tasks[task_id]
        self.first = self.first or (time.monotonic(), task.completed)
        if not self.console.is_terminal and self.pace.due(task.completed, task.total):
            info(self._line(task))

    def _line(self, task: Task) -> str:
        """Describe a task: "Training: 8 of 80 epochs, 0:01:30 left, ELBO −3.00 nats"."""
        of = f" of {task.total:,.0f}" if task.total else ""
        parts = f"{task.completed:,.0f}{of} {self.unit}", self._left(task), task.fields["note"]
        return f"{task.description}: {', '.join(filter(None, parts))}"

    def _left(self, task: Task) -> str:
        """Return how long the rest takes at the pace since the first update; "" if unknown."""
        start, before = self.first or (0.0, task.completed)
        if not task.total or task.completed in {before, task.total}:
            return ""
        seconds = (time.monotonic() - start) / (task.completed - before)
        return f"{_duration(seconds * (task.total - task.completed))} left"


def _duration(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))


@contextmanager
def progress(
    label: str, unit: str, total: int | None, lines: int = 0
) -> Iterator[tuple[Progress, Any]]:
    """Show a progress bar with a note beside it; it stays visible only on a terminal.

    Elsewhere there is a line every minute, and one for each of ``lines`` equal parts of the work.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn() if total else TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with _Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        bar.pace, bar.unit = Pace(lines), unit
        yield bar, bar.add_task(label, total=total, note="")


class Meter:
    """Shows how many rows are done, how fast, and how long the others take.

    Several threads may report at once. On a terminal it is a progress bar, otherwise a line every
    minute.
    """

    def __init__(self, label: str, unit: str, total: int | None, done: int) -> None:
        self._label, self._unit, self._total = label, unit, total
        self._before = self._done = done
        self._start, self._pace = time.monotonic(), Pace()
        self._lock = threading.Lock()
        self._bar: Progress | None = None

    @contextmanager
    def shown(self) -> Iterator[Meter]:
        """Show the meter within the block."""
        if not console.is_terminal:
            yield self
            return
        note = TextColumn("{task.fields[note]}")
        columns = TextColumn("{task.description}"), BarColumn(bar_width=12), note
        with Progress(*columns, console=console) as self._bar:
            self._bar.add_task(self._label, total=self._total, completed=self._done, note="")
            yield self

    def advance(self, count: int, note: str) -> None:
        """Report that ``count`` more rows are done."""
        with self._lock:
            self._done += count
            text = f"{self._state()}, {note}"
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._done, note=text)
            elif self._pace.due(self._done, self._total):
                info(f"{self._label}: {text}")

    def _state(self) -> str:
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-6)
        of = f" of {self._total:,}" if self._total else ""
        text = f"{self._done:,}{of} {self._unit}, {rate:,.0f} {self._unit}/s"
        if not self._total or not rate:
            return text
        return f"{text}, {_duration(max(self._total - self._done, 0) / rate)} left"


def result(content: Mapping[str, Any]) -> None:
    """Print the command's result, one JSON object, on stdout.

    On a terminal, the entries that are single values are printed for people instead, unless
    `print_json` was called.
    """
    text = json.dumps(content, allow_nan=False)
    if sys.stdout.isatty() and not _json.is_set():
        _print_entries(content)
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def print_json(wanted: bool) -> None:
    """Choose whether `result` prints JSON even on a terminal."""
    _json.set() if wanted else _json.clear()


def _print_entries(content: Mapping[str, Any]) -> None:
    entries = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    width = max(map(len, entries), default=0)
    for key, value in entries.items():
        info(f"{key.replace('_', ' '):<{width}}  {format_value(value)}")
