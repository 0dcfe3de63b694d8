"""Anomaly detection with variational autoencoders: train, calibrate, score, explain.

The estimators need torch and scikit-learn; everything a scoring service needs does not, so they
are imported when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_vae.estimators import TabularVAEDetector as TabularVAEDetector

__version__ = "0.1.0"
__all__ = ["TabularVAEDetector", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "TabularVAEDetector":
        return getattr(import_module("anomaly_vae.estimators"), name)
    raise AttributeError(f"module 'anomaly_vae' has no attribute '{name}'")
