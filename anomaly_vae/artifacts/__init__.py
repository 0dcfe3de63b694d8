"""Save, verify and load bundles: the folders that hold a trained model."""

from anomaly_vae.artifacts.bundle import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
