"""Verify the guarantee of every threshold method on simulated scores with known error rates.

Scores of normal rows and anomalies are drawn from known distributions, so the exact rate above any
threshold is known, and no test sample is needed. A guarantee on the average over calibrations is
compared with the mean rate, a guarantee on every single threshold with the fraction of thresholds
that violate it, and a guarantee on an interval with the fraction of intervals that miss the true
value. Methods without a guarantee are measured as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from anomaly_vae.calibration.conformal import Calibration, discovery_level
from anomaly_vae.calibration.contamination_test import REPORT_LEVEL, contamination_test
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.tail_methods import fit_tail
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.converters import Levels
from benchmarks.common import Ledger, Options, environment, markdown_table

Scores = NDArray[np.float64]

SEEDS = 1
TRIALS, SHORT_TRIALS = 4_000, 400
"""Number of calibrations per setting, in the full and the short form; slow methods do fewer."""
CHANCE_ERRORS = 3
"""Number of standard errors above the guarantee that count as chance."""
DISTRIBUTIONS: dict[str, Any] = {
    "Gumbel": stats.gumbel_r(),
    "normal": stats.norm(),
    "exponential": stats.expon(),
    "Student, 3 degrees": stats.t(3),
    "with ties": stats.geom(0.02),
}
"""Distributions of normal scores."""
NORMAL_SCORES = DISTRIBUTIONS["Gumbel"]
"""Normal scores in settings where the distribution does not matter."""
ANOMALY_SCORES, FAR_ANOMALY_SCORES = stats.norm(5, 1.5), stats.norm(20, 1)
"""Scores of anomalies with AUROC 0.98 against `NORMAL_SCORES`, and of perfectly separated ones."""

KEPT, WITHIN_CHANCE, ABOVE, NO_PROMISE = "kept", "above, as chance explains", "above", "no promise"
VERDICTS = (KEPT, WITHIN_CHANCE, ABOVE, NO_PROMISE)
HEADINGS = ("setting", "calibrations", "promised, at most", "mean ± s.e.", "")
SUMMARY_HEADINGS = ("method", *VERDICTS)


@dataclass(frozen=True, eq=False)
class SettingResult:
    """Results of all calibrations in one setting."""

    setting: str
    """Description of the setting and the measured value."""
    values: list[float]
    """Measured value of each calibration."""
    promised: float = math.nan
    """Upper bound that the method guarantees for the mean; NaN if it guarantees nothing."""

    def to_row(self) -> dict[str, float]:
        """Return the number of calibrations, the bound, the mean and its standard error."""
        mean, count = float(np.mean(self.values)), len(self.values)
        error = float(np.std(self.values) / math.sqrt(count))
        return {"trials": count, "promised": self.promised, "mean": mean, "error": error}


Results = Iterator[SettingResult]


def _config(method: str, **keys: Any) -> CalibrationConfig:
    return CalibrationConfig.model_validate({"method": method, **keys})


def _draw(distribution: Any, n: int, rng: np.random.Generator) -> Scores:
    return np.asarray(distribution.rvs(n, random_state=rng), np.float64)


def _exact_rates(
    distribution: Any, n: int, config: CalibrationConfig, rng: Any, trials: int
) -> list[float]:
    """Compute the exact false positive rate of repeated calibrations on ``n`` rows."""
    choices = (
        choose_threshold(CalibrationSample.from_scores(_draw(distribution, n, rng)), config)
        for _ in range(trials)
    )
    return [float(distribution.sf(choice.threshold)) for choice in choices]


# ---------------------------------------------------------------- normal rows alone


def conformal(rng: np.random.Generator, trials: int) -> Results:
    """Measure the mean rate of conformal thresholds, and how often a single one exceeds alpha."""
    for name, distribution in DISTRIBUTIONS.items():
        for n, alpha in ((99, 0.05), (500, 0.01)):
            rates = _exact_rates(distribution, n, _config("conformal", alpha=alpha), rng, trials)
            yield SettingResult(f"{name}: rate, {n} rows, α = {alpha:g}", rates, alpha)
    above = [float(rate > alpha) for rate in rates]
    yield SettingResult("the last one: how often a single threshold is above α", above)


def certified(rng: np.random.Generator, trials: int) -> Results:
    """Measure how often certified thresholds exceed alpha; at most delta is guaranteed."""
    for name, distribution in DISTRIBUTIONS.items():
        for n, alpha, delta in ((99, 0.05, 0.05), (500, 0.01, 0.1)):
            config = _config("certified", alpha=alpha, delta=delta)
            violated = [
                float(rate > alpha) for rate in _exact_rates(distribution, n, config, rng, trials)
            ]
            yield SettingResult(
                f"{name}: how often above α, {n} rows, α = {alpha:g}", violated, delta
            )


def quantile(rng: np.random.Generator, trials: int) -> Results:
    """Measure the mean rate of plain quantiles, which guarantee nothing."""
    for n, alpha in ((101, 0.05), (501, 0.01)):
        rates = _exact_rates(NORMAL_SCORES, n, _config("quantile", alpha=alpha), rng, trials)
        yield SettingResult(f"rate, {n} rows, α = {alpha:g}", rates)


def evt(rng: np.random.Generator, trials: int) -> Results:
    """Fit tails directly: the goodness-of-fit test is slow and does not change the threshold."""
    for name, distribution in DISTRIBUTIONS.items():
        if name != "with ties":
            samples = np.sort(distribution.rvs((max(trials // 10, 1), 2_000), random_state=rng))
            rates = distribution.sf([fit_tail(sample, 0.1).threshold(1e-4) for sample in samples])
            yield SettingResult(
                f"{name}: rate / α, 2,000 rows, α = 0.0001", (rates / 1e-4).tolist()
            )


# ---------------------------------------------------------------- traffic and labels


def budget(rng: np.random.Generator, trials: int) -> Results:
    """Measure the mean number of alerts per 1,000 rows of traffic with a budget."""
    for share, per_1000 in ((0.0, 20), (0.02, 20), (0.02, 5)):
        alerts = []
        for _ in range(trials):
            n_anomalies = rng.binomial(400, share)
            sample = _labelled_sample(400 - n_anomalies, n_anomalies, rng)
            threshold = choose_threshold(sample, _config("budget", per_1000=per_1000)).threshold
            normal, anomalies = NORMAL_SCORES.sf(threshold), ANOMALY_SCORES.sf(threshold)
            alerts.append(1_000 * float((1 - share) * normal + share * anomalies))
        yield SettingResult(
            f"alerts per 1,000 of {per_1000}, {share:.0%} anomalies", alerts, per_1000
        )


def cost(rng: np.random.Generator, trials: int) -> Results:
    """Measure how often the 95% interval misses the true cost."""

    def truth(threshold: float) -> float:
        missed = 100 * (100 * ANOMALY_SCORES.cdf(threshold) + 3 * ANOMALY_SCORES.sf(threshold))
        return float((2_000 * 8 * NORMAL_SCORES.sf(threshold) + missed) * 1_000 / 2_100)

    costs = {"missed": 100, "review": 3, "blocked": 5}
    missed = _interval_misses(_config("cost", costs=costs), "cost", truth, rng, trials)
    yield SettingResult("how often the 95% interval misses the cost", missed)


def fbeta(rng: np.random.Generator, trials: int) -> Results:
    """Measure how often the 95% interval misses the true F-score."""

    def truth(threshold: float) -> float:
        caught = 100 * ANOMALY_SCORES.sf(threshold)
        return float(2 * caught / (caught + 2_000 * NORMAL_SCORES.sf(threshold) + 100))

    missed = _interval_misses(_config("fbeta"), "fbeta", truth, rng, trials)
    yield SettingResult("how often the 95% interval misses the F-score", missed)


def recall_at_precision(rng: np.random.Generator, trials: int) -> Results:
    """Measure how often the 95% interval misses the true precision."""

    def truth(threshold: float) -> float:
        caught = 100 * ANOMALY_SCORES.sf(threshold)
        return float(caught / (caught + 2_000 * NORMAL_SCORES.sf(threshold)))

    config = _config("recall_at_precision", min_precision=0.6)
    missed = _interval_misses(config, "precision", truth, rng, trials)
    yield SettingResult("how often the 95% interval misses the precision", missed)


def _interval_misses(
    config: CalibrationConfig,
    metric: str,
    truth: Callable[[float], float],
    rng: np.random.Generator,
    trials: int,
) -> list[float]:
    """Return, per calibration on 2,000 normal rows and 100 anomalies, 1 if an interval misses."""
    missed = []
    for _ in range(max(trials // 20, 1)):
        choice = choose_threshold(_labelled_sample(2_000, 100, rng), config)
        low, high = choice.figures[f"{metric}_interval"]
        missed.append(float(not low <= truth(choice.threshold) <= high))
    return missed


def _labelled_sample(n: int, m: int, rng: np.random.Generator) -> CalibrationSample:
    return CalibrationSample.from_scores(
        _draw(NORMAL_SCORES, n, rng), _draw(ANOMALY_SCORES, m, rng)
    )


# ---------------------------------------------------------------- a whole batch


def fdr(rng: np.random.Generator, trials: int) -> Results:
    """Measure the false discovery rate of batches, with and without groups."""
    for grouped in (False, True):
        for q, n_anomalies in ((0.1, 10), (0.1, 100), (0.3, 0)):
            shares = [
                _false_discovery_share(grouped, q, n_anomalies, rng) for _ in range(trials // 4)
            ]
            by = "by groups, " if grouped else ""
            yield SettingResult(
                f"{by}false share of flags, {n_anomalies} of 500 anomalies", shares, q
            )


def _false_discovery_share(
    grouped: bool, q: float, n_anomalies: int, rng: np.random.Generator
) -> float:
    """Return the fraction of normal rows among the flagged rows of one batch.

    The batch has 500 rows in two groups; each group is calibrated on 2,000 rows.
    """
    scales, batch = np.array([1.0, 3.0]) if grouped else np.ones(2), rng.integers(2, size=500)
    p_values = np.empty(500)
    for group_index, scale in enumerate(scales):
        inside = batch == group_index
        calibration = Calibration("conformal", 0.01, 0, np.sort(scale * rng.gumbel(size=2_000)))
        scores = scale * rng.gumbel(size=500)
        scores[:n_anomalies] += 9 * scale
        p_values[inside] = calibration.p_values(scores)[inside]
    values, counts = np.unique(p_values, return_counts=True)
    flags = p_values <= discovery_level(values, counts, q)
    return float(flags[n_anomalies:].sum() / max(flags.sum(), 1))


# ---------------------------------------------------------------- groups

SHARES = {"wide": 0.3, "narrow": 0.6, "rare": 0.02, "(missing)": 0.08}
SCALES = {"wide": 3.0, "narrow": 1.0, "rare": 2.0, "(missing)": 2.0}
"""Fraction of rows in each group, and scale of the scores in it."""


def mondrian(rng: np.random.Generator, trials: int) -> Results:
    """Measure thresholds by group: mean rates (conformal) and violations (certified)."""
    for method, keys in (("conformal", {}), ("certified", {"delta": 0.1})):
        config = _config(method, alpha=0.02, group_by="kind", **keys)
        calibrations = [_group_rates(config, rng) for _ in range(trials // 2)]
        for level in ("wide", "narrow"):
            rates = [group_rates[level] for group_rates in calibrations]
            if method == "certified":
                above = [float(rate > 0.02) for rate in rates]
                yield SettingResult(f"certified: how often above α, {level}", above, 0.1)
                continue
            yield SettingResult(f"rate, {level}", rates, 0.02)
            yield SettingResult(
                f"the same without groups, {level}",
                [group_rates[f"all, {level}"] for group_rates in calibrations],
            )
        if method == "conformal":
            yield SettingResult(
                "rate, rare: too few rows of its own",
                [group_rates["rare"] for group_rates in calibrations],
            )
            yield SettingResult(
                "rate, missing", [group_rates["(missing)"] for group_rates in calibrations]
            )
            yield SettingResult(
                "rate of all rows: at most twice α",
                [group_rates["any"] for group_rates in calibrations],
                0.04,
            )


def _group_rates(config: CalibrationConfig, rng: np.random.Generator) -> dict[str, float]:
    """Compute the exact rates of one calibration on 1,000 rows at α = 0.02.

    Returns:
        The rate of each group with thresholds by group, the rate of each group with one common
        threshold ("all, GROUP"), and the rate of all rows ("any").
    """
    names = tuple(SHARES)
    codes = rng.choice(len(names), 1_000, p=list(SHARES.values())).astype(np.int32)
    scores = np.array(list(SCALES.values()))[codes] * rng.gumbel(size=1_000)
    known = np.where(codes == names.index("(missing)"), -1, codes).astype(np.int32)
    choice = choose_threshold(
        CalibrationSample.from_scores(scores, levels=Levels(known, names)), config
    )
    assert choice.groups, "the configuration has groups"
    thresholds = {name: choice.groups.by_level.get(name, choice).threshold for name in names}
    rates = {name: float(NORMAL_SCORES.sf(thresholds[name] / SCALES[name])) for name in names}
    plain = {
        f"all, {name}": float(NORMAL_SCORES.sf(choice.threshold / SCALES[name])) for name in names
    }
    return {**rates, **plain, "any": sum(SHARES[name] * rates[name] for name in names)}


# ---------------------------------------------------------------- weights


def weighted(rng: np.random.Generator, trials: int) -> Results:
    """Measure thresholds weighted by a density ratio.

    Calibration rows x are uniform on [0, 1] with scores 4x + Exp(1). Traffic has the density
    1 + slope (2x − 1) on the same interval.
    """
    x = (np.arange(2_000) + 0.5) / 2_000
    for n, alpha, slope in ((500, 0.05, 0.9), (2_000, 0.01, 0.9), (2_000, 0.01, -0.9)):
        rates, plain = [], []
        for _ in range(trials // 4):
            positions = rng.random(n)
            scores, ratios = (
                4 * positions + rng.exponential(size=n),
                1 + slope * (2 * positions - 1),
            )
            samples = (
                CalibrationSample.from_scores(scores, weights=ratios),
                CalibrationSample.from_scores(scores),
            )
            for results, sample in zip((rates, plain), samples, strict=True):
                threshold = choose_threshold(sample, _config("conformal", alpha=alpha)).threshold
                tail = np.exp(-np.maximum(threshold - 4 * x, 0))
                results.append(float(((1 + slope * (2 * x - 1)) * tail).mean()))
        where = "higher" if slope > 0 else "lower"
        yield SettingResult(
            f"rate in traffic, {where} scores, {n:,} rows, α = {alpha:g}", rates, alpha
        )
        yield SettingResult("the same without weights", plain)


# ---------------------------------------------------------------- contamination

ROWS, ALPHA = 2_000, 0.01
"""Number of calibration rows, and target false positive rate, with contamination."""


def trim(rng: np.random.Generator, trials: int) -> Results:
    """Measure rates with contaminated calibration rows, with and without trimming."""
    cases = [("no", ANOMALY_SCORES, 0.0, trimmed) for trimmed in (0.0, 0.01, 0.05)]
    for kind, distribution in (("near", ANOMALY_SCORES), ("far", FAR_ANOMALY_SCORES)):
        cases += [
            (kind, distribution, share, part * share)
            for share in (0.01, 0.05)
            for part in (0, 0.5, 1)
        ]
    for kind, distribution, share, trimmed in cases:
        rates = [_contaminated_rates(distribution, share, trimmed, rng) for _ in range(trials // 4)]
        setting = f"{share:.0%} {kind}, trim {trimmed:g}" if share else f"none, trim {trimmed:g}"
        promised = ALPHA if distribution is FAR_ANOMALY_SCORES else rates[0][2]
        yield SettingResult(
            f"{setting}: rate of normal rows", [normal for normal, _, _ in rates], promised
        )
        if share:
            yield SettingResult(
                f"{setting}: anomalies found", [anomalies for _, anomalies, _ in rates]
            )


def _contaminated_rates(
    distribution: Any, share: float, trimmed: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Return the rates of normal rows and anomalies, and the reported bound of the former."""
    n_anomalies = round(share * ROWS)
    rows = np.concatenate(
        [_draw(NORMAL_SCORES, ROWS - n_anomalies, rng), _draw(distribution, n_anomalies, rng)]
    )
    config = _config("conformal", alpha=ALPHA, trim_scores=trimmed)
    choice = choose_threshold(CalibrationSample.from_scores(rows), config)
    bound = float(choice.figures.get("alpha_if_clean", ALPHA))
    normal, anomalies = (scores.sf(choice.threshold) for scores in (NORMAL_SCORES, distribution))
    return float(normal), float(anomalies), bound


