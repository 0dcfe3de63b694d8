"""Localizations: maps in the image's place, regions, pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import Scale
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.localization import decision_title, localizations, region_explanations
from anomaly_vae.scoring.scorer import ScoreParts
from pipelines.datasets.images.dataset import ImageDataset

SCALE = Scale(low=0.0, high=4.0, region=1.0)


def explained(layout: ImageLayout, nats: np.ndarray) -> ScoreParts:
    """Return the parts of three images with the given nats (3, S²)."""
    rng = np.random.default_rng(0)
    shape = (3, layout.n_columns)
    observed, expected = (rng.random(shape).astype(np.float32) for _ in range(2))
    zero = np.zeros(3)
    latent, known = np.zeros((3, 2), np.float32), zero
    return ScoreParts(nats.sum(1), nats, zero, observed, expected, latent, known, nats.sum(1), zero)


def test_a_hot_square_is_a_region_where_it_lies() -> None:
    layout = ImageLayout(3, 16)
    nats = np.zeros((3, 16, 16))
    nats[1, 4:8, 9:14] = 5
    of = explained(layout, nats.reshape(3, -1))
    quiet, found = localizations(ImageEncoding(layout, "unit"), SCALE, of, [0, 1])
    assert quiet.regions == ()
    (region,) = found.regions
    assert abs(region.x - 9) <= 1
    assert abs(region.y - 4) <= 1
    assert region.total >= 0.9 * 100
    np.testing.assert_array_equal(found.heat, nats[1])
    np.testing.assert_array_equal(found.scan, of.observed[1].reshape(3, 16, 16))
    np.testing.assert_array_equal(found.expected, of.expected[1].reshape(3, 16, 16))
    picture = found.draw("scan")
    assert picture.size[0] > 3 * 16
    assert len(picture.convert("L").getcolors() or []) > 10


def test_a_map_adds_up_to_the_score_less_the_rate(
    image_bundle: Bundle, image_dataset: ImageDataset
) -> None:
    batch = image_dataset.batch.take(np.arange(4))
    of = image_bundle.scorer.explain(batch)
    encoding = image_bundle.scorer.encoding
    assert isinstance(encoding, ImageEncoding)
    for row, found in enumerate(localizations(encoding, image_bundle.heat_scale, of, range(4))):
        total = found.heat.sum(dtype=np.float64) + of.kl[row]
        np.testing.assert_allclose(total, of.score[row], rtol=1e-4, atol=1e-3)


def test_regions_explain_a_score_with_the_largest_first() -> None:
    layout = ImageLayout(1, 32)
    nats = np.full((3, 32, 32), -0.1)
    nats[1, 4:10, 20:26] = 5
    nats[1, 20:24, 3:7] = 3
    nats[2] = -2.0
    of = replace(explained(layout, nats.reshape(3, -1)), kl=np.array([0.0, 7.0, 1.0]))
    encoding = ImageEncoding(layout, "unit")
    quiet, found, low = region_explanations(encoding, SCALE, of, None)
    assert (quiet.regions, low.regions) == ((), ())
    first, second = found.regions
    assert first.nats > second.nats > 0
    x0, y0, x1, y1 = first.box
    assert np.abs(np.array(first.box) - (20, 4, 26, 10)).max() <= 1
    assert nats[1, y0:y1, x0:x1].max() == 5
    assert 0.7 < first.share < 0.85
    assert first.share + second.share <= 1
    for explanation, row in ((quiet, 0), (found, 1), (low, 2)):
        total = sum(r.nats for r in explanation.regions) + explanation.rest + explanation.kl
        np.testing.assert_allclose(total, nats[row].sum() + of.kl[row], rtol=1e-9)
    (_, only, _) = region_explanations(encoding, SCALE, of, 1)
    assert only.regions == (first,)
    np.testing.assert_allclose(only.rest, found.rest + second.nats)


def test_a_region_below_zero_contributes_nothing_to_the_share() -> None:
    layout = ImageLayout(1, 16)
    nats = np.full((3, 16, 16), -2.0)
    nats[:, 4:8, 4:8] = -0.2
    of, scale = explained(layout, nats.reshape(3, -1)), Scale(-3.0, 0.0, -1.0)
    (region,) = region_explanations(ImageEncoding(layout, "unit"), scale, of, None)[0].regions
    assert region.nats < 0
    assert region.share == 0


def test_nothing_asked_for_is_nothing_found() -> None:
    layout = ImageLayout(1, 16)
    of = explained(layout, np.zeros((3, 256)))
    assert list(localizations(ImageEncoding(layout, "unit"), SCALE, of, [])) == []


def test_the_title_says_name_score_and_p_value() -> None:
    found = Detections(np.array([1.0, 1234.5678]), np.array([0.5, 0.0123]), np.array([False, True]))
    assert decision_title(found, 1) == "score 1234.57, p = 0.012"
