"""Log lines on stderr, one JSON object each unless that is a terminal.

They have no record, no key and no path of a client.
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

Facts: TypeAlias = dict[str, Any]


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and the fields given as ``extra={"facts": {…}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
    """The same for people: time, level and message, and the fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        error = record.exc_info[1] if record.exc_info else None
        facts = getattr(record, FACTS, {}) | (_error(error) if error else {})
        said = " ".join(f"{name}={value}" for name, value in facts.items())
        return f"{_utc(record.created)} {record.levelname.lower()} {record.getMessage()} {said}"


def _utc(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat("T", "milliseconds")


def _error(error: BaseException) -> dict[str, Any]:
    """The type and the place of an error; its message may quote a record, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "trace": trace}


def configure(level: str) -> None:
    """Send everything logged to stderr, as JSON unless that is a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a 400 tells the client
