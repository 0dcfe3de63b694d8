"""Fit models and freeze them into bundles."""

from anomaly_vae.training.fit import fit_bundle, prepare
from anomaly_vae.training.trainer import fit

__all__ = ["fit", "fit_bundle", "prepare"]
