"""Provide a small table as an array and as a frame, and an estimator fitted to each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anomaly_vae.estimators.tabular import TabularVAEDetector
from tests.support.estimators import tiny


@pytest.fixture(scope="module", name="X")
def numbers() -> np.ndarray:
    """Two correlated columns and one alone, (300, 3)."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 1))
    return np.hstack([z, 2 * z + 0.1 * rng.normal(size=(300, 1)), rng.normal(5, 3, (300, 1))])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Every type of column, with gaps, (200, 5)."""
    rng = np.random.default_rng(1)
    amount = rng.lognormal(3, 1, 200)
    amount[::17] = np.nan
    return pd.DataFrame(
        {
            "amount": amount,
            "online": rng.random(200) < 0.3,
            "country": rng.choice(["de", "fr", "it"], 200),
            "at": pd.Timestamp("2024-03-01") + pd.to_timedelta(rng.random(200) * 60, "D"),
            "items": rng.poisson(3, 200),
        }
    )


@pytest.fixture(scope="module")
def on_array(X: np.ndarray) -> TabularVAEDetector:
    return tiny(epochs=20).fit(X)


@pytest.fixture(scope="module")
def on_frame(frame: pd.DataFrame) -> TabularVAEDetector:
    return tiny().fit(frame)
