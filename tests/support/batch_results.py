"""Read what a result of batch scoring says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.batch.result.folder import RUN, SUMMARY

MEASURED = ("seconds", "rows_per_second", "peak_memory_bytes")
"""Entries of the summary that differ from run to run."""


def content(folder: Path) -> dict[str, Any]:
    """Return what a result says, apart from what was measured."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and RUN not in path.parts
    }
    return {**files, SUMMARY: without_measures(json.loads(files[SUMMARY]))}


def without_measures(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary without what was measured."""
    return {key: value for key, value in summary.items() if key not in MEASURED}
