"""What is built, and that it works where nothing else is installed and no checkout is near."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pyarrow
import pytest

from anomaly_vae import __version__
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.client import Client
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torch")
FOUND = """
import sys
from importlib.util import find_spec
print(*filter(find_spec, sys.argv[1:]))
"""
INFO = f"anomaly_vae-{__version__}.dist-info"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"anomaly_vae-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())


# ---------------------------------------------------------------- what is in it


def test_a_wheel_has_the_packages_the_licence_and_the_examples(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.partition("/")[0] for name in names} == {
        "anomaly_vae", "pipelines", "serving", INFO,
    }  # fmt: skip
    examples = {f"anomaly_vae/configs/{path.name}" for path in ROOT.glob("configs/*.yaml")}
    assert {name for name in names if "/configs/" in name} == examples
    assert {f"{package}/py.typed" for package in ("anomaly_vae", "pipelines", "serving")} <= names
    assert f"{INFO}/licenses/LICENSE" in names
    sources = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("anomaly_vae/**/*.py")}
    assert sources <= names
    others = [name for name in names if not name.endswith((".py", ".yaml", "py.typed"))]
    folders = (ROOT / "serving" / "console" / name for name in ("static", "templates"))
    pages = [p.relative_to(ROOT).as_posix() for folder in folders for p in folder.iterdir()]
    assert len(pages) > 15
    assert sorted(name for name in others if not name.startswith(INFO)) == sorted(
        ["pipelines/reports/model_card.html", *pages]
    )


def test_a_source_distribution_can_be_built_and_tested(built: Path) -> None:
    with tarfile.open(built / f"anomaly_vae-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "Makefile", "constraints.txt"} <= names
    assert {"configs/fraud.yaml", "anomaly_vae/models/vae.py", "tests/test_wheel.py"} <= names
    written = re.compile(r"\.db|\.parquet$|\.pyc$|__pycache__|^\.venv|^(mlruns|bundles|dist)/")
    assert not [name for name in names if written.search(name)]


def test_its_metadata_names_the_licence_and_every_extra(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])


# ---------------------------------------------------------------- what it does elsewhere


class Installed:
    """A virtual environment with the wheel, and a working folder far from the checkout."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.work = folder / "venv/bin", folder / "work"
        self.work.mkdir()
        venv.create(folder / "venv", with_pip=False)

    def install(self, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install"]
        subprocess.run(
            [*pip, "--quiet", "-c", str(ROOT / "constraints.txt"), *arguments], check=True
        )

    def command(self, name: str, *arguments: str) -> list[str]:
        return [str(self.bin / name), *arguments]

    def run(self, name: str, *arguments: str) -> str:
        ran = subprocess.run(
            self.command(name, *arguments), cwd=self.work, env=ENVIRONMENT, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


ENVIRONMENT = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def lean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with the extra `serve`, and what that brings."""
    installed = Installed(tmp_path_factory.mktemp("lean"))
    installed.install(f"{wheel}[serve]")
    return installed


@pytest.fixture
def service(lean: Installed, calibrated: Bundle, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    calibrated.save(tmp_path / "fraud")
    arguments = ("serve", "--model", str(tmp_path / "fraud"), "--port", "0")
    with subprocess.Popen(
        lean.command("anomaly-vae", *arguments), cwd=lean.work, env=ENVIRONMENT,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


@pytest.mark.slow
def test_the_extra_serve_brings_nothing_that_trains(lean: Installed) -> None:
    assert lean.run("python", "-c", FOUND, *HEAVY).split() == []
    assert lean.run("anomaly-vae", "--version").strip() == __version__
    assert "serve" in lean.run("anomaly-vae", "--help")


@pytest.mark.slow
def test_it_serves_a_bundle_with_that_alone(service: subprocess.Popen[str]) -> None:
    assert service.stderr
    address = re.search(r"on (http://\S+) \(", service.stderr.readline())
    assert address
    with Client(address[1], attempts=100) as client:  # it listens a moment later
        (result,) = client.score([{"TX_AMOUNT": 900.0}], explain=1)
    assert 0 < result.p_value <= 1
    service.send_signal(signal.SIGTERM)
    assert service.wait(timeout=60) == 0


@pytest.mark.slow
def test_it_says_what_is_missing_where_training_is_asked_for(lean: Installed) -> None:
    ran = subprocess.run(
        lean.command("anomaly-vae", "demo"), cwd=lean.work, env=ENVIRONMENT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "pip install 'anomaly-vae[train]'" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_the_demo_needs_no_checkout(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What it depends on is lent by this environment: torch alone would take minutes to install."""
    installed = Installed(tmp_path_factory.mktemp("whole"))
    installed.install("--no-deps", str(wheel))
    (site,) = (installed.bin.parent / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(str(Path(pyarrow.__file__).parents[1]), encoding="utf-8")
    place = installed.run("python", "-c", "import pipelines; print(pipelines.__file__)")
    assert Path(place.strip()).is_relative_to(site)
    answer = json.loads(installed.run("anomaly-vae", "demo", "--kind", "tabular"))
    assert answer["tabular"]["promoted"] is True
