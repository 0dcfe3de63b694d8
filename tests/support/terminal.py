"""Run a command with a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

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
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:
        pass  # Linux says so once the last writer is gone
    finally:
        os.close(ours)
    return child.wait(), COLOURS.sub("", written.decode()).replace("\r\n", "\n")
