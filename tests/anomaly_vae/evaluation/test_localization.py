"""Maps against masks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_vae.evaluation.localization import OVERLAP_FPR, pixel_figures


def scene(seed: int, levels: int = 40) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw maps of several sizes with ties, and masks of two rectangles in each but the last."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros(shape, bool) for shape in ((20, 30), (16, 16), (12, 40))]
    for mask in masks[:-1]:
        mask[2:5, 3:9] = True
        mask[9:13, 10:12] = True
    maps = [np.round(rng.random(m.shape) * levels + 0.3 * levels * m) for m in masks]
    return maps, masks


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_scikit_learn(seed: int) -> None:
    maps, masks = scene(seed)
    heat, truth = (np.concatenate([part.ravel() for part in parts]) for parts in (maps, masks))
    figures = pixel_figures(maps, masks)
    assert figures.auroc == pytest.approx(roc_auc_score(truth, heat))
    assert figures.average_precision == pytest.approx(average_precision_score(truth, heat))
    assert (figures.images, figures.regions) == (3, 4)
    assert figures.base_rate == pytest.approx(truth.mean())


def test_the_overlap_is_averaged_over_thresholds() -> None:
    """Compared with its definition, threshold by threshold."""
    maps, masks = scene(0, levels=10_000)
    false, overlap = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        flagged = [heat >= threshold for heat in maps]
        normal = [f[~m] for f, m in zip(flagged, masks, strict=True)]
        false.append(np.concatenate(normal).mean())
        regions = [f[2:5, 3:9].mean() for f in flagged[:-1]]
        regions += [f[9:13, 10:12].mean() for f in flagged[:-1]]
        overlap.append(np.mean(regions))
    grid = np.linspace(0, OVERLAP_FPR, 200_001)
    expected = np.interp(grid, false, overlap).mean()
    assert pixel_figures(maps, masks).region_overlap == pytest.approx(expected, abs=2e-3)


def test_small_regions_count_as_much_as_large_ones() -> None:
    mask = np.zeros((20, 20), bool)
    mask[0, 0] = True
    mask[5:15, 5:15] = True
    heat = mask.astype(float)
    heat[0, 0] = -1
    assert pixel_figures([heat], [mask]).region_overlap == pytest.approx(0.5)


def test_without_pixels_of_both_kinds_nothing_is_known() -> None:
    figures = pixel_figures([np.ones((4, 4))], [np.zeros((4, 4), bool)])
    assert (figures.auroc, figures.average_precision, figures.region_overlap) == (None, None, None)
