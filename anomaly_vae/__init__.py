"""Anomaly detection with variational autoencoders: train, calibrate, score, explain.

The estimators need torch and scikit-learn; everything a scoring service needs does not, so they
are imported when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomaly_vae._version import __version__

if TYPE_CHECKING:
    from anomaly_vae.estimators.image import ImageVAEDetector
    from anomaly_vae.estimators.tabular import TabularVAEDetector

__all__ = ["ImageVAEDetector", "TabularVAEDetector", "__version__"]

ESTIMATORS = {
    "ImageVAEDetector": "anomaly_vae.estimators.image",
    "TabularVAEDetector": "anomaly_vae.estimators.tabular",
}


def __getattr__(name: str) -> Any:
    if name in ESTIMATORS:
        return getattr(import_module(ESTIMATORS[name]), name)
    raise AttributeError(f"module 'anomaly_vae' has no attribute '{name}'")
