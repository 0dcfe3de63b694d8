"""Make estimators that fit within a moment."""

from __future__ import annotations

from typing import Any

from anomaly_vae.estimators.tabular import TabularVAEDetector

TINY: dict[str, Any] = {"epochs": 2, "latent_dim": 2, "hidden_dim": 8, "depth": 1, "draws": 1}


def tiny(**arguments: Any) -> TabularVAEDetector:
    """Return an estimator with a tiny network and alpha 0.2."""
    return TabularVAEDetector(**{**TINY, "alpha": 0.2, **arguments})
