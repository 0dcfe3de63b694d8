"""Train, calibrate, evaluate, promote: the whole path, and the only idempotent command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anomaly_vae.config import Config
from anomaly_vae.detector import Detector
from anomaly_vae.evaluation import Evaluation, Slice, time_slices
from anomaly_vae.registry import Registry, Version
from anomaly_vae.splits import TEST
from pipelines import console, promote
from pipelines.calibrate import calibrate
from pipelines.data import Dataset
from pipelines.train import inputs_digest, read, train


def run(config: Config) -> tuple[dict[str, Any], bool]:
    """The answer, and whether the model is champion now.

    Rows, configuration and code that already made a version make no second one.
    """
    data = read(config)
    registry = Registry(config.mlflow.tracking_uri)
    known = registry.find(config.name, inputs_digest(config, data))
    version = known or _new_version(config, data)
    if known:
        console.say(f"{config.name}: version {known.version} was made of the same inputs")
    decision = promote.promote(registry, config.name, version.version)
    promote.show(decision)
    bundle = registry.fetch(f"models:/{version.name}/{version.version}").load()
    drifted = [] if decision.promoted else _drifted(bundle.detector, data, config)
    tell_drift(drifted)
    answer = {
        **decision.result(),
        "model_uri": f"models:/{version.name}/{version.version}",
        "digest": bundle.digest,
        "metrics": Evaluation.from_json(bundle.manifest["evaluation"]).to_json(),
        "drifted": [{"slice": s.name, "fpr": s.fpr.value, "rows": s.fpr.total} for s in drifted],
    }
    return answer, decision.promoted


def tell_drift(drifted: Sequence[Slice]) -> None:
    """The slices of time where the promise did not hold."""
    if drifted:
        console.table(
            "False positive rate above what chance explains",
            ("time", "rate", "low", "high", "limit", "normal rows"),
            [(s.name, s.fpr.value, s.fpr.low, s.fpr.high, s.limit, s.fpr.total) for s in drifted],
        )


def _new_version(config: Config, data: Dataset) -> Version:
    trained = train(config, data)
    return calibrate(config, trained.model_uri, data).version


def _drifted(detector: Detector, data: Dataset, config: Config) -> list[Slice]:
    """The days of the test split that flag more than chance explains."""
    if data.rows.time is None:
        return []
    rows = data.assignment.rows(TEST)
    found = detector.detect(data.part(TEST))
    slices = time_slices(
        found.is_anomaly,
        data.rows.anomaly[rows],
        data.rows.time[rows],
        detector.calibration,
        config.promotion.confidence,
    )
    return [one for one in slices if one.drifted]
