"""Print progress and tables for people on stderr, and a command's JSON result on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

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

from anomaly_vae.masking import masked


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
    """Write no passwords to stdout and stderr, whoever writes: tables, warnings, tracebacks."""
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


def heading(text: str) -> None:
    """Print the heading of a part of the work."""
    console.print(text, style="bold", markup=False)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numeric columns are right-aligned."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD
    )
    for index, name in enumerate(header):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(
            *(Text(format_value(value)) for value in row)
        )  # no markup: names may have brackets
    console.print(grid)


def format_value(value: object) -> str:
    """Format a value for people: 4 significant digits, thousands separators, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return masked(str(value))  # before a table breaks it over lines


@contextmanager
def progress(label: str, total: int | None) -> Iterator[tuple[Progress, Any]]:
    """Show a progress bar with a note beside it; it stays visible only on a terminal."""
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
    """Print the command's result, one JSON object, on stdout."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
    sys.stdout.flush()
