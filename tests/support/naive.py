"""Implement the model and the calibration naively, as references for the fast implementations.

Everything is plain Python in float64, one row and one number at a time, written from the formulas;
nothing is imported from the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Vector = list[float]

UNIFORM_SHARE = 1e-3
LOGIT_BOUND = 15.0
LOG_VAR_LOW, LOG_VAR_HIGH = -10.0, 6.0


# ---------------------------------------------------------------- densities


def log_normal(x: float, mean: float, variance: float) -> float:
    return -((x - mean) ** 2) / (2 * variance) - math.log(math.sqrt(2 * math.pi * variance))


def log_student_t(x: float, mean: float, scale: float, df: float) -> float:
    norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2)
    norm -= math.log(math.sqrt(df * math.pi) * scale)
    return norm - (df + 1) / 2 * math.log(1 + ((x - mean) / scale) ** 2 / df)


def log_bernoulli(x: float, logit: float) -> float:
    return -math.log(1 + math.exp(-logit if x == 1 else logit))


def log_categorical(code: int, logits: Sequence[float]) -> float:
    """Return the log probability of a code; ``logits`` has one entry per level of the column."""
    softmax = math.exp(logits[code]) / sum(math.exp(logit) for logit in logits)
    return math.log((1 - UNIFORM_SHARE) * softmax + UNIFORM_SHARE / len(logits))


def kl_to_standard(mean: Sequence[float], log_var: Sequence[float]) -> float:
    """Compute Σ ½ (μ² + σ² − 1 − log σ²), the KL divergence to the standard normal, in nats."""
    total = 0.0
    for m, v in zip(mean, log_var, strict=True):
        total += 0.5 * (m * m + math.exp(v) - 1 - v)
    return total


def log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


# ---------------------------------------------------------------- networks


def linear(x: Sequence[float], weight: Sequence[Vector], bias: Sequence[float]) -> Vector:
    """Compute W x + b."""
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True))
        for row, b in zip(weight, bias, strict=True)
    ]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mlp(x: Vector, weights: Mapping[str, Any], prefix: str, depth: int) -> Vector:
    """Compute a network of ``depth`` SiLU layers with a linear skip connection."""
    y = linear(x, weights[f"{prefix}.skip.weight"], weights[f"{prefix}.skip.bias"])
    for layer in range(depth):
        name = f"{prefix}.hidden.{layer}"
        x = [silu(v) for v in linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])]
    if depth:
        out = weights[f"{prefix}.out.weight"]
        y = [a + b for a, b in zip(y, linear(x, out, [0.0] * len(out)), strict=True)]
    return y


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class NaiveVAE:
    """A tabular VAE evaluated on one row; ``weights`` is its state dict as nested lists."""

    weights: Mapping[str, Any]
    n_numeric: int
    n_binary: int
    n_levels: tuple[int, ...]
    depth: int
    variance_floor: float
    student_t: bool

    def features(self, x: Vector) -> Vector:
        """Return the values, the one-hot levels without code 0, and the missing mask."""
        out: Vector = []
        for value in x[: self.n_numeric + self.n_binary]:
            out.append(0.0 if math.isnan(value) else squashed(value))
        for code in x[self.n_numeric + self.n_binary :]:
            for level in range(1, max(self.n_levels)):
                out.append(1.0 if code == level else 0.0)
        for value in x:
            out.append(1.0 if math.isnan(value) else 0.0)
        return out

    def posterior(self, x: Vector) -> tuple[Vector, Vector]:
        out = mlp(self.features(x), self.weights, "encoder.network", self.depth)
        half = len(out) // 2
        return out[:half], [min(max(v, LOG_VAR_LOW), LOG_VAR_HIGH) for v in out[half:]]

    def log_prob(self, x: Vector, z: Vector) -> Vector:
        """Return log p(x_f|z) for every column f, in nats; 0 for a missing value."""
        out = mlp(z, self.weights, "decoder.network", self.depth)
        n, widest = self.n_numeric, max(self.n_levels, default=0)
        means, raws, rest = out[:n], out[n : 2 * n], out[2 * n :]
        bits, levels = rest[: self.n_binary], rest[self.n_binary :]
        nats: Vector = []
        for f, value in enumerate(x):
            if math.isnan(value):
                nats.append(0.0)
            elif f < n:
                nats.append(self.log_numeric(f, value, means[f], raws[f]))
            elif f < n + self.n_binary:
                nats.append(log_bernoulli(value, bounded(bits[f - n])))
            else:
                c = f - n - self.n_binary
                mine = levels[c * widest : c * widest + self.n_levels[c]]
                nats.append(log_categorical(int(value), [bounded(logit) for logit in mine]))
        return nats

    def log_numeric(self, column: int, x: float, mean: float, raw: float) -> float:
        low = math.log(self.variance_floor)
        variance = math.exp(low + softplus(raw - low))
        if not self.student_t:
            return log_normal(x, mean, variance)
        df = 2 + softplus(self.weights["likelihood.raw_df"][column])
        return log_student_t(x, mean, math.sqrt(variance), df)

    def draw(self, x: Vector, noise: Vector) -> Vector:
        """Compute z = μ + σ·noise."""
        mean, log_var = self.posterior(x)
        return [m + math.exp(v / 2) * e for m, v, e in zip(mean, log_var, noise, strict=True)]

    def elbo(self, x: Vector, noise: Sequence[Vector]) -> float:
        """Compute the mean of log p(x|z) over the draws, minus the KL divergence in closed form."""
        reconstruction = sum(sum(self.log_prob(x, self.draw(x, e))) for e in noise) / len(noise)
        return reconstruction - kl_to_standard(*self.posterior(x))

    def importance_weighted(self, x: Vector, noise: Sequence[Vector]) -> float:
        """Compute log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x)."""
        mean, log_var = self.posterior(x)
        log_w = []
        for e in noise:
            z = self.draw(x, e)
            value = sum(self.log_prob(x, z))
            for z_l, m, v in zip(z, mean, log_var, strict=True):
                value += log_normal(z_l, 0.0, 1.0) - log_normal(z_l, m, math.exp(v))
            log_w.append(value)
        return log_sum_exp(log_w) - math.log(len(noise))

    def reconstruction(self, x: Vector) -> float:
        """Compute log p(x|z) at the posterior mean."""
        mean, _ = self.posterior(x)
        return sum(self.log_prob(x, mean))


def squashed(x: float) -> float:
    """Return x within ±10; beyond, replace the excess e over 10 with log(1 + e)."""
    if abs(x) <= 10:
        return x
    return math.copysign(10 + math.log(1 + abs(x) - 10), x)


def bounded(logit: float) -> float:
    return LOGIT_BOUND * math.tanh(logit / LOGIT_BOUND)


# ---------------------------------------------------------------- calibration


def p_value(score: float, calibration: Sequence[float]) -> float:
    """Return the fraction of calibration scores, plus the row's own, that are at least as high."""
    if math.isnan(score):
        score = math.inf
    reach = 1
    for other in calibration:
        if other >= score:
            reach += 1
    return reach / (len(calibration) + 1)


def threshold(calibration: Sequence[float], alpha: float) -> float | None:
    """Find by counting the smallest calibration score above which every score has p ≤ alpha."""
    found = None
    for candidate in calibration:
        above = sum(other > candidate for other in calibration)
        enough = (1 + above) / (len(calibration) + 1) <= alpha
        if enough and (found is None or candidate < found):
            found = candidate
    return found


# ---------------------------------------------------------------- calibration


def weighted_p_value(scores: Sequence[float], weights: Sequence[float], score: float) -> float:
    """Compute (Σ w_i 1{s_i ≥ s} + max w) / (Σ w_i + max w)."""
    reaching = sum(w for s, w in zip(scores, weights, strict=True) if s >= score)
    return (reaching + max(weights)) / (sum(weights) + max(weights))
