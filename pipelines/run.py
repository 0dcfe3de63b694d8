"""Train, calibrate, evaluate and promote a model, idempotently."""

from __future__ import annotations

from typing import Any

from anomaly_vae.config import Config
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.lifecycle.registry import Registry, Version
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.promotion import promote
from pipelines.training.calibrate import calibrate
from pipelines.training.train import inputs_digest, read_data, train


def run(config: Config) -> tuple[dict[str, Any], bool]:
    """Train, calibrate, evaluate and promote a model.

    A version that was made from the same rows, configuration and code is used again.

    Returns:
        The command's JSON object, and whether the model is champion now.
    """
    data = read_data(config)
    registry = Registry(config.mlflow.tracking_uri)
    existing = registry.find(config.name, inputs_digest(config, data))
    version = existing or _new_version(config, data)
    if existing:
        console.info(f"{config.name}: version {existing.version} was made from the same inputs")
    decision = promote.promote(registry, config.name, version.version)
    promote.show(decision, figures_known=existing is None)
    bundle = registry.fetch(version.uri).load()
    report = EvaluationReport.from_json(bundle.manifest["evaluation"])
    result = {
        **decision.result(),
        "model_uri": version.uri,
        "digest": bundle.digest,
        "metrics": report.figures.to_json(),
        "warnings": list(report.warnings),
        **({"labels": report.labels.to_json()} if report.labels else {}),
    }
    return result, decision.promoted


def _new_version(config: Config, data: Dataset) -> Version:
    trained = train(config, data)
    return calibrate(config, trained.model_uri, data).version
