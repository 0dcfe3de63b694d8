"""Fit a detector and freeze it into a bundle: encode, build, fit, export and check."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from anomaly_vae.artifacts.bundle import Bundle, new_manifest
from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.encoding import Matrix, PooledLevels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.modality import Encoding, Schema, modality
from anomaly_vae.training.distributed import current_group
from anomaly_vae.training.kinds import KINDS
from anomaly_vae.training.known_anomalies import known_choice, with_known_head
from anomaly_vae.training.runtime import cpu_threads
from anomaly_vae.training.trainer import History, OnEpoch, fit
from anomaly_vae.training.warm_start import start_from


@dataclass(frozen=True, eq=False)
class Prepared:
    """The encoded rows of a fit, with their schema and encoding."""

    schema: Schema
    encoding: Encoding
    train: Matrix
    validation: Matrix
    pooled: tuple[PooledLevels, ...] = ()
    """Categorical columns some of whose values are not kept as levels."""
    known: Matrix | None = None
    """Encoded labelled anomalies of the training period; None without labels."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model and its uncalibrated bundle."""

    bundle: Bundle
    model: VAE
    history: History
    graph_error: float
    """Largest relative difference between scores of the graph and of torch."""


def prepare(
    config: Config,
    schema: Schema,
    train: RawBatch,
    validation: RawBatch,
    start: Bundle | None = None,
    known: RawBatch | None = None,
) -> Prepared:
    """Fit the encoding on the training rows and encode both splits.

    Args:
        config: determines how columns or images are encoded.
        schema: the columns of a table, or the shape of images.
        train: rows that the weights are fitted to.
        validation: rows that the fit is measured on.
        start: model whose weights the fit will start from; levels keep the order they have in it.
        known: labelled anomalies of the training period, for `model.known`; None for none.

    Raises:
        DataError: no column is left to learn from.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from anomaly_vae.config import validate_config
        >>> from anomaly_vae.data.type_inference import infer_schema
        >>> amounts = np.random.default_rng(0).lognormal(size=60)
        >>> table = pa.table({"amount": amounts, "channel": ["web", "shop", "web"] * 20})
        >>> config = validate_config({"name": "demo", "data": {"path": "demo.csv"}})
        >>> schema = infer_schema(table, config.data).schema
        >>> rows, parts = schema.from_arrow(table), np.split(np.arange(60), [50])
        >>> prepared = prepare(config, schema, *(rows.take(part) for part in parts))
        >>> prepared.train.shape, prepared.validation.shape
        ((50, 2), (10, 2))
    """
    kind = KINDS[config.kind]
    encoding = kind.fit_encoding(config, schema, train)
    if start:
        encoding = kind.align(encoding, start.scorer.encoding)
    matrices = encoding.encode_training(train), encoding.encode(validation)
    anomalies = None if known is None else encoding.encode(known)
    return Prepared(schema, encoding, *matrices, kind.pooled_levels(encoding, train), anomalies)


def fit_bundle(
    config: Config,
    prepared: Prepared,
    data: Mapping[str, Any],
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    start: Bundle | None = None,
) -> Fitted:
    """Fit, export and check a model.

    Args:
        config: the configuration; sizes that it leaves open are derived from the rows.
        prepared: encoded rows, the result of `prepare`.
        data: description of the rows, stored in the manifest.
        on_epoch: called after each epoch; see `fit`.
        checkpoint: file to resume from; see `fit`.
        start: model whose weights the fit starts from; its `incompatibility` must be None.

    Raises:
        TrainingError: the fit diverged.
        ExportError: the scores of the graph and of torch differ on the validation rows.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from anomaly_vae.config import validate_config
        >>> from anomaly_vae.data.type_inference import infer_schema
        >>> table = pa.table({"amount": np.random.default_rng(0).lognormal(size=60)})
        >>> config = validate_config(
        ...     {"name": "demo", "data": {"path": "demo.csv"}, "training": {"epochs": 3}}
        ... )
        >>> schema = infer_schema(table, config.data).schema
        >>> rows, parts = schema.from_arrow(table), np.split(np.arange(60), [50])
        >>> prepared = prepare(config, schema, *(rows.take(part) for part in parts))
        >>> fitted = fit_bundle(config, prepared, data={"rows": 60})
        >>> len(fitted.history.epochs), fitted.bundle.scorer.score(rows).shape
        (3, (60,))
    """
    kind, encoding = KINDS[config.kind], prepared.encoding
    encoded = prepared.train, prepared.validation
    model = kind.build(config.resolve(encoding.layout.n_columns, len(prepared.train)), encoding)
    if start:
        start_from(model, start)
    with cpu_threads(config.training.threads):
        train, validation = kind.rows(model, config, encoding, *encoded, fit=start is None)
    if current_group().size > 1:
        current_group().broadcast(_job(config, encoding, train, validation))
    config = config.resolve(train.shape[1], len(train))
    views = kind.views(config, encoding)
    history = fit(model, train, validation, config.training, on_epoch, checkpoint, views)
    with cpu_threads(config.training.threads):
        kind.finalize(model, config, train, validation)
    manifest = new_manifest(
        kind=config.kind,
        name=config.name,
        unit=config.score.unit,
        schema=prepared.schema.to_json(),
        encoding=encoding.to_json(),
        config=_recorded(config, prepared),
        data=dict(data),
        training=_summary(history, prepared.pooled)
        | ({"warm_start": start.digest} if start else {}),
    )
    with cpu_threads(config.training.threads):
        bundle, error = kind.freeze(model, config, encoding, manifest, prepared.validation)
        known = prepared.known
        if known is not None and known_choice(config, len(known)).on:
            bundle = with_known_head(bundle, *encoded, known, config.training.seed)
    return Fitted(bundle, model, history, error)


def assist_fit() -> None:
    """Take part in the fit of process 0, in any other process of `process_group`."""
    job = safetensors.numpy.load(current_group().broadcast())
    content = json.loads(job.pop("content").tobytes())
    config = validate_config(content["config"])
    kind, encoding = KINDS[config.kind], modality(config.kind)[1].from_json(content["encoding"])
    config = config.resolve(job["train"].shape[1], len(job["train"]))
    model, views = kind.build(config, encoding), kind.views(config, encoding)
    fit(model, job["train"], job["validation"], config.training, views=views)


def _job(config: Config, encoding: Encoding, train: Matrix, validation: Matrix) -> bytes:
    """Return the message from which `assist_fit` learns what is fitted."""
    parts = {"config": config.model_dump(mode="json"), "encoding": encoding.to_json()}
    content = np.frombuffer(json.dumps(parts).encode(), np.uint8)
    matrices = {"train": train, "validation": validation}
    return safetensors.numpy.save({**matrices, "content": content})


def _recorded(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Return the configuration, without `model.known` if there are too few labels to learn from."""
    recorded = config.recorded()
    labels = 0 if prepared.known is None else len(prepared.known)
    if not known_choice(config, labels).on:
        recorded["model"].pop("known", None)
    return recorded


def _summary(history: History, pooled: Sequence[PooledLevels]) -> dict[str, Any]:
    """Return the ``training`` entry of the manifest, with ``pooled`` only if there are such."""
    best = dataclasses.asdict(history.best)
    summary = {
        "epochs": len(history.epochs),
        "stopped_early": history.stopped_early,
        "best": {**best, "validation_elbo": history.best.validation_elbo},
    }
    if current_group().size > 1:
        summary["processes"] = current_group().size
    columns = [dataclasses.asdict(column) for column in pooled]
    return {**summary, "pooled": columns} if columns else summary
