"""How often a challenger is refused that is as good as the champion, or worse by so much.

Both models see the same signal under a little noise of their own. A worse challenger lifts
anomalies less. No model is fitted: scores are drawn.
"""

from __future__ import annotations

import numpy as np

from anomaly_vae.config import PromotionConfig
from anomaly_vae.evaluation.comparison import Change, metric_change
from benchmarks.common import Options, environment, markdown

SEEDS = 200
ROWS, ANOMALIES = 2_000, (20, 100)
LOSSES = (0.0, 0.25, 0.5, 1.0)
"""Of the three deviations that anomalies stand out by."""
POLICIES: dict[str, dict[str, float | str]] = {
    "worse": {},
    "worse, tolerance .05": {"tolerance": 0.05},
    "no_worse, tolerance .05": {"tolerance": 0.05, "proof": "no_worse"},
    "no_worse, tolerance .1": {"tolerance": 0.1, "proof": "no_worse"},
}


def run(options: Options) -> None:
    """Print the share refused."""
    lines = []
    for anomalies in ANOMALIES:
        for loss in LOSSES:
            changes = [drawn(anomalies, loss, seed) for seed in range(options.seeds)]
            gained = f"{np.mean([change.value for change in changes]):+.3f}"
            lower = np.mean([change.value < 0 for change in changes])
            shares = [np.mean([refused(c, **keys) for c in changes]) for keys in POLICIES.values()]
            told = [f"{share:.3f}" for share in (lower, *shares)]
            lines.append([str(anomalies), gained, *told])
    print(markdown(["anomalies", "difference", "if lower", *POLICIES], lines))
    print(f"\n{environment()}")


def drawn(anomalies: int, loss: float, seed: int) -> Change:
    """The average precision of both, with the interval of the difference."""
    generator = np.random.default_rng(seed)
    anomaly = np.arange(ROWS) < anomalies
    signal = generator.standard_normal(ROWS) + 3 * anomaly
    old, new = signal + generator.standard_normal((2, ROWS)) / 2
    found = metric_change(old, new - loss * anomaly, anomaly, "average_precision", 0.95)
    assert found, "there are rows of both kinds"
    return found


def refused(change: Change, **keys: float | str) -> bool:
    """By the rule that a challenger be no worse."""
    policy = PromotionConfig.model_validate(keys)
    end = change.high if policy.proof == "worse" else change.low
    return end < -policy.tolerance
