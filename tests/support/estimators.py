"""Make estimators that fit in a moment."""

from __future__ import annotations

from typing import Any

from anomaly_vae.estimators.tabular import TabularVAEDetector

TINY: dict[str, Any] = {"epochs": 2, "latent_dim": 2, "hidden_dim": 8, "depth": 1, "draws": 1}


def tiny(**arguments: Any) -> TabularVAEDetector:
    return TabularVAEDetector(**{**TINY, "alpha": 0.2, **arguments})
