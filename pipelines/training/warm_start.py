"""Start a fit at random weights, or at the weights of an earlier model that is compatible."""

from __future__ import annotations

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.errors import RegistryError
from anomaly_vae.training.fit import Prepared, prepare
from anomaly_vae.training.known_anomalies import learns_known
from anomaly_vae.training.warm_start import incompatibility
from pipelines import console
from pipelines.datasets.dataset import TRAINED_UNTIL, Dataset
from pipelines.registry.model_uri import open_model


def prepared_start(config: Config, data: Dataset) -> tuple[Prepared, Bundle | None]:
    """Return the encoded rows and the model to start from; None for a cold start."""
    start = _configured_start(config)
    parts = data.schema, data.part(TRAIN), data.part(VALIDATION)
    known = data.batch.take(data.known_rows) if learns_known(config) else None
    prepared = prepare(config, *parts, start, known)
    if start is None:
        return prepared, None
    planned = config.resolve(prepared.encoding.layout.n_columns, len(prepared.train))
    if reason := _overlap(start, data) or incompatibility(start, planned, prepared.encoding):
        console.info(f"A cold start, as {config.training.warm_start} does not fit: {reason}")
        return prepare(config, *parts, known=known), None
    console.info(f"A warm start from {config.training.warm_start} ({start.digest[:12]})")
    return prepared, start


def start_model(config: Config) -> Bundle:
    """Open the model that ``training.warm_start`` names."""
    return open_model(str(config.training.warm_start), config.mlflow.tracking_uri).bundle


def trained_until(data: Dataset, start: Bundle | None) -> dict[str, float]:
    """Return the manifest entry `TRAINED_UNTIL`, in seconds since 1970; empty without times."""
    own = _latest(data, TRAIN, VALIDATION)
    if own is None:
        return {}
    return {
        TRAINED_UNTIL: max(own, start.manifest["data"].get(TRAINED_UNTIL, own) if start else own)
    }


def _configured_start(config: Config) -> Bundle | None:
    """Open the model to start from; None without one, or if an alias of this model is not set."""
    warm = config.training.warm_start
    try:
        return start_model(config) if warm else None
    except RegistryError as error:
        if not (error.missing and str(warm).startswith(f"models:/{config.name}@")):
            raise
    console.info(f"A cold start: there is no {warm} yet")
    return None


def _overlap(start: Bundle, data: Dataset) -> str | None:
    """Return why calibration or test rows may have trained the model; None if they have not."""
    used = start.manifest["data"]
    if used["digest"] == data.digest:
        return None  # the same rows, split in the same way
    until, times = used.get(TRAINED_UNTIL), data.rows.time
    if until is None or times is None:
        return "rows without a time that calibrate or test may have trained it"
    rows = np.concatenate([data.assignment.rows(split) for split in (CALIBRATION, TEST)])
    first = float(np.nanmin(times[rows], initial=np.inf))
    return None if until < first else "rows that calibrate or test are no later than those it saw"


def _latest(data: Dataset, *splits: int) -> float | None:
    """Return the latest time in these splits, None if rows have no time."""
    if data.rows.time is None:
        return None
    rows = np.concatenate([data.assignment.rows(split) for split in splits])
    return float(np.nanmax(data.rows.time[rows], initial=-np.inf))
