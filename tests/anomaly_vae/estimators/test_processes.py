"""Fits in forked processes and in threads; `test_conventions` has joblib's processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone

from tests.support.estimators import tiny
from tests.support.paths import ROOT

FORK = """
import multiprocessing, sys
import numpy as np
import torch
from anomaly_vae import ImageVAEDetector, TabularVAEDetector

rng = np.random.default_rng(0)
rows, scans = rng.normal(size=(400, 4)), rng.uniform(size=(40, 16, 16))
scan = dict(size=16, latent_dim=2, hidden_dim=8, network="dense", epochs=1, alpha=0.2)

def fit(kind, arguments):
    if kind == "sample":
        return float(fitted.sample(100_000).mean())
    if kind == "image":
        return ImageVAEDetector(**scan, **arguments).fit(scans).offset_
    return TabularVAEDetector(preset="fast", epochs=2, **arguments).fit(rows).offset_

fitted = TabularVAEDetector(preset="fast", epochs=2).fit(rows)
torch.ones(10**7).sum()  # starts the team of torch's own OpenMP library
for kind, arguments in (
    ("table", {"prior": "standard"}), ("table", {"threads": 2}), ("sample", {}), ("image", {}),
):
    before = fit(kind, arguments)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.apply_async(fit, (kind, arguments)).get(timeout=60)
    assert np.isclose(before, found, rtol=1e-4), (kind, arguments, before, found)
print("done")
"""
"""A script that fits in a child what it has fitted in the parent."""


@pytest.mark.slow
def test_a_fit_in_a_forked_child_ends() -> None:
    """The number of threads is left to OpenMP here, as most users do."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True,
        env={**environment, "PYTHONPATH": str(ROOT)}, timeout=110, check=False,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(200, 3))


def test_fits_in_threads_give_what_a_fit_alone_gives(rows: NDArray[np.float64]) -> None:
    alone = tiny().fit(rows).offset_
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda d: d.fit(rows).offset_, [clone(tiny()) for _ in range(2)]))
    assert found == [alone, alone]
