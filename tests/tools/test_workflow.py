"""The CI workflow is pinned, unprivileged and built from the targets of the Makefile."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.support.paths import ROOT

WORKFLOW = ROOT / ".github/workflows/ci.yml"
TEXT = WORKFLOW.read_text(encoding="utf-8")
JOBS = yaml.safe_load(TEXT)["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_it_is_a_workflow() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    subprocess.run([*check, "vendor.github-workflows", str(WORKFLOW)], check=True)


@pytest.mark.parametrize("used", re.findall(r"uses: (.*)", TEXT))
def test_actions_are_pinned_to_a_commit(used: str) -> None:
    assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used)


def test_it_may_read_and_no_more() -> None:
    assert yaml.safe_load(TEXT)["permissions"] == {"contents": "read"}
    assert not [name for name, job in JOBS.items() if "permissions" in job]
    assert "secrets." not in TEXT
    assert TEXT.count("actions/checkout@") == TEXT.count("persist-credentials: false")


def test_it_tests_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: 3."
    promised = [one for one in project["classifiers"] if one.startswith(prefix)]
    tested = JOBS["test"]["strategy"]["matrix"]["python"]
    assert [one.rpartition(" ")[2] for one in promised] == tested


def test_it_calls_targets_that_exist() -> None:
    called = set(re.findall(r"run: make ([\w-]+)", TEXT))
    assert {"check", "test", "wheel-test", "sbom", "audit"} == called
    assert called <= set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())


def test_it_builds_every_image_that_has_a_bill() -> None:
    bills = re.findall(r"^BILL_(\w+) :=", MAKEFILE, re.MULTILINE)
    assert JOBS["image"]["strategy"]["matrix"]["target"] == bills
