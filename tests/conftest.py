"""A small table, its configuration, and a bundle fitted on it, once per process."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from anomaly_vae.bundle import Bundle
from anomaly_vae.calibration import calibrate
from anomaly_vae.config import Config, validate_config
from anomaly_vae.fitting import Fitted, Prepared, fit_bundle, prepare
from anomaly_vae.simulate import simulate_transactions
from anomaly_vae.splits import CALIBRATION, TRAIN, VALIDATION
from pipelines.data import Dataset, load_dataset

settings.register_profile("shared", deadline=None, max_examples=60)  # no promise of speed
settings.load_profile("shared")


@pytest.fixture(scope="session")
def transactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 simulated card transactions as a Parquet file."""
    path = tmp_path_factory.mktemp("data") / "transactions.parquet"
    pq.write_table(simulate_transactions(1_500, seed=0), path)
    return path


@pytest.fixture(scope="session")
def config(transactions: Path) -> Config:
    """Three epochs over `transactions`."""
    return validate_config(
        {
            "name": "fraud",
            "data": {
                "path": str(transactions),
                "label": "TX_FRAUD",
                "id": "TRANSACTION_ID",
                "time": "TX_DATETIME",
                "ignore": ["CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD_SCENARIO"],
            },
            "training": {"epochs": 3},
        }
    )


@pytest.fixture(scope="session")
def dataset(config: Config) -> Dataset:
    """`transactions`, read and split."""
    return load_dataset(config.data)


@pytest.fixture(scope="session")
def prepared(config: Config, dataset: Dataset) -> Prepared:
    """Its training and validation rows, encoded."""
    return prepare(config, dataset.schema, dataset.part(TRAIN), dataset.part(VALIDATION))


@pytest.fixture(scope="session")
def fitted(config: Config, dataset: Dataset, prepared: Prepared) -> Fitted:
    """A model fitted on it."""
    return fit_bundle(config, prepared, dataset.summary())


@pytest.fixture(scope="session")
def bundle(fitted: Fitted) -> Bundle:
    """The model's bundle, which has no threshold."""
    return fitted.bundle


@pytest.fixture(scope="session")
def calibrated(bundle: Bundle, dataset: Dataset) -> Bundle:
    """The same with a threshold for alpha 0.05."""
    scores = bundle.scorer.score(dataset.part(CALIBRATION))
    return bundle.calibrated(calibrate(scores, alpha=0.05), None)
