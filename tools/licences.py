"""The licences of what is installed: which are stated, which are allowed, who needs them.

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
KEPT_HOME = {"bench", "dev", "ray", "supply"}
"""Extras for those who work on the project, or that `make setup` does not install."""
SPDX = get_spdx_licensing()
OSI = "License :: OSI Approved"
SILENT = {OSI, "License :: DFSG approved"}
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",  # which one, it does not say
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
HEADING = f"""# Licences

The packages that each extra installs, with the licences that they state themselves. `make licences`
writes this file. `pyproject.toml` lists the allowed licences under `[tool.licences]`, and a test
checks every installed package. `{CORE}` is part of every install.

| Package | Licence | Comes with |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Policy:
    """What pyproject.toml says.

    Args:
        allow: identifiers of SPDX.
        stated: the licences of packages whose metadata is silent.
        excepted: patterns of names that may be used all the same, and why.
    """

    allow: frozenset[str]
    stated: dict[str, str]
    excepted: dict[str, str]

    @classmethod
    def read(cls, path: Path = ROOT / "pyproject.toml") -> Policy:
        """The policy of a project."""
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["licences"]
        return cls(frozenset(table["allow"]), table["stated"], table["excepted"])

    def excepts(self, name: str) -> bool:
        """Whether a package may be used whatever its licence."""
        return any(fnmatchcase(canonicalize_name(name), one) for one in self.excepted)

    def licence(self, package: Distribution) -> str | None:
        """What a package is licensed under, or None where nothing says so."""
        return self.stated.get(canonicalize_name(package.name)) or licence_of(package)

    def objection(self, package: Distribution) -> str | None:
        """Why a package may not be used, or None where it may."""
        if self.excepts(package.name):
            return None
        if (licence := self.licence(package)) is None:
            return f"{package.name}: no licence in its metadata; read it, and add it to `stated`"
        if permits(self.allow, licence):
            return None
        return f"{package.name}: {licence} is not allowed; drop it, or give a reason in `excepted`"


def licence_of(package: Distribution) -> str | None:
    """The SPDX expression that a package's metadata states, the newest way to state it first."""
    fields = package.metadata.get_all
    for text in (*fields("License-Expression", ()), *fields("License", ())):
        if _known(text):
            return str(text)
    marks = {one for one in fields("Classifier", ()) if one.startswith("License ::")}
    stated = [CLASSIFIERS.get(one.removeprefix(f"{OSI} :: ")) for one in sorted(marks - SILENT)]
    return None if None in stated else " AND ".join(map(str, stated)) or None


def _known(text: str) -> bool:
    try:
        SPDX.parse(text, validate=True)
    except ExpressionError:
        return False
    return True


def permits(allowed: Iterable[str], licence: str) -> bool:
    """Whether an expression can be kept: all of an AND, one of an OR; exceptions only add."""
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
    """The packages that this project brings with an extra, or without one (`core`)."""
    found: set[tuple[str, str]] = set()
    waiting = {(PROJECT, "" if extra == CORE else extra)}
    while waiting:
        found.add(one := waiting.pop())
        waiting |= set(_requirements(*one)) - found
    return frozenset(canonicalize_name(name) for name, _ in found) - {PROJECT}


def _requirements(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((requirement.name, one) for one in ("", *requirement.extras))


def shipped() -> list[str]:
    """The extras that an installation or an image may have."""
    return sorted({*distribution(PROJECT).metadata.get_all("Provides-Extra", ())} - KEPT_HOME)


def rows() -> list[str]:
    """A row of the table for each package that is shipped, and for each exception."""
    policy = Policy.read()
    sets = {extra: needed(extra) for extra in (CORE, *shipped())}
    names = sorted(set().union(*sets.values()))
    usual = [_row(policy, distribution(name), sets) for name in names if not policy.excepts(name)]
    return [*usual, *(f"| {name} | excepted | {why} |" for name, why in policy.excepted.items())]


def _row(policy: Policy, package: Distribution, sets: dict[str, frozenset[str]]) -> str:
    name = canonicalize_name(package.name)
    extras = [extra for extra, names in sets.items() if name in names]
    comes = CORE if CORE in extras else ", ".join(extras)
    return f"| {name} | {policy.licence(package)} | {comes} |"


def objections() -> list[str]:
    """What is wrong with the licences of all that is installed."""
    policy = Policy.read()
    found = (policy.objection(package) for package in distributions() if package.name != PROJECT)
    return sorted(filter(None, found))


def main() -> int:
    """Write the document, or say what stands against it."""
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
