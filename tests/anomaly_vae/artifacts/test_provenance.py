"""The code version changes with any source of the package, and with nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anomaly_vae import __version__
from anomaly_vae.artifacts import provenance
from anomaly_vae.artifacts.provenance import code_version


def test_the_release_and_a_digest_are_named() -> None:
    assert re.fullmatch(rf"{re.escape(__version__)}\+[0-9a-f]{{12}}", code_version())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a small package, which stands in for this one."""
    folder = tmp_path / "package"
    (folder / "artifacts").mkdir(parents=True)
    for name in ("__init__.py", "artifacts/provenance.py", "artifacts/bundle.py"):
        (folder / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(folder / "artifacts/provenance.py"))
    return folder


def test_every_source_and_its_name_count(package: Path) -> None:
    found = {code_version.__wrapped__()}
    (package / "artifacts/bundle.py").write_text("x = 2\n")
    found.add(code_version.__wrapped__())
    (package / "artifacts/bundle.py").rename(package / "artifacts/bundles.py")
    found.add(code_version.__wrapped__())
    (package / "new.py").touch()
    found.add(code_version.__wrapped__())
    assert len(found) == 4


def test_other_files_and_the_place_of_the_package_do_not_count(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_version.__wrapped__()
    (package / "notes.txt").write_text("changed")
    moved = package.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(provenance, "__file__", str(moved / "artifacts/provenance.py"))
    assert code_version.__wrapped__() == before
