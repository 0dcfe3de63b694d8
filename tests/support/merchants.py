"""Make payments at many merchants, and a model of them."""

from functools import cache

import numpy as np
import pyarrow as pa

from anomaly_vae import TabularVAEDetector
from anomaly_vae.artifacts.bundle import Bundle

FREQUENT, RARE = 10, 150
"""Number of frequent merchants, and of rare ones."""


def payments(rows: int = 600, seed: int = 0) -> pa.Table:
    """Return payments, two in three at frequent merchants, some without a merchant."""
    rng = np.random.default_rng(seed)
    rare = rng.random(rows) < 1 / 3
    merchants = np.where(rare, FREQUENT + rng.integers(0, RARE, rows), rng.integers(0, 10, rows))
    names = [f"m{merchant}" if i % 50 else None for i, merchant in enumerate(merchants)]
    return pa.table({"amount": rng.lognormal(3, 1, rows), "merchant": pa.array(names)})


@cache
def merchant_detector() -> TabularVAEDetector:
    """Return a detector that was fitted on `payments`, with frequency bands of the merchants."""
    detector = TabularVAEDetector(preset="fast", epochs=3, alpha=0.05, random_state=0)
    return detector.fit(payments())


def merchant_bundle() -> Bundle:
    """Return the bundle of `merchant_detector`."""
    bundle: Bundle = merchant_detector().bundle_
    return bundle
