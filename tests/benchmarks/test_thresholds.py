"""Check that the results behind docs/thresholds.md stay within their bounds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from anomaly_vae.types import Method
from benchmarks.thresholds import (
    ABOVE,
    KEPT,
    METHODS,
    NO_PROMISE,
    SHORT_TRIALS,
    WITHIN_CHANCE,
    SettingResult,
    verdict,
)

KNOWN: dict[str, dict[str, tuple[float, float]]] = {
    "conformal": {"the last one: how often a single threshold is above α": (0.3, 0.55)},
    "quantile": {"rate, 101 rows, α = 0.05": (0.051, 0.066)},
    "evt": {f"{law}: rate / α, 2,000 rows, α = 0.0001": (0.5, 6)
            for law in ("Gumbel", "normal", "exponential", "Student, 3 degrees")},
    "cost": {"how often the 95% interval misses the cost": (0, 0.25)},
    "fbeta": {"how often the 95% interval misses the F-score": (0, 0.25)},
    "recall_at_precision": {"how often the 95% interval misses the precision": (0, 0.25)},
    "group": {"the same without groups, wide": (0.05, 0.07),
              "the same without groups, narrow": (0, 0.001)},
    "density_ratio": {"the same without weights": (0.005, 0.08)},
    "trim": {"5% near, trim 0: anomalies found": (0.1, 0.25),
             "5% near, trim 0.025: anomalies found": (0.45, 0.62),
             "5% near, trim 0.025: rate of normal rows": (0.005, 0.01),
             "5% near, trim 0.05: rate of normal rows": (0.015, 0.03)},
    "contamination": {
        "told, 2,000 and 600 rows, 1% anomalies among those that calibrate": (0, 0.25),
        "told, 2,000 and 600 rows, 5% anomalies among those that calibrate": (0.9, 1),
        "told, 500 and 150 rows, 5% anomalies among those that calibrate": (0.1, 0.45),
        "told, 500 and 150 rows, 10% anomalies among those that calibrate": (0.7, 1)},
}  # fmt: skip
"""Range of the mean, by method and setting, where no guarantee bounds it or the bound is loose."""


def row(line: SettingResult) -> SimpleNamespace:
    return SimpleNamespace(**line.to_row())


def test_every_method_is_counted() -> None:
    assert set(Method.__args__) < set(METHODS)  # type: ignore[attr-defined]
    assert set(KNOWN) < set(METHODS)


def test_a_verdict_allows_for_chance_and_no_more() -> None:
    noise = [0.0, 0.2] * 50
    lines = [
        SettingResult("a", noise, 0.11),
        SettingResult("b", noise, 0.08),
        SettingResult("c", noise, 0.05),
        SettingResult("d", noise),
    ]
    assert [verdict(row(line)) for line in lines] == [KEPT, WITHIN_CHANCE, ABOVE, NO_PROMISE]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_promises_are_kept_and_what_promises_nothing_is_where_it_was(method: str) -> None:
    """Run 400 calibrations per setting, fewer for slow methods, with a fixed seed."""
    lines = list(METHODS[method](np.random.default_rng(0), SHORT_TRIALS))
    broken = [line.setting for line in lines if verdict(row(line)) == ABOVE]
    assert not broken
    means = {line.setting: line.to_row()["mean"] for line in lines}
    for setting, (low, high) in KNOWN.get(method, {}).items():
        assert low <= means[setting] <= high, setting
