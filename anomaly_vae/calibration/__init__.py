"""Choose thresholds and compute conformal p-values."""

from anomaly_vae.calibration.conformal import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
