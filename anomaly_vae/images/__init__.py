"""Decode image files and prepare them for a model."""

from anomaly_vae.images.schema import ImageSchema

__all__ = ["ImageSchema"]
