"""Rows or images → a bundle: encode, build, fit, export, check."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as save_tensors

from anomaly_vae.artifacts.bundle import Bundle, new_manifest
from anomaly_vae.config import Config, ImageConfig, TabularConfig
from anomaly_vae.data.encoding import Matrix, fit_encoding
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.type_inference import feature_options
from anomaly_vae.errors import DataError
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.onnx_tabular import check_graph, export_graph, weight_tensors
from anomaly_vae.export.onnx_traced import check_traced, image_tensors, trace_graph
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import fit_scale
from anomaly_vae.models.builder import build
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.modality import Encoding, Schema
from anomaly_vae.training.aggregated_posterior import finalize
from anomaly_vae.training.runtime import cpu_threads
from anomaly_vae.training.trainer import History, OnEpoch, fit
from anomaly_vae.training.views import views
from anomaly_vae.training.warm_start import aligned, start_from


@dataclass(frozen=True, eq=False)
class Prepared:
    """Encoded rows, ready to fit."""

    schema: Schema
    encoding: Encoding
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
    config: Config,
    schema: Schema,
    train: RawBatch,
    validation: RawBatch,
    start: Bundle | None = None,
) -> Prepared:
    """Fit the encoding on the training rows and encode both parts.

    Args:
        config: how columns are read.
        schema: the columns.
        train: rows to learn from.
        validation: rows to measure on.
        start: the model whose weights the fit is to start from, see `warm.aligned`.

    Raises:
        DataError: nothing is left to learn from.
    """
    encoding = _encoding(config, schema, train)
    if start:
        encoding = aligned(encoding, start.scorer.encoding)
    return Prepared(schema, encoding, encoding.encode(train), encoding.encode(validation))


def _encoding(config: Config, schema: Schema, train: RawBatch) -> Encoding:
    if isinstance(config, ImageConfig):
        layout = ImageLayout(config.data.channels, config.data.size)
        return ImageEncoding(layout, config.data.intensity)
    assert isinstance(schema, TabularSchema), "a tabular model reads a table"
    encoding = fit_encoding(schema, train, feature_options(config.data))
    if not encoding.columns:
        raise DataError("no column is left to learn from: the only ones are dates without a cycle")
    return encoding


def fit_bundle(
    config: Config,
    prepared: Prepared,
    data: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    start: Bundle | None = None,
) -> Fitted:
    """Fit, export and check a model; ``data`` is the manifest's account of the rows.

    ``start`` is a model whose weights fit (`warm.misfit`), to start from.

    Raises:
        TrainingError: the fit diverged.
        ExportError: the graph disagrees with torch on the validation rows.
    """
    encoding, train, validation = prepared.encoding, prepared.train, prepared.validation
    config = config.resolve(encoding.layout.n_columns, len(train))
    model = build(config.model, encoding.layout, config.training.seed)
    if start:
        start_from(model, start)
    shown = views(config, encoding)
    history = fit(model, train, validation, config.training, on_epoch, checkpoint, shown)
    if isinstance(config, TabularConfig):
        rows = torch.from_numpy(train), torch.from_numpy(validation)
        with cpu_threads(config.training.threads):
            finalize(model, *rows, config.model, config.training)
    manifest = new_manifest(
        kind=config.kind,
        name=config.name,
        unit=config.score.unit,
        schema=prepared.schema.to_json(),
        encoding=encoding.to_json(),
        config=config.recorded(),
        data=dict(data),
        training=_summary(history) | ({"warm_start": start.digest} if start else {}),
    )
    freeze = _freeze_image if isinstance(config, ImageConfig) else _freeze
    bundle, error = freeze(config, model, manifest, validation)  # type: ignore[arg-type]  # each has its kind
    return Fitted(bundle, model, history, error)


def _freeze(
    config: TabularConfig, model: VAE, manifest: dict[str, Any], validation: Matrix
) -> tuple[Bundle, float]:
    """The bundle, and how far its graph is from torch."""
    weights = save_tensors(weight_tensors(model, config.score))
    bundle = Bundle(manifest, export_graph(model, config.score, weights), weights)
    scores = bundle.scorer.score_encoded(validation)
    return bundle, check_graph(model, config.score, validation, scores)


def _freeze_image(
    config: ImageConfig, model: VAE, manifest: dict[str, Any], validation: Matrix
) -> tuple[Bundle, float]:
    """The same for images; statistics that the score needs come from the validation images."""
    score = ImageScore(model, ImageLayout(config.data.channels, config.data.size), config.score)
    score.learn(torch.from_numpy(validation))
    weights = save_tensors(image_tensors(score))
    bundle = Bundle(manifest, trace_graph(score, weights), weights)
    explained = bundle.scorer.explain_encoded(validation)
    scale = fit_scale(explained.nats.reshape(-1, config.data.size, config.data.size), score.unit)
    error = check_traced(score, validation, explained.score)
    return replace(bundle, manifest={**manifest, "heat_scale": scale.to_json()}), error


def _summary(history: History) -> dict[str, Any]:
    best = dataclasses.asdict(history.best)
    return {
        "epochs": len(history.epochs),
        "stopped_early": history.stopped_early,
        "best": {**best, "validation_elbo": history.best.validation_elbo},
    }
