"""Choose training views."""

from __future__ import annotations

from anomaly_vae.config import Config, TabularConfig
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.training.augmentation import DistortedImages, NoisyCells, Views
from anomaly_vae.training.synthetic_anomalies import synthetic


def views(config: Config, encoding: TabularEncoding | ImageEncoding) -> Views:
    """How batches are shown in training."""
    if isinstance(config, TabularConfig):
        assert isinstance(encoding, TabularEncoding), "a tabular model is for tables"
        hide, noise, numeric = (
            config.training.hide,
            config.training.noise,
            encoding.layout.n_numeric,
        )
        return NoisyCells(hide, encoding.sources.tolist(), noise, numeric)
    assert isinstance(encoding, ImageEncoding), "an image model is for images"
    layout, training = encoding.layout, config.training
    insert = synthetic if config.model.localization_head else None
    return DistortedImages(layout, training.augmentation, training.corruption, insert)
