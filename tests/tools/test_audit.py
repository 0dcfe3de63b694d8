"""An audit that could not run reports a failure, never a clean result."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tools.audit import CLEAN, FOUND, UNKNOWN, audit, verdict

SOUND = {"name": "sound", "version": "1.0", "vulns": []}
FLAWED = {
    "name": "flawed",
    "version": "1.0",
    "vulns": [
        {"id": "CVE-2026-1", "fix_versions": ["1.1", "2.0"]},
        {"id": "X", "fix_versions": []},
    ],
}
SKIPPED = {"name": "skipped", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ([SOUND], CLEAN, ["1 packages audited, 0 known vulnerabilities"]),
        (
            [SOUND, SKIPPED],
            UNKNOWN,
            [
                "1 packages audited, 0 known vulnerabilities",
                "not audited, unknown to the index: skipped",
            ],
        ),
        (
            [SKIPPED, FLAWED],
            FOUND,
            [
                "flawed 1.0: CVE-2026-1, fixed in 1.1, 2.0",
                "flawed 1.0: X, fixed in no version yet",
                "1 packages audited, 2 known vulnerabilities",
                "not audited, unknown to the index: skipped",
            ],
        ),
        ([SKIPPED], UNKNOWN, ["nothing was audited: the index knows none of these packages"]),
        ([], UNKNOWN, ["nothing was audited: the index knows none of these packages"]),
    ],
)
def test_what_a_report_means(report: list[dict[str, Any]], code: int, said: list[str]) -> None:
    assert verdict(report) == (code, said)


@pytest.mark.skipif(find_spec("pip_audit") is None, reason="`make audit` installs pip-audit")
def test_an_index_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    code, lines = audit()
    assert code == UNKNOWN
    assert len(lines) == 1
    assert lines[0].startswith("nothing was audited: the index cannot be reached (")
