"""Format log lines on stderr: JSON objects, or plain text on a terminal.

No line contains a record, a key or a path that a client sent, or the password of an address.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import traceback
from typing import Any, TypeAlias

import msgspec

from anomaly_vae.masking import masked

access = logging.getLogger("serving.access")
failures = logging.getLogger("serving")
LOG_FIELDS = "facts"
"""Key of the fields of a log line, both in `extra` of logging calls and in ASGI scopes."""

LogFields: TypeAlias = dict[str, Any]


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and the fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, LOG_FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1]:
            line |= _error(record.exc_info[1])
        text = msgspec.json.encode(line).decode()
        return text if record.name == access.name else masked(text)


class TextFormatter(logging.Formatter):
    """One line of text: time, level, message and the fields of the line as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        error = record.exc_info[1] if record.exc_info else None
        fields = getattr(record, LOG_FIELDS, {}) | (_error(error) if error else {})
        pairs = " ".join(f"{name}={value}" for name, value in fields.items())
        head = f"{_utc(record.created)} {record.levelname.lower()} {record.getMessage()}"
        return masked(f"{head} {pairs}")


def _utc(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat("T", "milliseconds")


def _error(error: BaseException) -> dict[str, Any]:
    """Describe an error by type and stack; its message is left out, as it may quote a record."""
    frames = traceback.extract_tb(error.__traceback__)
    trace = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "trace": trace}


def log_request(level: int, fields: LogFields) -> None:
    """Write a line of the access log without `Logger.log`, which inspects the stack."""
    name = logging.getLevelName(level)
    attributes = {"name": access.name, "levelno": level, "levelname": name, "msg": "request"}
    access.handle(logging.makeLogRecord({**attributes, LOG_FIELDS: fields}))


def configure(level: str) -> None:
    """Send log records of at least this level to stderr: text on a terminal, otherwise JSON."""
    handler = logging.StreamHandler(getattr(sys.stderr, "unmasked", sys.stderr))  # see formatters
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # unused
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a 400 tells the client
