"""The dashboard is made of its source, and everything that is watched is something there is."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import ServedModel, Store
from serving.registry.board import Board, FollowedModel, FollowState
from serving.settings import Settings
from tests.support.paths import ROOT
from tests.support.served import Records, folder, records, served
from tools.dashboard import SOURCE, TARGET, generated

__all__ = ["folder", "records", "served"]

RULES = [ROOT / f"configs/prometheus/{name}.yml" for name in ("recording", "alerts")]
PROVISIONING = ROOT / "configs/grafana/provisioning"
DASHBOARD: dict[str, Any] = json.loads(TARGET.read_text(encoding="utf-8"))
METRIC = re.compile(r"(?<![\w:])anomaly_vae_\w+(?![\w:])")
RECORDED = re.compile(r"\b\w+:anomaly_vae_\w+:\w+")


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def queries() -> dict[str, str]:
    """Every expression that is asked, by who asks it."""
    asked = {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules()}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            asked[f"{panel['title']} {target['refId']}"] = target["expr"]
    (variable,) = DASHBOARD["templating"]["list"]
    return {**asked, "variable": variable["definition"]}


def test_the_dashboard_is_made_of_its_source() -> None:
    assert TARGET.read_text(encoding="utf-8") == generated(), "run: python -m tools.dashboard"


def test_it_has_four_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [row["title"] for row in yaml.safe_load(SOURCE.read_text())["rows"]]
    assert len(rows) == 4


def test_no_two_panels_overlap_and_none_is_beyond_the_edge() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(x + i, y + j) for i in range(w) for j in range(h)}
        assert not cells & taken
        assert x + w <= 24
        taken |= cells


def test_every_panel_asks_the_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    used = {p["datasource"]["uid"] for p in DASHBOARD["panels"] if p["type"] != "row"}
    assert used == {source["uid"]}


def test_every_panel_that_the_runbook_names_is_there() -> None:
    titles = [panel["title"].lower() for panel in DASHBOARD["panels"]]
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*(\w[^*]*)\*(?!\*)", text)}
    missing = {name for name in named if not any(name.lower() in title for title in titles)}
    assert missing == {"page", "ticket"}, "which say how bad an alert is"


@pytest.fixture
def exported(served: ServedModel, records: Records) -> set[str]:
    """The names of the samples that the service hands out after a request."""
    served = dataclasses.replace(served, registered_at=1.0)
    store = Store([served], [dataclasses.replace(served, digest="another")])
    board = Board(FollowState((FollowedModel("models:/fraud@champion", "fraud"),)))
    client = TestClient(create_app(store, Settings(), board=board))
    assert client.post("/score", json={"records": records[:5]}).status_code == 200
    assert client.post("/score", json={}).status_code == 422
    text = client.get("/metrics").text
    client.app.state.shadows.close()  # type: ignore[attr-defined]
    declared = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + end for name, kind in declared for end in parts.get(kind, ("",))}


def test_everything_asked_for_is_exported(exported: set[str]) -> None:
    asked = {
        who: set(METRIC.findall(expression)) - exported for who, expression in queries().items()
    }
    assert {who: names for who, names in asked.items() if names} == {}
    assert any(METRIC.search(expression) for expression in queries().values())


def test_everything_recorded_that_is_asked_for_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for expression in queries().values() for name in RECORDED.findall(expression)}
    assert asked == recorded


def test_labels_that_rules_and_panels_select_by_are_exported() -> None:
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(anomaly_vae_\w+)` \| \w+ \| (.*?) ?\|", text, re.MULTILINE)
    labels = {name: set(filter(None, given.split(", "))) for name, given in rows}
    for who, expression in queries().items():
        for name, selected in re.findall(r"(?<![\w:])(anomaly_vae_\w+)\{([^}]*)\}", expression):
            base = re.sub(r"_(total|bucket|info)$", "", name)
            if base in labels:
                assert set(re.findall(r"(\w+)[=!]~?\"", selected)) <= labels[base], who
