"""Audit the packages pinned in constraints.txt for known vulnerabilities: `python -m tools.audit`.

pip-audit asks the package index about each package. If the index does not answer, or knows none of
the packages, nothing was audited: that is reported as a failure, not passed over in silence.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLEAN, FOUND, UNKNOWN = 0, 1, 2
"""Exit codes."""
COMMAND = (sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json")
OPTIONS = ("--progress-spinner", "off", "--requirement", str(ROOT / "constraints.txt"))


def audit() -> tuple[int, list[str]]:
    """Run pip-audit; return the exit code and the lines of the report."""
    ran = subprocess.run([*COMMAND, *OPTIONS], capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(ran.stdout)["dependencies"])
    except ValueError:
        reason = (ran.stderr.strip() or "no output").splitlines()[-1]
        return UNKNOWN, [f"nothing was audited: the index cannot be reached ({reason[:200]})"]


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Judge the dependencies that pip-audit lists; return the exit code and the lines to print."""
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    if len(skipped) == len(dependencies):
        return UNKNOWN, ["nothing was audited: the index knows none of these packages"]
    found = [_line(one, flaw) for one in dependencies for flaw in one.get("vulns", ())]
    checked = len(dependencies) - len(skipped)
    lines = [*found, f"{checked} packages audited, {len(found)} known vulnerabilities"]
    if skipped:
        lines.append(f"not audited, unknown to the index: {', '.join(skipped)}")
    return (FOUND if found else UNKNOWN if skipped else CLEAN), lines


def _line(package: dict[str, Any], flaw: dict[str, Any]) -> str:
    fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
    return f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}"


def main() -> int:
    """Audit, and print the report."""
    code, lines = audit()
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return code


if __name__ == "__main__":
    sys.exit(main())
