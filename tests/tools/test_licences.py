"""Every installed package has a licence that pyproject.toml allows, and the document lists them."""

from __future__ import annotations

from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from tools import licences
from tools.licences import CORE, DOCUMENT, PROJECT, Policy, licence_of, needed, permits, rows

POLICY = Policy(frozenset({"MIT", "BSD", "Apache-2.0"}), {"silent": "MIT"}, {"copyleft": "why"})


def package(folder: Path, name: str, *lines: str) -> Distribution:
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1", *lines])
    (info / "METADATA").write_text(text + "\n", encoding="utf-8")
    return Distribution.at(info)


INSTALLED = [one for one in distributions() if one.name != PROJECT]


def test_every_installed_package_has_an_allowed_licence() -> None:
    assert len(INSTALLED) > 100
    assert licences.objections() == []


def test_nothing_is_copyleft_but_by_name() -> None:
    """The allow list has none of these families, so that none is added by accident."""
    families = ("GPL", "AGPL", "LGPL", "BUSL", "SSPL", "CC-BY-NC", "Elastic")
    assert not [one for one in Policy.read().allow if one.startswith(families)]


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (("License-Expression: MIT OR GPL-3.0-only",), "MIT OR GPL-3.0-only"),
        (("License: Apache-2.0",), "Apache-2.0"),
        (("License-Expression: MIT", "License: GPL-3.0-only"), "MIT"),
        (
            ("License: see the file", "Classifier: License :: OSI Approved :: BSD License"),
            "BSD",
        ),
        (
            (
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: OSI Approved :: Apache Software License",
            ),
            "Apache-2.0 AND MIT",
        ),
        (
            (
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: Other/Proprietary License",
            ),
            None,
        ),
        (("Classifier: License :: OSI Approved",), None),
        (("License: all rights reserved",), None),
        ((), None),
    ],
)
def test_what_metadata_states(tmp_path: Path, lines: tuple[str, ...], licence: str | None) -> None:
    assert licence_of(package(tmp_path, "one", *lines)) == licence


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-or-later", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR LGPL-2.1-only) AND Apache-2.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only WITH GCC-exception-3.1", False),
        ("BUSL-1.1", False),
        ("LicenseRef-own", False),
    ],
)
def test_what_an_expression_permits(licence: str, allowed: bool) -> None:
    assert permits(POLICY.allow, licence) is allowed


def test_an_objection_names_the_package_and_the_remedy(tmp_path: Path) -> None:
    unknown = POLICY.objection(package(tmp_path, "unknown"))
    assert unknown == "unknown: no licence in its metadata; read it, and add it to `stated`"
    refused = POLICY.objection(package(tmp_path, "strict", "License-Expression: AGPL-3.0-only"))
    assert str(refused).startswith("strict: AGPL-3.0-only is not allowed; ")
    assert POLICY.objection(package(tmp_path, "silent")) is None
    assert POLICY.objection(package(tmp_path, "copyleft", "License: GPL-3.0-only")) is None


def test_the_document_has_every_package_that_is_shipped() -> None:
    missing = set(rows()) - set(DOCUMENT.read_text(encoding="utf-8").splitlines())
    assert not missing, "run `make licences`"


def test_the_serving_set_is_lean() -> None:
    serving = needed("serve")
    assert {"fastapi", "uvicorn", "uvloop", "numpy"} <= serving
    assert needed(CORE) <= serving
    assert not serving & {"torch", "mlflow", "pandas", "scikit-learn", "scipy", "matplotlib"}
