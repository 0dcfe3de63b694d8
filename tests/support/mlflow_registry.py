"""Provide a registry with two versions of one model, for services that follow its aliases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from anomaly_vae.training.fit import Prepared, fit_bundle
from pipelines.datasets.dataset import Dataset
from serving.models.store import ServedModel
from serving.scoring.loading import load_model
from tests.support.registries import DATABASE, changed, copy_registry, use_registry

URI = "models:/fraud@champion"
SHADOW = "models:/fraud@challenger"


@pytest.fixture(scope="session")
def rival(config: Config, prepared: Prepared, dataset: Dataset) -> Bundle:
    """Return another model of the same rows, which flags more rows."""
    bundle = fit_bundle(changed(config, training__epochs=1), prepared, dataset.summary()).bundle
    scores = bundle.scorer.score(dataset.part(CALIBRATION))
    return bundle.calibrated(calibrate(scores, alpha=0.1), None)


@pytest.fixture(scope="module")
def registered(
    migrated: Path, calibrated: Bundle, rival: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder whose registry has version 1, the champion, and version 2."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        use_registry(migrated, folder, patch)
        registry = Registry()
        for bundle in (calibrated, rival):
            with registry.run("fraud", "calibrate", {}) as run:
                registry.register(run, bundle, "fraud", {})
        registry.set_champion("fraud", "1")
    return folder


@pytest.fixture
def world(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a separate registry and model cache for this test."""
    monkeypatch.setenv("ANOMALY_VAE_CACHE_DIR", str(tmp_path / "cache"))
    copy_registry(registered, tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def versions(
    calibrated: Bundle, rival: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ServedModel]:
    """Return both versions, loaded as in the service."""
    place = tmp_path_factory.mktemp("versions")
    folders = {"1": calibrated.save(place / "1"), "2": rival.save(place / "2")}
    return {number: load_model(BundleRef(str(folder))) for number, folder in folders.items()}


def move(version: str, alias: str = CHAMPION) -> None:
    """Point an alias to another version."""
    Registry()._client.set_registered_model_alias("fraud", alias, version)


@contextmanager
def mlflow_server(folder: Path, **environment: str) -> Iterator[str]:
    """Run an MLflow server over the registry in a folder and yield its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", "0"]
    command += ["--backend-store-uri", f"sqlite:///{folder / DATABASE}"]
    log = folder / "server.log"
    # MLflow's runner of jobs, which a registry does not need, takes many seconds to end.
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=variables)
        try:
            deadline = time.monotonic() + 90
            while not (found := re.search(r"running on (http://\S+)", log.read_text())):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            urlopen(f"{found[1]}/health", timeout=30).close()
            yield found[1]
        finally:
            server.terminate()
            server.wait(100)


def artifact(folder: Path, digest: str) -> Path:
    """Return the folder of the bundle with this digest among the artifacts of a registry."""
    from anomaly_vae.artifacts.bundle import load_bundle

    (found,) = (
        sums.parent
        for sums in (folder / "mlartifacts").rglob("data/bundle/SHA256SUMS")
        if load_bundle(sums.parent).digest == digest
    )
    return found


def metric(text: str, name: str, **labels: Any) -> float:
    """Return the sum of the matching samples in a metrics text; 0 if none match."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {key: str(value) for key, value in labels.items()}
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"anomaly_vae_{name}" and wanted.items() <= sample.labels.items()
    )


def logged(lines: list[str], event: str) -> list[dict[str, Any]]:
    """Return the parsed log lines of an event."""
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if line["event"] == event]
