"""Inserted lesions tell maps that show where anomalies are from maps that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from anomaly_vae.evaluation import inserted_lesions
from anomaly_vae.evaluation.inserted_lesions import (
    MAX_IMAGES,
    MIN_IMAGES,
    MIN_LESIONS,
    measure_localization,
)
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.scoring.localization import LocalizationTest
from anomaly_vae.scoring.scorer import ScoreParts, Scorer
from anomaly_vae.simulation.scans import simulate_scans

SIDE = 32
SCANS = simulate_scans(20, seed=0, size=SIDE, lesion_share=0).images.astype(np.float32) / 255


class Known:
    """A score whose map is the distance from the image without the lesion, times a sign."""

    def __init__(self, clean: np.ndarray, sign: float) -> None:
        self.clean, self.sign, self.seen = clean, sign, np.empty(0)

    def explain_encoded(self, x: np.ndarray) -> ScoreParts:
        self.seen = x
        clean = np.resize(self.clean, x.shape)
        nats = self.sign * np.abs(x - clean).astype(np.float64)
        pixels = nats.reshape(len(x), -1, SIDE**2).sum(1)
        score, none = pixels.sum(1), np.zeros(len(x))
        return ScoreParts(score, pixels, none, x, x, x, known=none, loss=score, rate=none)


def measured(
    scans: np.ndarray, sign: float, intensity: Any = "unit", channels: int = 1
) -> LocalizationTest | None:
    encoding = ImageEncoding(ImageLayout(channels, SIDE), intensity)
    x = np.repeat(scans[:, None], channels, 1).reshape(len(scans), -1)
    return measure_localization(cast(Scorer, Known(x, sign)), encoding, x)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_of_the_lesion_localises_and_its_opposite_does_not(channels: int) -> None:
    found, opposite = measured(SCANS, 1, channels=channels), measured(SCANS, -1, channels=channels)
    assert found is not None
    assert opposite is not None
    assert found.localizes
    assert found.auroc > 0.9
    assert found.auroc_low <= found.auroc
    assert not opposite.localizes
    assert opposite.auroc == pytest.approx(1 - found.auroc)
    assert (found.images, 0 < found.base_rate < 0.2) == (80, True)


def test_it_repeats() -> None:
    assert measured(SCANS, 1) == measured(SCANS, 1)


def test_lesions_are_inserted_on_the_scale_of_the_model() -> None:
    """Standardised pixels go beyond 0 to 1, where a lesion must not be cut off."""
    encoding = ImageEncoding(ImageLayout(1, SIDE), "standardise")
    wide = encoding.to_json()
    known = Known(3 * SCANS.reshape(20, -1) - 1, 1)
    assert measure_localization(cast(Scorer, known), ImageEncoding.from_json(wide), known.clean)
    np.testing.assert_allclose(known.seen.mean(1), 0.5, atol=1e-3)
    np.testing.assert_allclose(known.seen.std(1), 0.25, atol=1e-3)


def test_few_images_and_images_without_tissue_are_not_measured() -> None:
    assert measured(SCANS[: MIN_IMAGES - 1], 1) is None
    assert measured(np.zeros_like(SCANS), 1) is None
    many = np.concatenate([SCANS] * 4)
    found = measured(many, 1)
    assert found is not None
    assert found.images == MAX_IMAGES


def test_few_images_are_used_with_several_lesions_each() -> None:
    """Lesions of one image are drawn together, so that ten images are no better than they are."""
    few, many = measured(SCANS[:MIN_IMAGES], 1), measured(SCANS, 1)
    assert few is not None
    assert many is not None
    assert few.images >= MIN_LESIONS
    assert few.auroc - few.auroc_low > many.auroc - many.auroc_low


def test_large_maps_are_compared_at_some_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    every = measured(SCANS, 1)
    monkeypatch.setattr(inserted_lesions, "MAX_SIDE", 12)
    some = measured(SCANS, 1)
    assert every is not None
    assert some is not None
    assert some.base_rate == pytest.approx(every.base_rate, rel=0.3)
    assert some.localizes


@pytest.mark.parametrize(
    ("model", "score", "remedy"),
    [
        ({}, "elbo", "localization_head: true"),
        ({"backbone": "none"}, "elbo", "localization_head: true"),
        ({"backbone": "efficientnet_lite0"}, "elbo", "more normal images"),
        ({"localization_head": True}, "contamination", "more normal images"),
        ({"localization_head": True}, "elbo", "score: contamination"),
    ],
)
def test_the_remedy_is_one_that_the_model_can_have(
    model: dict[str, Any], score: str, remedy: str
) -> None:
    config = {"model": model, "score": {"type": score}}
    assert remedy in LocalizationTest.remedy(config)


@pytest.mark.parametrize(
    ("changed", "localizes"),
    [({}, True), ({"auroc_low": 0.7}, False), ({"average_precision": 0.09}, False)],
)
def test_both_figures_have_to_exceed_their_limits(
    changed: dict[str, float], localizes: bool
) -> None:
    good = LocalizationTest(20, 0.9, 0.8, 0.2, 0.03)
    test = replace(good, **changed)
    assert test.localizes is localizes
    assert LocalizationTest.from_json(test.to_json()) == test
