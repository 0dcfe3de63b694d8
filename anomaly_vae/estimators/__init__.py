"""Provide scikit-learn estimators for tables and images."""

from anomaly_vae.estimators.image import ImageVAEDetector
from anomaly_vae.estimators.tabular import TabularVAEDetector

__all__ = ["ImageVAEDetector", "TabularVAEDetector"]
