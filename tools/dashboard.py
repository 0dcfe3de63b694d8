"""Convert configs/grafana/dashboard.yaml into Grafana's JSON: ``python -m tools.dashboard``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "grafana"
SOURCE = FOLDER / "dashboard.yaml"
TARGET = FOLDER / "dashboards" / "anomaly-vae.json"
DATA_SOURCE = {"type": "prometheus", "uid": "prometheus"}
SCHEMA_VERSION = 41
"""Version of Grafana's dashboard schema."""
COLUMNS, HEIGHT = 24, 8
"""Width of the dashboard and height of a panel, in units of Grafana's grid."""
COLOURS = ("green", "blue", "yellow", "red")
TYPES = {"table": "table", "stat": "stat", "state": "state-timeline"}


def dashboard(source: Mapping[str, Any]) -> dict[str, Any]:
    """Build the dashboard."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,  # show the crosshair in every panel
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
        "datasource": DATA_SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "models"},
        "refresh": 2,  # when the time range changes
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lay out the rows below each other, and the panels of a row side by side in equal width."""
    top = 0
    for row in rows:
        position = _position(0, top, COLUMNS, 1)
        yield {
            "type": "row",
            "title": row["title"],
            "gridPos": position,
            "collapsed": False,
            "panels": [],
        }
        width = COLUMNS // len(row["panels"])
        for number, panel in enumerate(row["panels"]):
            yield _panel(panel, _position(number * width, top + 1, width, HEIGHT))
        top += 1 + HEIGHT


def _position(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def _panel(panel: Mapping[str, Any], position: Mapping[str, int]) -> dict[str, Any]:
    kind = panel.get("kind", "lines")
    return {
        "type": TYPES.get(kind, "timeseries"),
        "title": panel["title"],
        "description": panel["about"],
        "gridPos": position,
        "datasource": DATA_SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "targets": [
            _target(chr(ord("A") + number), legend, expression, kind)
            for number, (legend, expression) in enumerate(panel["queries"].items())
        ],
        **({"transformations": [_select(panel["columns"])]} if kind == "table" else {}),
    }


def _defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Set the unit, the minimum of the axis and the names of states."""
    defaults: dict[str, Any] = {"unit": panel["unit"]} if "unit" in panel else {}
    if panel.get("kind", "lines") == "lines" and not panel.get("signed"):
        defaults["min"] = 0
    if states := panel.get("states"):
        named = {
            str(value): {"text": text, "color": COLOURS[value], "index": value}
            for value, text in enumerate(states)
        }
        defaults["mappings"] = [{"type": "value", "options": named}]
    return defaults


def _target(letter: str, legend: str, expression: str, kind: str) -> dict[str, Any]:
    is_instant = kind in {"table", "stat"}
    return {
        "refId": letter,
        "datasource": DATA_SOURCE,
        "expr": expression,
        "legendFormat": legend,
        "instant": is_instant,
        "range": not is_instant,
        **({"format": "table"} if kind == "table" else {}),
    }


def _select(columns: list[str]) -> dict[str, Any]:
    """Show these columns only."""
    return {"id": "filterFieldsByName", "options": {"include": {"names": columns}}}


def generated() -> str:
    """Return the content that `TARGET` should have."""
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return json.dumps(dashboard(source), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
