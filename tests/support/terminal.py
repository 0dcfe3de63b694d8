"""Run a command with a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr

COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Codes that a terminal does not show."""


def run_on_terminal(
    command: Sequence[str], width: int, environment: Mapping[str, str], cwd: str | None = None
) -> tuple[int, str]:
    """Return the exit code and everything that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    plain = {k: v for k, v in environment.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**plain, "TERM": "xterm"}, cwd=cwd
    )
    os.close(theirs)
    text = _read_to_end(ours)
    return child.wait(), text


@contextmanager
def terminal_for_stderr() -> Iterator[list[str]]:
    """Make stderr a terminal, which holds 4,096 bytes; the list has the text at the end."""
    ours, theirs = pty.openpty()
    written: list[str] = []
    with open(theirs, "w") as terminal, redirect_stderr(terminal):  # noqa: PTH123  # a descriptor
        yield written
    written.append(_read_to_end(ours))


def _read_to_end(ours: int) -> str:
    """Return what was written to a terminal, without colours, and close it."""
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:
        pass  # Linux says so once the last writer is gone
    finally:
        os.close(ours)
    return COLOURS.sub("", written.decode()).replace("\r\n", "\n")
