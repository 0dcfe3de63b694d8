"""Run the pipeline from training to promotion once, for tests that only read its results."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from anomaly_vae.config import Config
from anomaly_vae.evaluation import bootstrap
from anomaly_vae.lifecycle.registry import Registry
from pipelines import cli
from pipelines.datasets.dataset import Dataset
from pipelines.promotion.promote import promote
from pipelines.training.calibrate import calibrate
from pipelines.training.train import train
from tests.support.flows import Answer, Command, World
from tests.support.registries import changed, migrated, place, registry, use_registry
from tests.support.windowed import store_url, windowed_folder  # noqa: F401  # fixtures

__all__ = ["migrated", "place", "registry"]


@pytest.fixture(scope="session")
def flow(config: Config) -> Config:
    """Return a configuration of three epochs on 1,500 transactions, at alpha 0.05."""
    return changed(config, calibration__alpha=0.05)


@pytest.fixture(scope="session")
def world(
    migrated: Path, flow: Config, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> World:
    """Train, calibrate and promote a model in a temporary folder."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(bootstrap, "DRAWS", bootstrap.MIN_DRAWS)  # as in the tests
        use_registry(migrated, folder, patch)
        trained = train(flow, dataset)
        calibrated = calibrate(flow, trained.model_uri, dataset)
        promotion = promote(Registry(), flow.name)
    return World(folder, flow, trained, calibrated, promotion)


@pytest.fixture
def champion(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Change to the folder of `world`; tests must not modify it."""
    monkeypatch.chdir(world.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world.folder / 'mlflow.db'}")
    return world


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures blank, since drawing them takes most of the time of a calibration.

    Those of `world`, which is made before, are drawn.
    """
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: None)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute intervals from fewer draws, which take a good part of an evaluation."""
    monkeypatch.setattr(bootstrap, "DRAWS", bootstrap.MIN_DRAWS)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs the command line in this process without exiting it."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["anomaly-vae", *map(str, arguments)])
        capfd.readouterr()
        code = cli._exit_code()
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run
