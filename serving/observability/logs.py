"""Format log lines on stderr: JSON objects, or plain text on a terminal.

No line contains a record, a key or a path that a client sent.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import traceback
from typing import Any, TypeAlias

import msgspec

access = logging.getLogger("serving.access")
failures = logging.getLogger("serving")
FACTS = "facts"
"""Key of the fields of a line: of `extra` in logging calls, and of the ASGI scope of a request."""

Facts: TypeAlias = dict[str, Any]


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and the fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info and record.exc_info[1]:
            line |= _error(record.exc_info[1])
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """One line of text: time, level, message and the fields of the line as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        error = record.exc_info[1] if record.exc_info else None
        facts = getattr(record, FACTS, {}) | (_error(error) if error else {})
        fields = " ".join(f"{name}={value}" for name, value in facts.items())
        return f"{_utc(record.created)} {record.levelname.lower()} {record.getMessage()} {fields}"


def _utc(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat("T", "milliseconds")


def _error(error: BaseException) -> dict[str, Any]:
    """Describe an error by type and stack; its message is left out, as it may quote a record."""
    frames = traceback.extract_tb(error.__traceback__)
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "trace": trace}


def log_request(level: int, facts: Facts) -> None:
    """Write a line of the access log; `Logger.log` would search the stack for its caller too."""
    name = logging.getLevelName(level)
    fields = {"name": access.name, "levelno": level, "levelname": name, "msg": "request"}
    access.handle(logging.makeLogRecord({**fields, FACTS: facts}))


def configure(level: str) -> None:
    """Send all log records from this level on to stderr, as text only if it is a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # not shown
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the client gets a 400 instead
