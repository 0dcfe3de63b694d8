"""Define, read and validate the configuration of a detector.

Unknown keys are refused with the nearest known name. Sizes that are None are chosen when the model
is fitted, from the size of the data: `TabularConfig.resolve` and `ImageConfig.resolve` return
configurations in which all sizes are known. They are recorded with the model.
"""

from anomaly_vae.config.data import Feature
from anomaly_vae.config.detector import Config, ImageConfig, TabularConfig
from anomaly_vae.config.loading import load_config, validate_config

__all__ = [
    "Config",
    "Feature",
    "ImageConfig",
    "TabularConfig",
    "load_config",
    "validate_config",
]
