"""Test whether scored rows still look like the calibration rows."""

from anomaly_vae.monitoring.exchangeability import Monitor

__all__ = ["Monitor"]
