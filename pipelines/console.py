"""What people read while a command works: stderr only; the result alone is for stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line of words."""
    console.print(text, markup=False)


def step(text: str) -> None:
    """A line that opens a part of the work."""
    console.print(text, style="bold", markup=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table of words and numbers; numbers to the right."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD
    )
    for index, name in enumerate(header):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(spell(value)) for value in row))  # no markup: names may have brackets
    console.print(grid)


def spell(value: object) -> str:
    """Numbers as people read them."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@contextmanager
def progress(label: str, total: int | None) -> Iterator[tuple[Progress, Any]]:
    """A progress bar with a free text beside it; only where somebody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn() if total else TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as bar:
        yield bar, bar.add_task(label, total=total, note="")


def result(content: Mapping[str, Any]) -> None:
    """The one JSON object on stdout."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
    sys.stdout.flush()
