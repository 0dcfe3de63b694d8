"""What a bundle says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines import console
from pipelines.models import Source


def describe(source: Source) -> dict[str, Any]:
    """The command's answer: the manifest without its encoding, and tables on the way."""
    manifest = source.bundle.manifest
    console.table("Model", ("", ""), list(source.to_json().items()))
    columns = [(column["name"], column["type"]) for column in manifest["schema"]["columns"]]
    console.table("Columns", ("name", "type"), columns)
    for part in ("data", "training", "calibration", "evaluation"):
        rows = [(k, v) for k, v in (manifest[part] or {}).items() if not isinstance(v, dict)]
        console.table(part.capitalize(), ("", ""), rows)
    _show_groups(manifest["calibration"] or {})
    content = {k: v for k, v in manifest.items() if k != "encoding"}
    return {"model": source.to_json(), **content}


def _show_groups(calibration: Mapping[str, Any]) -> None:
    """Which groups have a threshold of their own, and which have that of all rows."""
    if (groups := calibration.get("groups")) is None:
        return
    rest, figures = calibration["threshold"], calibration["figures"]
    small = [(level, rows, rest, "of all rows") for level, rows in figures["small_groups"].items()]
    own = [(level, one["n"], one["threshold"], "its own") for level, one in groups["own"].items()]
    others = ("(missing or rare)", figures["ungrouped"], rest, "of all rows")
    heads = (groups["column"], "normal rows", "threshold", "")
    console.table("Groups", heads, [*own, *small, others])
