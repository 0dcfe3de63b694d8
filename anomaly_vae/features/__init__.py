"""Compute features of the past events of entities, such as cards and terminals."""

from anomaly_vae.features.definition import WindowDefinition, WindowFeature

__all__ = ["WindowDefinition", "WindowFeature"]
