"""Rules and alerts: valid, tested where they fire and where they must not, each with its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "configs" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in ALERTS]
ELSEWHERE = {"AnomalyVAEWindowsDown", "AnomalyVAECasesLost"}
"""Alerts about stores that the stack lacks; `tests/serving/scoring/test_windows.py` and
`tests/serving/review` take these away, and count what the alerts look at."""
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: apt-get install prometheus)"
)


def run(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@promtool
def test_the_configuration_is_valid() -> None:
    run("check", "config", "--syntax-only", "prometheus.yml")


@promtool
@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_the_rules_are_valid(file: str) -> None:
    run("check", "rules", "--lint=all", "--lint-fatal", file)


@promtool
@pytest.mark.parametrize("file", ["alerts.yml", "ages.yml"])
def test_the_alerts_fire_where_they_must_and_only_there(file: str) -> None:
    run("test", "rules", f"tests/{file}")


@pytest.mark.parametrize("file", ["alerts.yml", "ages.yml"])
def test_what_alerts_are_worked_out_from_comes_before_them(file: str) -> None:
    order = yaml.safe_load((FOLDER / "tests" / file).read_text(encoding="utf-8"))[
        "group_eval_order"
    ]
    names = [
        group["name"]
        for rules in ("recording.yml", "alerts.yml")
        for group in yaml.safe_load((FOLDER / rules).read_text(encoding="utf-8"))["groups"]
    ]
    assert order == names


def test_each_alert_is_tested_both_ways() -> None:
    cases: dict[str, set[bool]] = {name: set() for name in NAMES}
    for file in (FOLDER / "tests").glob("*.yml"):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for case in test["alert_rule_test"]:
                cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert {name: seen for name, seen in cases.items() if seen != {True, False}} == {}


@pytest.mark.parametrize("name", sorted({*NAMES} - ELSEWHERE))
def test_each_alert_is_caused_on_live_processes(name: str) -> None:
    text = (ROOT / "tests/operations/test_stack.py").read_text(encoding="utf-8")
    assert f'"{name}" in firing' in text or f'"{name.removeprefix("AnomalyVAE")}"' in text


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n" in RUNBOOK


def test_the_runbook_has_no_page_without_an_alert() -> None:
    pages = re.findall(r"^## (AnomalyVAE\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(pages) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    page = RUNBOOK.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\*\*(\w+)[^*]*\*\*", page, re.MULTILINE) == ["Means", "Look", "Do"]
