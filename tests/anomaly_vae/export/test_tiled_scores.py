"""Compare the score of an image with the scores of its tiles, taken one by one."""

import itertools

import numpy as np
import pytest
import torch

from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.onnx_traced import image_score
from anomaly_vae.export.tiled_scores import TiledScore
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.masking import ENCODED_OUTSIDE
from anomaly_vae.images.tiling import Tiling
from anomaly_vae.models.builder import build

TILING = Tiling(size=19, side=8, overlap=0.25)
CONFIG = ImageScoreConfig()


@pytest.fixture(scope="module", params=[1, 3])
def score(request: pytest.FixtureRequest) -> TiledScore:
    """A score of images of 19 × 19 pixels with 9 tiles, whose parts are standardised."""
    encoding = ImageEncoding(ImageLayout(request.param, 19), "standardise", TILING)
    config = ImageModelConfig(network="dense", latent_dim=2, hidden_dim=4)
    model = build(config, encoding.model_layout)
    score = image_score(model, encoding, CONFIG)
    score.fit_statistics(torch.from_numpy(encoding.pieces(images(encoding.layout.channels, 5))))
    assert isinstance(score, TiledScore)
    return score.eval()


def images(channels: int, n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, channels * 19**2), np.float32)


def test_the_score_is_that_of_the_highest_tile_and_maps_are_joined(score: TiledScore) -> None:
    channels = score.layout.channels
    x = torch.from_numpy(images(channels))
    with torch.no_grad():
        total, nats, kl, expected, latent = score(x)
        one_by_one = ImageScore.forward(score, torch.from_numpy(TILING.cut(x.numpy(), channels)))
    tile_scores, tile_nats, tile_kl, tile_expected, tile_latent = (
        part.numpy().reshape(3, 9, -1) for part in one_by_one
    )
    best = tile_scores[..., 0].argmax(1)
    rows = np.arange(3)
    np.testing.assert_array_equal(total, tile_scores[rows, best, 0])
    np.testing.assert_array_equal(kl, tile_kl[rows, best, 0])
    np.testing.assert_allclose(latent, tile_latent.mean(1), rtol=1e-5)
    for joined, tiles in ((nats, tile_nats), (expected, tile_expected)):
        np.testing.assert_array_equal(joined, naively_joined(tiles, channels))


def naively_joined(tiles: np.ndarray, channels: int) -> np.ndarray:
    """Join the tiles (N, T, f) of images pixel by pixel."""
    whole = np.full((len(tiles), channels, 19, 19), np.nan, np.float32)
    places = list(zip(TILING.starts, TILING.kept, strict=True))
    for t, ((top, rows), (left, columns)) in enumerate(itertools.product(places, places)):
        tile = tiles[:, t].reshape(-1, channels, 8, 8)
        for i, j in itertools.product(range(*rows), range(*columns)):
            whole[:, :, top + i, left + j] = tile[:, :, i, j]
    return whole.reshape(len(tiles), -1)


def test_without_tiles_the_score_is_that_of_the_image() -> None:
    encoding = ImageEncoding(ImageLayout(1, 19), "standardise")
    model = build(ImageModelConfig(network="dense", hidden_dim=4), encoding.model_layout)
    assert type(image_score(model, encoding, CONFIG)) is ImageScore


def test_pixels_that_do_not_count_add_nothing_to_the_score() -> None:
    encoding = ImageEncoding(ImageLayout(1, 19), "standardise", masked=True)
    model = build(ImageModelConfig(network="dense", hidden_dim=4), encoding.model_layout)
    score = image_score(model, encoding, ImageScoreConfig(standardise=False)).eval()
    x = images(1)
    outside = np.random.default_rng(1).random(x.shape) < 0.3
    x[outside] = ENCODED_OUTSIDE
    with torch.no_grad():
        total, nats, kl, expected, _ = score(torch.from_numpy(x))
        other = ImageScore.forward(score, torch.from_numpy(np.where(outside, -9.0, x)).float())
    assert (nats.numpy()[outside] == 0).all()
    assert (expected.numpy()[outside] == ENCODED_OUTSIDE).all()
    np.testing.assert_allclose(total, nats.double().sum(1) + kl, rtol=1e-6)
    np.testing.assert_array_equal(total, other[0])
