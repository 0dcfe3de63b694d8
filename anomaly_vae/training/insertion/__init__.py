"""Insert synthetic anomalies into images, to train the localization head."""

from anomaly_vae.training.insertion.anomalies import synthetic

__all__ = ["synthetic"]
