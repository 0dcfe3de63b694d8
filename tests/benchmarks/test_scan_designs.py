"""Changes of scans are of their kind, stay in range and depend on their seed only."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import laplace

from anomaly_vae.simulation import simulate_scans
from benchmarks.scan_designs import CHANGES, changed


@pytest.fixture(scope="module")
def scans() -> NDArray[np.float32]:
    images = simulate_scans(6, seed=0, size=64, lesion_share=0).images
    return (images[:, None] / np.float32(255)).astype(np.float32)


def test_every_kind_changes_every_scan_alike_each_time(scans: NDArray[np.float32]) -> None:
    copies, again = changed(scans), changed(scans)
    assert list(copies) == ["lesion", *CHANGES]
    for kind, copy in copies.items():
        assert copy.shape == scans.shape, kind
        assert copy.dtype == np.float32, kind
        assert copy.min() >= 0, kind
        assert copy.max() <= 1, kind
        assert (abs(copy - scans).max((1, 2, 3)) > 0.02).all(), kind
        assert (copy == again[kind]).all(), kind


@pytest.mark.parametrize(("kind", "finer"), [("haze", False), ("soft", False), ("grain", True)])
def test_a_kind_takes_or_adds_fine_detail(
    scans: NDArray[np.float32], kind: str, finer: bool
) -> None:
    before, after = (abs(laplace(x, axes=(2, 3))).mean() for x in (scans, changed(scans)[kind]))
    assert (after > before) == finer
