"""Make calibration samples, and choose thresholds by them with each method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from anomaly_vae.calibration import tail_methods
from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig

SEEDS = st.integers(0, 2**32 - 1)
WISHES: dict[str, dict[str, Any]] = {
    "conformal": {"alpha": 0.05},
    "certified": {"alpha": 0.05, "delta": 0.1},
    "evt": {"alpha": 0.002, "tail": 0.2},
    "quantile": {"alpha": 0.05},
    "budget": {"per_1000": 20},
    "cost": {"costs": {"missed": 100, "review": 3, "blocked": 5}},
    "fbeta": {"f_beta": 2.0},
    "recall_at_precision": {"min_precision": 0.6},
}
"""A configuration of each method."""


def wish(method: str, **keys: Any) -> CalibrationConfig:
    """Return the configuration of a method in `WISHES`, with some keys changed."""
    return CalibrationConfig(method=method, **{**WISHES[method], **keys})  # type: ignore[arg-type]


def evidence(seed: int, n: int = 300, tied: bool = False, m: int = 40) -> CalibrationSample:
    """Return normal rows, anomalies with mostly higher scores, and their weight."""
    rng = np.random.default_rng(seed)
    normal, anomalies = rng.gumbel(size=n), 4 + 2 * rng.normal(size=m)
    digits = 1 if tied else 15
    return CalibrationSample.from_scores(
        np.round(normal, digits),
        np.round(anomalies, digits),
        rng.exponential(size=m),
        weight=0.7,
        rows_per_day=100,
    )


def chosen(method: str, given_: CalibrationSample, **keys: Any) -> Calibration:
    """Choose a threshold by a method."""
    return choose_threshold(given_, wish(method, **keys))


@pytest.fixture(autouse=True, scope="module")
def few_refits() -> Iterator[None]:
    """Test the fit of a tail with 19 samples, in modules that import this fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail_methods, "REFITS", 19)
        yield
