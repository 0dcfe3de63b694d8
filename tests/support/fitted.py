"""Provide a small table and a few images with configurations and bundles, once per process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config, ImageConfig, validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.export import onnx_traced
from anomaly_vae.monitoring.exchangeability import fit_reference
from anomaly_vae.scoring import scorer
from anomaly_vae.simulation.transactions import simulate_transactions
from anomaly_vae.training.fit import Fitted, Prepared, fit_bundle, prepare
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.images.dataset import ImageDataset, load_images
from pipelines.datasets.loading import load_dataset
from tests.support.graphs import SharedGraphs, with_operators_kept
from tests.support.paths import shared_folder
from tests.support.scans import N_ANOMALIES, N_SCANS, SIZE, scans, write_scans


@pytest.fixture(scope="session", autouse=True)
def shared_graphs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trace the graph of an image model once, whichever worker comes to it first.

    Torch logs each step of it at level debug, which pytest would keep.
    """
    logging.getLogger("torch.__trace").disabled = True
    onnx_traced._trace = with_operators_kept(onnx_traced._trace)
    onnx_traced._graphs = SharedGraphs(shared_folder(tmp_path_factory) / "graphs")


@pytest.fixture(scope="session", autouse=True)
def shared_sessions() -> None:
    """Open one session for all scorers with the same graph and weights, which take long to open."""
    scorer.open_session = lru_cache(maxsize=64)(scorer.open_session)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Write results without waiting for the disk: processes are killed, but the machine is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def transactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 1,500 simulated card transactions to a Parquet file."""
    path = tmp_path_factory.mktemp("data") / "transactions.parquet"
    pq.write_table(simulate_transactions(1_500, seed=0), path)
    return path


@pytest.fixture(scope="session")
def config(transactions: Path) -> Config:
    """Return a configuration of three epochs on `transactions`."""
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
    """Return `transactions`, loaded and split."""
    return load_dataset(config.data)


@pytest.fixture(scope="session")
def prepared(config: Config, dataset: Dataset) -> Prepared:
    """Return the encoded training and validation rows of `dataset`."""
    return prepare(config, dataset.schema, dataset.part(TRAIN), dataset.part(VALIDATION))


@pytest.fixture(scope="session")
def fitted(config: Config, dataset: Dataset, prepared: Prepared) -> Fitted:
    """Return a model fitted to `prepared`."""
    return fit_bundle(config, prepared, dataset.summary())


@pytest.fixture(scope="session")
def bundle(fitted: Fitted) -> Bundle:
    """Return the bundle of `fitted`, without a threshold."""
    return fitted.bundle


@pytest.fixture(scope="session")
def calibrated(bundle: Bundle, dataset: Dataset) -> Bundle:
    """Return `bundle` with a threshold for alpha 0.05."""
    rows = dataset.part(CALIBRATION)
    scored = bundle.scorer.scored(rows)
    reference = fit_reference(bundle.scorer.encoding, scored.x)
    return bundle.calibrated(calibrate(scored.scores, alpha=0.05), None, reference)


# ---------------------------------------------------------------- images


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 140 PNGs and their manifest; the last 20 images are anomalies."""
    labels = [0] * (N_SCANS - N_ANOMALIES) + [1] * N_ANOMALIES
    return write_scans(tmp_path_factory.mktemp("scans"), scans(), labels)


@pytest.fixture(scope="session")
def image_config(manifest: Path) -> ImageConfig:
    """Return a configuration of four epochs of a tiny convolutional network on `manifest`."""
    config = validate_config(
        {
            "kind": "image",
            "name": "scans",
            "data": {"path": str(manifest), "size": SIZE, "label": "label", "group": "group"},
            "model": {
                "network": "convolutional",
                "latent_dim": 4,
                "width": 4,
                "hidden_dim": 16,
            },
            "training": {"epochs": 4},
            "calibration": {"alpha": 0.1},
        }
    )
    assert isinstance(config, ImageConfig)
    return config


@pytest.fixture(scope="session")
def image_dataset(image_config: ImageConfig) -> ImageDataset:
    """Return the images of `manifest`, loaded and split."""
    return load_images(image_config.data)


@pytest.fixture(scope="session")
def image_prepared(image_config: ImageConfig, image_dataset: ImageDataset) -> Prepared:
    """Return the encoded training and validation images of `image_dataset`."""
    train, validation = (image_dataset.part(split) for split in (TRAIN, VALIDATION))
    return prepare(image_config, image_dataset.schema, train, validation)


@pytest.fixture(scope="session")
def image_fitted(
    image_config: ImageConfig, image_dataset: ImageDataset, image_prepared: Prepared
) -> Fitted:
    """Return a model fitted to `image_prepared`."""
    return fit_bundle(image_config, image_prepared, image_dataset.summary())


@pytest.fixture(scope="session")
def image_bundle(image_fitted: Fitted) -> Bundle:
    """Return the bundle of `image_fitted`, without a threshold."""
    return image_fitted.bundle


@pytest.fixture(scope="session")
def image_calibrated(image_bundle: Bundle, image_dataset: ImageDataset) -> Bundle:
    """Return `image_bundle` with a threshold for alpha 0.1."""
    rows = image_dataset.batch.take(image_dataset.calibration_rows)
    return image_bundle.calibrated(calibrate(image_bundle.scorer.score(rows), alpha=0.1), None)