def contamination(rng: np.random.Generator, trials: int) -> Results:
    """Measure how often the contamination test reports an excess of anomalies."""
    for n, n_held_out in ((2_000, 600), (500, 150)):
        for share in (0.0, 0.01, 0.05, 0.1):
            for in_training_too in (False, True) if share else (False,):
                reported = [
                    _is_reported(n, n_held_out, share, share * in_training_too, rng)
                    for _ in range(trials // 4)
                ]
                where = "everywhere" if in_training_too else "among those that calibrate"
                setting = f"told, {n:,} and {n_held_out} rows, {share:.0%} anomalies"
                promised = math.nan if share and not in_training_too else REPORT_LEVEL
                yield SettingResult(f"{setting} {where}" if share else setting, reported, promised)


def _is_reported(
    n: int, n_held_out: int, share: float, held_out_share: float, rng: np.random.Generator
) -> float:
    calibration = _contaminated_scores(n, share, rng)
    held_out = _contaminated_scores(n_held_out, held_out_share, rng)
    return float(contamination_test(calibration, held_out, calibration).p_value <= REPORT_LEVEL)


def _contaminated_scores(n: int, share: float, rng: np.random.Generator) -> Scores:
    """Draw sorted scores, each of an anomaly with probability ``share``."""
    anomaly = rng.random(n) < share
    return np.sort(np.where(anomaly, _draw(ANOMALY_SCORES, n, rng), _draw(NORMAL_SCORES, n, rng)))


# ---------------------------------------------------------------- the run

METHODS: dict[str, Callable[[np.random.Generator, int], Results]] = {
    "conformal": conformal,
    "certified": certified,
    "quantile": quantile,
    "evt": evt,
    "budget": budget,
    "cost": cost,
    "fbeta": fbeta,
    "recall_at_precision": recall_at_precision,
    "fdr": fdr,
    "group": mondrian,
    "density_ratio": weighted,
    "trim": trim,
    "contamination": contamination,
}
"""Functions of a random generator and a number of calibrations, by method."""
KEYS = ("method", "setting")


def run(options: Options) -> None:
    """Run the missing methods and write the tables."""
    ledger = Ledger(options.result_path("thresholds.csv"), KEYS)
    trials = SHORT_TRIALS if options.short else TRIALS
    for number, (method, simulate) in enumerate(METHODS.items()):
        if options.wants(method) and method not in set(ledger.rows["method"]):
            for result in simulate(np.random.default_rng(number), trials):
                ledger.add((method, result.setting), result.to_row())
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("thresholds.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def report(rows: pd.DataFrame) -> str:
    """Tabulate the verdicts by method, then every setting of each method."""
    methods = [(name, part) for name, part in rows.groupby("method", sort=False)]
    parts = [
        markdown_table(SUMMARY_HEADINGS, [_verdict_counts(name, part) for name, part in methods])
    ]
    for name, part in methods:
        lines = [_setting_row(row) for row in part.itertuples()]
        parts.append(f"{name}\n\n{markdown_table(HEADINGS, lines)}")
    return "\n".join(parts)


def verdict(row: Any) -> str:
    """Judge whether a guarantee holds, allowing for chance."""
    if math.isnan(row.promised):
        return NO_PROMISE
    if row.mean <= row.promised:
        return KEPT
    return WITHIN_CHANCE if row.mean <= row.promised + CHANCE_ERRORS * row.error else ABOVE


def _verdict_counts(name: Any, rows: pd.DataFrame) -> tuple[str, ...]:
    verdicts = [verdict(row) for row in rows.itertuples()]
    return (str(name), *(str(verdicts.count(label)) for label in VERDICTS))


def _setting_row(row: Any) -> tuple[str, ...]:
    promised = "" if math.isnan(row.promised) else f"{row.promised:.4g}"
    mean = f"{row.mean:.4g} ± {row.error:.2g}"
    return row.setting, f"{row.trials:,.0f}", promised, mean, verdict(row)
