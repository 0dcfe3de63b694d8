"""Each kind of data has its own steps of training."""

from __future__ import annotations

from anomaly_vae.config import Config, ImageConfig, validate_config
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.training.augmentation import DistortedImages, NoisyCells
from anomaly_vae.training.fit import Prepared
from anomaly_vae.training.kinds import KINDS

LAYOUT = ImageLayout(1, 16)


def test_views_fit_the_kind_of_data(
    config: Config, prepared: Prepared, image_config: ImageConfig
) -> None:
    tabular = KINDS["tabular"].views(config, prepared.encoding)
    assert isinstance(tabular, NoisyCells)
    assert tabular.hide == config.training.hide  # type: ignore[union-attr]
    changed = validate_config(
        {
            **image_config.model_dump(),
            "training": {"corruption": {"type": "mask"}, "augmentation": {"flip": 0.5}},
        }
    )
    distorted = KINDS["image"].views(changed, ImageEncoding(LAYOUT, "unit"))
    assert isinstance(distorted, DistortedImages)
    assert (distorted.corruption.type, distorted.augmentation.flip) == ("mask", 0.5)
