"""Compute features of the past events of entities, such as cards and terminals."""

from anomaly_vae.features.definition import WindowDefinition, WindowFeature
from anomaly_vae.features.inputs import WindowInputs

__all__ = ["WindowDefinition", "WindowFeature", "WindowInputs"]
