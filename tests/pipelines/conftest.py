"""The whole path taken once, in a folder of its own, for tests that only look at the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vae.config import Config
from anomaly_vae.lifecycle.registry import Registry
from pipelines import cli
from pipelines.datasets.dataset import Dataset
from pipelines.promotion.promote import promote
from pipelines.training.calibrate import calibrate
from pipelines.training.train import train
from tests.support.flows import Answer, Command, World
from tests.support.registries import changed, migrated, place, registry, use_registry

__all__ = ["migrated", "place", "registry"]


@pytest.fixture(scope="session")
def flow(config: Config) -> Config:
    """Three epochs over 1,500 transactions, at alpha 0.05."""
    return changed(config, calibration__alpha=0.05)


@pytest.fixture(scope="session")
def world(
    migrated: Path, flow: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> World:
    """Train, calibrate and promote, once."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_registry(migrated, folder, patch)
        trained = train(flow, dataset)
        calibrated = calibrate(flow, trained.model_uri, dataset)
        promotion = promote(Registry(), flow.name)
    return World(folder, flow, trained, calibrated, promotion)


@pytest.fixture
def champion(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Be in that folder, to look and not to touch."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world.folder / 'mlflow.db'}")
    return world


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, as ``main`` does but for the exit."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["anomaly-vae", *map(str, arguments)])
        capfd.readouterr()
        code = cli._exit_code()
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run
