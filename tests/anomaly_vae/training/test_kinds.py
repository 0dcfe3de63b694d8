"""Each kind of data has its own steps of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config, ImageConfig, validate_config
from anomaly_vae.evaluation.inserted_lesions import MIN_IMAGES, MIN_LESIONS
from anomaly_vae.images.encoding import (
    STANDARDISED_MEAN,
    STANDARDISED_STD,
    ImageEncoding,
    ImageLayout,
)
from anomaly_vae.training.augmentation import DistortedImages, NoisyCells
from anomaly_vae.training.fit import Prepared, fit_bundle
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


@pytest.mark.parametrize(("intensity", "standardised"), [("standardise", True), ("unit", False)])
def test_changed_images_are_standardised_as_the_scored_ones(
    image_config: ImageConfig, intensity: Literal["standardise", "unit"], standardised: bool
) -> None:
    content = {**image_config.model_dump(), "model": {"localization_head": True}}
    views = KINDS["image"].views(validate_config(content), ImageEncoding(LAYOUT, intensity))
    images = torch.rand((6, LAYOUT.n_columns), generator=torch.Generator().manual_seed(0))
    synthetic = views(images, torch.Generator().manual_seed(0)).synthetic
    assert synthetic is not None
    mean, deviation = synthetic.images.mean(1), synthetic.images.std(1)
    found = torch.allclose(mean, torch.tensor(STANDARDISED_MEAN)) and torch.allclose(
        deviation, torch.tensor(STANDARDISED_STD)
    )
    assert found == standardised


def test_an_image_model_records_whether_its_maps_localise(
    image_config: ImageConfig, image_prepared: Prepared, image_bundle: Bundle
) -> None:
    assert len(image_prepared.validation) < MIN_IMAGES
    assert "localization" not in image_bundle.manifest
    many = replace(image_prepared, validation=image_prepared.train[:12])
    bundle = fit_bundle(image_config, many, {}).bundle
    assert bundle.localization is not None
    assert MIN_LESIONS <= bundle.localization.images < MIN_LESIONS + 12
    assert bundle.manifest["localization"] == bundle.localization.to_json()
