"""Check the licences of all installed packages, and list those of shipped packages.

`python -m tools.licences` writes docs/licences.md.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from license_expression import (
    AND,
    OR,
    ExpressionError,
    LicenseWithExceptionSymbol,
    get_spdx_licensing,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "anomaly-vae"
DOCUMENT = ROOT / "docs/licences.md"
CORE = "core"
DEVELOPMENT_EXTRAS = {"bench", "dev", "ray", "supply"}
"""Extras for work on the project, or that `make setup` does not install; not listed."""
SPDX = get_spdx_licensing()
OSI = "License :: OSI Approved"
UNINFORMATIVE = {OSI, "License :: DFSG approved"}
"""Classifiers that name no licence."""
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",  # two clauses or three
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
HEADING = f"""# Licences

The licences of all packages that each extra installs, as stated by the packages; `make licences`
writes this file. The allowed licences are listed in `pyproject.toml`, under `[tool.licences]`, and
a test checks every installed package against that list. `{CORE}` is part of every installation.

| Package | Licence | Comes with |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Policy:
    """The licence policy in pyproject.toml.

    Args:
        allow: allowed SPDX identifiers.
        stated: licences of packages whose metadata names none, by package.
        excepted: reasons for packages that may have any licence, by pattern of their names.
    """

    allow: frozenset[str]
    stated: dict[str, str]
    excepted: dict[str, str]

    @classmethod
    def read(cls, path: Path = ROOT / "pyproject.toml") -> Policy:
        """Read the policy of a project."""
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["licences"]
        return cls(frozenset(table["allow"]), table["stated"], table["excepted"])

    def excepts(self, name: str) -> bool:
        """Return whether a package may have any licence."""
        return any(fnmatchcase(canonicalize_name(name), one) for one in self.excepted)

    def licence(self, package: Distribution) -> str | None:
        """Return the licence of a package, or None if it is unknown."""
        return self.stated.get(canonicalize_name(package.name)) or licence_of(package)

    def objection(self, package: Distribution) -> str | None:
        """Return why a package may not be used, or None if it may."""
        if self.excepts(package.name):
            return None
        if (licence := self.licence(package)) is None:
            return f"{package.name}: no licence in its metadata; read it, and add it to `stated`"
        if permits(self.allow, licence):
            return None
        return f"{package.name}: {licence} is not allowed; drop it, or give a reason in `excepted`"


def licence_of(package: Distribution) -> str | None:
    """Return the licence in a package's metadata; newer metadata fields come first."""
    fields = package.metadata.get_all
    for text in (*fields("License-Expression", ()), *fields("License", ())):
        if _is_valid(text):
            return str(text)
    classifiers = {one for one in fields("Classifier", ()) if one.startswith("License ::")}
    stated = [
        CLASSIFIERS.get(one.removeprefix(f"{OSI} :: "))
        for one in sorted(classifiers - UNINFORMATIVE)
    ]
    return None if None in stated else " AND ".join(map(str, stated)) or None


def _is_valid(text: str) -> bool:
    try:
        SPDX.parse(text, validate=True)
    except ExpressionError:
        return False
    return True


def permits(allowed: Iterable[str], licence: str) -> bool:
    """Return whether an SPDX expression can be satisfied: all of an AND, one of an OR.

    A `WITH` exception only grants additional permissions and is ignored.
    """
    return _permits(frozenset(allowed), SPDX.parse(licence))


def _permits(allowed: frozenset[str], part: Any) -> bool:
    if isinstance(part, AND):
        return all(_permits(allowed, one) for one in part.args)
    if isinstance(part, OR):
        return any(_permits(allowed, one) for one in part.args)
    if isinstance(part, LicenseWithExceptionSymbol):
        return part.license_symbol.key in allowed
    return part.key in allowed


def needed(extra: str) -> frozenset[str]:
    """Return the packages installed with an extra, or without any (`core`)."""
    found: set[tuple[str, str]] = set()
    pending = {(PROJECT, "" if extra == CORE else extra)}
    while pending:
        found.add(one := pending.pop())
        pending |= set(_requirements(*one)) - found
    return frozenset(canonicalize_name(name) for name, _ in found) - {PROJECT}


def _requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name, one) for one in ("", *requirement.extras))


def shipped() -> list[str]:
    """Return the extras of installations and images."""
    return sorted(
        {*distribution(PROJECT).metadata.get_all("Provides-Extra", ())} - DEVELOPMENT_EXTRAS
    )


def rows() -> list[str]:
    """Return a row of the table for each shipped package and for each exception."""
    policy = Policy.read()
    sets = {extra: needed(extra) for extra in (CORE, *shipped())}
    names = sorted(set().union(*sets.values()))
    listed = [_row(policy, distribution(name), sets) for name in names if not policy.excepts(name)]
    return [*listed, *(f"| {name} | excepted | {why} |" for name, why in policy.excepted.items())]


def _row(policy: Policy, package: Distribution, sets: dict[str, frozenset[str]]) -> str:
    name = canonicalize_name(package.name)
    extras = [extra for extra, names in sets.items() if name in names]
    installed_by = CORE if CORE in extras else ", ".join(extras)
    return f"| {name} | {policy.licence(package)} | {installed_by} |"


def objections() -> list[str]:
    """Return the objections to the licences of all installed packages."""
    policy = Policy.read()
    found = (policy.objection(package) for package in distributions() if package.name != PROJECT)
    return sorted(filter(None, found))


def main() -> int:
    """Write the document, and print the objections."""
    try:
        DOCUMENT.write_text(HEADING + "\n".join(rows()) + "\n", encoding="utf-8")
    except PackageNotFoundError as error:
        sys.stderr.write(f"{error.name} is not installed; run `make setup` first\n")
        return 1
    found = objections()
    sys.stderr.writelines(f"{text}\n" for text in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
