"""Measure a detector on labelled rows, with confidence intervals."""

from anomaly_vae.evaluation.metrics import evaluate

__all__ = ["evaluate"]
