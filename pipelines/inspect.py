"""What a bundle says of itself."""

from __future__ import annotations

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
    content = {k: v for k, v in manifest.items() if k != "encoding"}
    return {"model": source.to_json(), **content}
