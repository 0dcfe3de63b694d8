"""Measure on held-out normal images with inserted lesions whether a model's maps show where."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.bootstrap import Ranking, draws, interval
from anomaly_vae.evaluation.localization import pixel_figures
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.masking import LIMIT
from anomaly_vae.images.schema import image_batch
from anomaly_vae.scoring.localization import LocalizationTest
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.simulation.scans import insert_lesions

MIN_IMAGES, MAX_IMAGES = 10, 64
"""Number of images below which nothing is measured, and number of images that are used."""
MIN_LESIONS = 64
"""Number of lesions: fewer images are used several times, with another lesion each time."""
MAX_SIDE = 64
"""Side of a map, in pixels, above which only every n-th row and column is compared."""
DRAWS = 199
"""Number of bootstrap draws of images."""

Mask = NDArray[np.bool_]


def measure_localization(
    scorer: Scorer, encoding: ImageEncoding, x: Matrix
) -> LocalizationTest | None:
    """Insert a lesion into each image and compare the smoothed maps with the masks.

    The first `MAX_IMAGES` images are used, unless no lesion can be inserted into them, as often as
    it takes to come to `MIN_LESIONS` lesions.

    Args:
        scorer: scoring kernel of the model.
        encoding: the model's encoding.
        x: (N, F) encoded normal images that did not train the model.

    Returns:
        The figures; None if there are fewer than `MIN_IMAGES` images.
    """
    if len(x) < MIN_IMAGES:
        return None
    changed = list(_with_lesions(encoding, x[:MAX_IMAGES]))
    sources = np.array([source for source, _, _ in changed])
    if len(np.unique(sources)) < MIN_IMAGES:
        return None
    _, images, masks = (np.stack(part) for part in zip(*changed, strict=True))
    parts = scorer.explain_encoded(encoding.encode(image_batch(images)))
    side = encoding.layout.size
    step = -(-side // MAX_SIDE)
    heat = smoothed(parts.nats.reshape(-1, side, side))[:, ::step, ::step]
    return _figures(heat, masks[:, ::step, ::step], sources)


def _figures(
    heat: NDArray[np.floating], masks: Mask, sources: NDArray[np.intp]
) -> LocalizationTest:
    """Compare maps with masks, both (N, H, W), and bootstrap over their source images (N,)."""
    found = pixel_figures(list(heat), list(masks))
    ranking = Ranking(heat.ravel(), masks.ravel())
    pixels = heat[0].size
    drawn = draws(np.zeros(len(heat), bool), DRAWS, unit=sources)
    bound = interval(float(ranking.auroc(np.repeat(counts, pixels))) for counts in drawn)
    return LocalizationTest(
        len(heat),
        found.auroc or 0.0,
        bound.low if bound else 0.0,
        found.average_precision or 0.0,
        found.base_rate,
    )


def _with_lesions(
    encoding: ImageEncoding, x: Matrix
) -> Iterator[tuple[int, NDArray[np.float32], Mask]]:
    """Yield positions of images, the images (C, S, S) with a lesion, and the lesions' masks.

    Images without tissue are left out.
    """
    rounds = -(-MIN_LESIONS // len(x))
    for seed in range(rounds * len(x)):
        whole = x[seed % len(x)].reshape(encoding.layout.shape)
        inside = whole > LIMIT
        image = encoding.fill(whole, float(whole[inside].min()))
        grey = image.mean(0)
        low, span = grey.min(), max(float(np.ptp(grey)), np.finfo(np.float32).tiny)
        unit = np.clip((grey - low) / span, 0, 1).astype(np.float32)
        try:
            changed, masks, _ = insert_lesions(unit[None], seed)
        except DataError:
            continue
        lesion = image + (changed[0] - unit) * span
        lesion = lesion if encoding.intensity == "standardise" else np.clip(lesion, 0, 1)
        yield seed % len(x), np.where(inside, lesion, whole), masks[0] & inside[0]
