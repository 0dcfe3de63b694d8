"""Columns → a bundle: encode, build, fit, export, check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save as save_tensors

from anomaly_vae.build import build
from anomaly_vae.bundle import Bundle, new_manifest
from anomaly_vae.config import Config
from anomaly_vae.encoding import Matrix, TabularEncoding, fit_encoding
from anomaly_vae.errors import DataError
from anomaly_vae.export import check_graph, export_graph, weight_tensors
from anomaly_vae.inference import feature_options
from anomaly_vae.schema import RawBatch, TabularSchema
from anomaly_vae.training import History, OnEpoch, fit
from anomaly_vae.vae import VAE


@dataclass(frozen=True, eq=False)
class Prepared:
    """Encoded rows, ready to fit."""

    schema: TabularSchema
    encoding: TabularEncoding
    train: Matrix
    validation: Matrix


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model and its uncalibrated bundle."""

    bundle: Bundle
    model: VAE
    history: History
    graph_error: float


def prepare(
    config: Config, schema: TabularSchema, train: RawBatch, validation: RawBatch
) -> Prepared:
    """Fit the encoding on the training rows and encode both parts.

    Raises:
        DataError: nothing is left to learn from.
    """
    encoding = fit_encoding(schema, train, feature_options(config.data))
    if not encoding.columns:
        raise DataError("no column is left to learn from: the only ones are dates without a cycle")
    return Prepared(schema, encoding, encoding.encode(train), encoding.encode(validation))


def fit_bundle(
    config: Config,
    prepared: Prepared,
    data: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Fit, export and check a model; ``data`` is the manifest's account of the rows.

    Raises:
        TrainingError: the fit diverged.
        ExportError: the graph disagrees with torch on the validation rows.
    """
    encoding = prepared.encoding
    config = resolved(config, encoding, len(prepared.train))
    model = build(config.model, encoding.layout, config.training.seed)
    history = fit(
        model,
        prepared.train,
        prepared.validation,
        config.training,
        on_epoch,
        checkpoint,
        encoding.sources.tolist(),
    )
    weights = save_tensors(weight_tensors(model, config.score))
    manifest = new_manifest(
        name=config.name,
        schema=prepared.schema.to_json(),
        encoding=encoding.to_json(),
        config=config.recorded(),
        data=dict(data),
        training=_summary(history),
    )
    bundle = Bundle(manifest, export_graph(model, config.score, weights), weights)
    scores = bundle.scorer.score_encoded(prepared.validation)
    error = check_graph(model, config.score, prepared.validation, scores)
    return Fitted(bundle, model, history, error)


def resolved(config: Config, encoding: TabularEncoding, n_rows: int) -> Config:
    """The configuration with everything that depends on the data's size filled in."""
    return config.model_copy(
        update={
            "model": config.model.resolve(encoding.layout.n_columns),
            "training": config.training.resolve(n_rows),
        }
    )


def _summary(history: History) -> dict[str, Any]:
    best = dataclasses.asdict(history.best)
    return {
        "epochs": len(history.epochs),
        "stopped_early": history.stopped_early,
        "best": {**best, "validation_elbo": history.best.validation_elbo},
    }
