"""Train, calibrate, evaluate and promote a model, idempotently."""

from __future__ import annotations

from typing import Any

from anomaly_vae.config import Config
from anomaly_vae.config.data import TabularData
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.lifecycle.registry import CHAMPION, Registry, Version
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.promotion.decision import Promotion
from pipelines.promotion.promote import promote
from pipelines.promotion.show import show
from pipelines.registry.frozen_test import champions_test, is_set_apart
from pipelines.training.calibrate import calibrate
from pipelines.training.train import check_backbone, inputs_digest, read_data, train


def run(config: Config) -> tuple[dict[str, Any], bool]:
    """Train, calibrate, evaluate and promote a model.

    A version that was made from the same rows, configuration and code is used again.

    Returns:
        The command's JSON object, and whether the model is champion now.
    """
    check_backbone(config)
    data = read_data(config)
    registry = Registry(config.mlflow.tracking_uri)
    existing = _existing_version(registry, config, data)
    version = existing or _new_version(config, data)
    if existing:
        console.info(f"{config.name}: version {existing.version} was made from the same inputs")
    places = config.data.label_places if isinstance(config.data, TabularData) else ()
    decision = promote(registry, config.name, version.version, labels=places)
    show(decision, figures_known=existing is None)
    bundle = registry.fetch(version.uri).load()
    report = EvaluationReport.from_json(bundle.manifest["evaluation"])
    result = {
        **decision.result(),
        "model_uri": version.uri,
        "digest": bundle.digest,
        "metrics": report.figures.to_json(),
        "warnings": list(report.warnings),
        "labels": _labels(decision, report),
    }
    return result, decision.promoted


def _labels(decision: Promotion, report: EvaluationReport) -> dict[str, Any] | None:
    """Return what changed in the labels of the frozen test split, and how many labels are final."""
    final = report.labels.to_json() if report.labels else {}
    return {**(decision.labels or {}), **final} or None


def _existing_version(registry: Registry, config: Config, data: Dataset) -> Version | None:
    """Return the version made from the same inputs; None if it may know the test rows of today."""
    found = registry.find(config.name, inputs_digest(config, data))
    if found is None or CHAMPION in found.aliases:
        return found
    return found if is_set_apart(found, champions_test(registry, config.name)) else None


def _new_version(config: Config, data: Dataset) -> Version:
    trained = train(config, data)
    return calibrate(config, trained.model_uri, data).version
