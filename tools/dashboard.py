"""configs/grafana/dashboard.yaml → the JSON that Grafana reads: ``python -m tools.dashboard``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "grafana"
SOURCE = FOLDER / "dashboard.yaml"
TARGET = FOLDER / "dashboards" / "anomaly-vae.json"
SOURCE_OF_DATA = {"type": "prometheus", "uid": "prometheus"}
SCHEMA = 41
"""The version of Grafana's dashboard schema that this is written in."""
COLUMNS, HEIGHT = 24, 8
COLOURS = ("green", "orange", "red")
TYPES = {"table": "table", "stat": "stat", "state": "state-timeline"}


def dashboard(source: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of it."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "schemaVersion": SCHEMA,
        "editable": False,
        "graphTooltip": 1,  # the crosshair is in every panel
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_model_variable()]},
        "panels": [
            {"id": number, **panel} for number, panel in enumerate(_panels(source["rows"]), 1)
        ],
    }


def _model_variable() -> dict[str, Any]:
    query = "label_values(anomaly_vae_model_info, model)"
    return {
        "name": "model",
        "type": "query",
        "datasource": SOURCE_OF_DATA,
        "definition": query,
        "query": {"query": query, "refId": "models"},
        "refresh": 2,  # whenever the range of time changes
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows below each other; their panels beside each other, of the same width."""
    top = 0
    for row in rows:
        place = _place(0, top, COLUMNS, 1)
        yield {
            "type": "row", "title": row["title"], "gridPos": place, "collapsed": False, "panels": []
        }  # fmt: skip
        width = COLUMNS // len(row["panels"])
        for number, panel in enumerate(row["panels"]):
            yield _panel(panel, _place(number * width, top + 1, width, HEIGHT))
        top += 1 + HEIGHT


def _place(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Mapping[str, Any], place: Mapping[str, int]) -> dict[str, Any]:
    kind = panel.get("kind", "lines")
    return {
        "type": TYPES.get(kind, "timeseries"),
        "title": panel["title"],
        "description": panel["about"],
        "gridPos": place,
        "datasource": SOURCE_OF_DATA,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "targets": [
            _target(chr(ord("A") + number), legend, expression, kind)
            for number, (legend, expression) in enumerate(panel["queries"].items())
        ],
        **({"transformations": [_only(panel["columns"])]} if kind == "table" else {}),
    }


def _defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Units, where the axis begins, and what states are called."""
    found: dict[str, Any] = {"unit": panel["unit"]} if "unit" in panel else {}
    if panel.get("kind", "lines") == "lines" and not panel.get("signed"):
        found["min"] = 0
    if states := panel.get("states"):
        named = {
            str(value): {"text": text, "color": COLOURS[value], "index": value}
            for value, text in enumerate(states)
        }
        found["mappings"] = [{"type": "value", "options": named}]
    return found


def _target(letter: str, legend: str, expression: str, kind: str) -> dict[str, Any]:
    at_once = kind in {"table", "stat"}
    return {
        "refId": letter,
        "datasource": SOURCE_OF_DATA,
        "expr": expression,
        "legendFormat": legend,
        "instant": at_once,
        "range": not at_once,
        **({"format": "table"} if kind == "table" else {}),
    }


def _only(columns: list[str]) -> dict[str, Any]:
    """Show these columns and no other."""
    return {"id": "filterFieldsByName", "options": {"include": {"names": columns}}}


def generated() -> str:
    """What `TARGET` should hold."""
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return json.dumps(dashboard(source), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
