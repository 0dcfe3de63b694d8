"""Provide served models, matching records, and clients of the scoring application."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.datasets.loading import load_dataset
from serving.models.store import ServedModel
from serving.scoring.loading import load_model
from tests.support.scoring_service import *  # noqa: F403  # its fixtures
from tests.support.scoring_service import MakeClient
from tests.support.windowed import store_url, windowed, windowed_folder  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def plain(config: Config, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """Return a model whose columns are all numeric or binary."""
    data = config.data.model_copy(update={"features": ("TX_AMOUNT", "TX_DURING_NIGHT")})
    few = config.model_copy(update={"data": data, "name": "plain"})
    rows = load_dataset(data)
    fitted = fit_bundle(
        few, prepare(few, rows.schema, rows.part(TRAIN), rows.part(VALIDATION)), rows.summary()
    )
    scores = fitted.bundle.scorer.score(rows.part(CALIBRATION))
    bundle = fitted.bundle.calibrated(calibrate(scores, alpha=0.05), None)
    return load_model(BundleRef(str(bundle.save(tmp_path_factory.mktemp("served") / "plain"))))


@pytest.fixture
def keen(client_of: MakeClient, keen_scanner: ServedModel) -> TestClient:
    """Return a client of `keen_scanner`."""
    return client_of(keen_scanner)


@pytest.fixture
def scan_client(client_of: MakeClient, scanner: ServedModel) -> TestClient:
    """Return a client of `scanner`."""
    return client_of(scanner)


@pytest.fixture
def both(client_of: MakeClient, served: ServedModel, scanner: ServedModel) -> TestClient:
    """Return a client of `served` and `scanner`."""
    return client_of(served, scanner)
