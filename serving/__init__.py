"""Calibrated detectors over HTTP: no torch, no pandas, no scikit-learn in the process."""
