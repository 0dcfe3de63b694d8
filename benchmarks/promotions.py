"""Measure how often the promotion rule refuses challengers as good as the champion, or worse.

No model is fitted; scores are simulated. Both models see the same signal, each with a little noise
of its own. A worse challenger scores the anomalies lower by a known amount.
"""

from __future__ import annotations

import numpy as np

from anomaly_vae.config import PromotionConfig
from anomaly_vae.evaluation.comparison import Change, metric_change
from benchmarks.common import Options, environment, markdown_table

SEEDS = 200
ROWS, ANOMALIES = 2_000, (20, 100)
"""Number of test rows, and the numbers of anomalies among them."""
SEPARATION = 3.0
"""Mean difference between the signals of anomalies and normal rows, in standard deviations."""
LOSSES = (0.0, 0.25, 0.5, 1.0)
"""Amounts by which the challenger scores anomalies lower, in standard deviations."""
POLICIES: dict[str, dict[str, float | str]] = {
    "worse": {},
    "worse, tolerance .05": {"tolerance": 0.05},
    "no_worse, tolerance .05": {"tolerance": 0.05, "proof": "no_worse"},
    "no_worse, tolerance .1": {"tolerance": 0.1, "proof": "no_worse"},
}
"""Settings of the promotion rule, by the heading of their table column."""


def run(options: Options) -> None:
    """Print the fraction of challengers that each policy refuses."""
    lines = []
    for anomalies in ANOMALIES:
        for loss in LOSSES:
            changes = [simulate_change(anomalies, loss, seed) for seed in range(options.seeds)]
            mean_change = f"{np.mean([change.value for change in changes]):+.3f}"
            lower = np.mean([change.value < 0 for change in changes])
            shares = [
                np.mean([is_refused(change, **policy) for change in changes])
                for policy in POLICIES.values()
            ]
            cells = [f"{share:.3f}" for share in (lower, *shares)]
            lines.append([str(anomalies), mean_change, *cells])
    print(markdown_table(["anomalies", "difference", "if lower", *POLICIES], lines))
    print(f"\n{environment()}")


def simulate_change(anomalies: int, loss: float, seed: int) -> Change:
    """Simulate a comparison by average precision, with a 95% interval of the difference."""
    generator = np.random.default_rng(seed)
    anomaly = np.arange(ROWS) < anomalies
    signal = generator.standard_normal(ROWS) + SEPARATION * anomaly
    old, new = signal + generator.standard_normal((2, ROWS)) / 2
    change = metric_change(old, new - loss * anomaly, anomaly, "average_precision", 0.95)
    assert change, "there are rows of both kinds"
    return change


def is_refused(change: Change, **settings: float | str) -> bool:
    """Return whether the promotion rule refuses a challenger with this change."""
    policy = PromotionConfig.model_validate(settings)
    bound = change.high if policy.proof == "worse" else change.low
    return bound < -policy.tolerance
