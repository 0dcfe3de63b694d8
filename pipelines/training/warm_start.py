"""Where a fit starts: at random weights, or at those of an earlier model that fits."""

from __future__ import annotations

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.errors import RegistryError
from anomaly_vae.training.fit import Prepared, prepare
from anomaly_vae.training.warm_start import incompatibility
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.registry.model_uri import open_source

UNTIL = "trained_until"
"""What the manifest calls the time of the last row that trained a model or one it started from."""


def prepared_start(config: Config, data: Dataset) -> tuple[Prepared, Bundle | None]:
    """Encoded rows, and the model whose weights the fit starts from; None for a cold start."""
    start = _wished(config)
    parts = data.schema, data.part(TRAIN), data.part(VALIDATION)
    prepared = prepare(config, *parts, start)
    if start is None:
        return prepared, None
    planned = config.resolve(prepared.encoding.layout.n_columns, len(prepared.train))
    if reason := _seen(start, data) or incompatibility(start, planned, prepared.encoding):
        console.say(f"A cold start, {config.training.warm_start} does not fit: {reason}")
        return prepare(config, *parts), None
    console.say(f"A warm start from {config.training.warm_start} ({start.digest[:12]})")
    return prepared, start


def source(config: Config) -> Bundle:
    """The model that the configuration wishes to start from."""
    return open_source(str(config.training.warm_start), config.mlflow.tracking_uri).bundle


def trained_until(data: Dataset, start: Bundle | None) -> dict[str, float]:
    """For the manifest: seconds since 1970; nothing where rows have no time."""
    own = _latest(data, TRAIN, VALIDATION)
    if own is None:
        return {}
    return {UNTIL: max(own, start.manifest["data"].get(UNTIL, own) if start else own)}


def _wished(config: Config) -> Bundle | None:
    """An alias of the model itself may not point anywhere yet."""
    warm = config.training.warm_start
    try:
        return source(config) if warm else None
    except RegistryError as error:
        if not (error.missing and str(warm).startswith(f"models:/{config.name}@")):
            raise
    console.say(f"A cold start: there is no {warm} yet")
    return None


def _seen(start: Bundle, data: Dataset) -> str | None:
    """Why rows that calibrate or test may have trained the model, which would break the promise."""
    used = start.manifest["data"]
    if used["digest"] == data.digest:
        return None  # the same rows, split in the same way
    until, held_out = used.get(UNTIL), data.rows.time
    if until is None or held_out is None:
        return "rows without a time that calibrate or test may have trained it"
    rows = np.concatenate([data.assignment.rows(split) for split in (CALIBRATION, TEST)])
    first = float(np.nanmin(held_out[rows], initial=np.inf))
    return None if until < first else "rows that calibrate or test are no later than those it saw"


def _latest(data: Dataset, *splits: int) -> float | None:
    if data.rows.time is None:
        return None
    rows = np.concatenate([data.assignment.rows(split) for split in splits])
    return float(np.nanmax(data.rows.time[rows], initial=-np.inf))
