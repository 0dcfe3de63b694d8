"""What each way to choose a threshold promises, counted where the truth is known.

Scores of normal rows and of anomalies are drawn from known laws, so the rate above a threshold is
known exactly and each calibration is judged by it, not by a test sample. A promise about the
average over calibrations is judged by the mean of the rates, one about the single threshold by how
often it is broken, one about an interval by how often it misses. What promises nothing is measured
all the same.
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
from anomaly_vae.calibration.contamination_test import LEVEL, contamination_test
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.tail_methods import fitted_tail
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config import CalibrationConfig
from anomaly_vae.data.converters import Levels
from benchmarks.common import Ledger, Options, environment, markdown

Scores = NDArray[np.float64]

SEEDS = 1
TRIALS, SHORT_TRIALS = 4_000, 400
"""Calibrations of each setting; of slow methods a tenth."""
ERRORS = 3
"""So many standard errors above what is promised are no more than chance explains."""
LAWS: dict[str, Any] = {
    "Gumbel": stats.gumbel_r(),
    "normal": stats.norm(),
    "exponential": stats.expon(),
    "Student, 3 degrees": stats.t(3),
    "with ties": stats.geom(0.02),
}
NORMAL = LAWS["Gumbel"]
"""Where the law does not matter."""
ODD, FAR = stats.norm(5, 1.5), stats.norm(20, 1)
"""Anomalies beside it: AUROC 0.98, and beyond all normal rows."""

KEPT, CHANCE, ABOVE, NONE = "kept", "above, as chance explains", "above", "no promise"
VERDICTS = (KEPT, CHANCE, ABOVE, NONE)
HEADS = ("setting", "calibrations", "promised, at most", "mean ± s.e.", "")
SUMMARY_HEADS = ("method", *VERDICTS)


@dataclass(frozen=True, eq=False)
class Line:
    """One setting: a figure of each calibration, and what their mean is to be, at most."""

    setting: str
    figures: list[float]
    promised: float = math.nan

    def to_row(self) -> dict[str, float]:
        """What the ledger keeps."""
        mean, count = float(np.mean(self.figures)), len(self.figures)
        error = float(np.std(self.figures) / math.sqrt(count))
        return {"trials": count, "promised": self.promised, "mean": mean, "error": error}


Lines = Iterator[Line]


def _wish(method: str, **keys: Any) -> CalibrationConfig:
    return CalibrationConfig.model_validate({"method": method, **keys})


def _draw(law: Any, n: int, rng: np.random.Generator) -> Scores:
    return np.asarray(law.rvs(n, random_state=rng), np.float64)


def _rates(law: Any, n: int, wish: CalibrationConfig, rng: Any, trials: int) -> list[float]:
    """The exact false positive rate of each of some calibrations on ``n`` rows."""
    chosen = (
        choose_threshold(CalibrationSample.from_scores(_draw(law, n, rng)), wish)
        for _ in range(trials)
    )
    return [float(law.sf(one.threshold)) for one in chosen]


# ---------------------------------------------------------------- normal rows alone


def conformal(rng: np.random.Generator, trials: int) -> Lines:
    for name, law in LAWS.items():
        for n, alpha in ((99, 0.05), (500, 0.01)):
            rates = _rates(law, n, _wish("conformal", alpha=alpha), rng, trials)
            yield Line(f"{name}: rate, {n} rows, α = {alpha:g}", rates, alpha)
    above = [float(rate > alpha) for rate in rates]
    yield Line("the last one: how often a single threshold is above α", above)


def certified(rng: np.random.Generator, trials: int) -> Lines:
    for name, law in LAWS.items():
        for n, alpha, delta in ((99, 0.05, 0.05), (500, 0.01, 0.1)):
            wish = _wish("certified", alpha=alpha, delta=delta)
            broken = [float(rate > alpha) for rate in _rates(law, n, wish, rng, trials)]
            yield Line(f"{name}: how often above α, {n} rows, α = {alpha:g}", broken, delta)


def quantile(rng: np.random.Generator, trials: int) -> Lines:
    for n, alpha in ((101, 0.05), (501, 0.01)):
        rates = _rates(NORMAL, n, _wish("quantile", alpha=alpha), rng, trials)
        yield Line(f"rate, {n} rows, α = {alpha:g}", rates)


def evt(rng: np.random.Generator, trials: int) -> Lines:
    """Tails alone: the goodness of fit would take most of the time and changes no threshold."""
    for name, law in LAWS.items():
        if name != "with ties":
            samples = np.sort(law.rvs((max(trials // 10, 1), 2_000), random_state=rng))
            rates = law.sf([fitted_tail(sample, 0.1).threshold(1e-4) for sample in samples])
            yield Line(f"{name}: rate / α, 2,000 rows, α = 0.0001", (rates / 1e-4).tolist())


# ---------------------------------------------------------------- traffic and labels


def budget(rng: np.random.Generator, trials: int) -> Lines:
    for share, per_1000 in ((0.0, 20), (0.02, 20), (0.02, 5)):
        alerts = []
        for _ in range(trials):
            odd = rng.binomial(400, share)
            found = choose_threshold(
                _mixed(400 - odd, odd, rng), _wish("budget", per_1000=per_1000)
            )
            above = (1 - share) * NORMAL.sf(found.threshold) + share * ODD.sf(found.threshold)
            alerts.append(1_000 * float(above))
        yield Line(f"alerts per 1,000 of {per_1000}, {share:.0%} anomalies", alerts, per_1000)


def cost(rng: np.random.Generator, trials: int) -> Lines:
    def truth(t: float) -> float:
        missed = 100 * (100 * ODD.cdf(t) + 3 * ODD.sf(t))
        return float((2_000 * 8 * NORMAL.sf(t) + missed) * 1_000 / 2_100)

    costs = {"missed": 100, "review": 3, "blocked": 5}
    missed = _missed(_wish("cost", costs=costs), "cost", truth, rng, trials)
    yield Line("how often the 95% interval misses the cost", missed)


def fbeta(rng: np.random.Generator, trials: int) -> Lines:
    def truth(t: float) -> float:
        caught = 100 * ODD.sf(t)
        return float(2 * caught / (caught + 2_000 * NORMAL.sf(t) + 100))

    missed = _missed(_wish("fbeta"), "fbeta", truth, rng, trials)
    yield Line("how often the 95% interval misses the F-score", missed)


def recall_at_precision(rng: np.random.Generator, trials: int) -> Lines:
    def truth(t: float) -> float:
        caught = 100 * ODD.sf(t)
        return float(caught / (caught + 2_000 * NORMAL.sf(t)))

    wish = _wish("recall_at_precision", min_precision=0.6)
    missed = _missed(wish, "precision", truth, rng, trials)
    yield Line("how often the 95% interval misses the precision", missed)


def _missed(
    wish: CalibrationConfig,
    figure: str,
    truth: Callable[[float], float],
    rng: np.random.Generator,
    trials: int,
) -> list[float]:
    """How often a figure's interval does not hold it, on 2,000 normal rows and 100 anomalies."""
    missed = []
    for _ in range(max(trials // 20, 1)):
        found = choose_threshold(_mixed(2_000, 100, rng), wish)
        low, high = found.figures[f"{figure}_interval"]
        missed.append(float(not low <= truth(found.threshold) <= high))
    return missed


def _mixed(n: int, m: int, rng: np.random.Generator) -> CalibrationSample:
    return CalibrationSample.from_scores(_draw(NORMAL, n, rng), _draw(ODD, m, rng))


# ---------------------------------------------------------------- a whole batch


def fdr(rng: np.random.Generator, trials: int) -> Lines:
    for grouped in (False, True):
        for q, odd in ((0.1, 10), (0.1, 100), (0.3, 0)):
            shares = [_false(grouped, q, odd, rng) for _ in range(trials // 4)]
            by = "by groups, " if grouped else ""
            yield Line(f"{by}false share of flags, {odd} of 500 anomalies", shares, q)


def _false(grouped: bool, q: float, odd: int, rng: np.random.Generator) -> float:
    """The share of normal rows among the discoveries in one batch, 4,000 rows calibrating."""
    scales, batch = np.array([1.0, 3.0]) if grouped else np.ones(2), rng.integers(2, size=500)
    p_values = np.empty(500)
    for group, scale in enumerate(scales):
        inside = batch == group
        calibration = Calibration("conformal", 0.01, 0, np.sort(scale * rng.gumbel(size=2_000)))
        scores = scale * rng.gumbel(size=500)
        scores[:odd] += 9 * scale
        p_values[inside] = calibration.p_values(scores)[inside]
    values, counts = np.unique(p_values, return_counts=True)
    flags = p_values <= discovery_level(values, counts, q)
    return float(flags[odd:].sum() / max(flags.sum(), 1))


# ---------------------------------------------------------------- groups

SHARES = {"wide": 0.3, "narrow": 0.6, "rare": 0.02, "(missing)": 0.08}
SCALES = {"wide": 3.0, "narrow": 1.0, "rare": 2.0, "(missing)": 2.0}


def mondrian(rng: np.random.Generator, trials: int) -> Lines:
    for method, keys in (("conformal", {}), ("certified", {"delta": 0.1})):
        wish = _wish(method, alpha=0.02, group_by="kind", **keys)
        found = [_by_group(wish, rng) for _ in range(trials // 2)]
        for level in ("wide", "narrow"):
            rates = [one[level] for one in found]
            if method == "certified":
                above = [float(rate > 0.02) for rate in rates]
                yield Line(f"certified: how often above α, {level}", above, 0.1)
                continue
            yield Line(f"rate, {level}", rates, 0.02)
            yield Line(f"the same without groups, {level}", [one[f"all, {level}"] for one in found])
        if method == "conformal":
            yield Line("rate, rare: too few rows of its own", [one["rare"] for one in found])
            yield Line("rate, missing", [one["(missing)"] for one in found])
            yield Line("rate of all rows: at most twice α", [one["any"] for one in found], 0.04)


def _by_group(wish: CalibrationConfig, rng: np.random.Generator) -> dict[str, float]:
    """The rate of each group, of all rows, and of each without groups: 1,000 rows, α = 0.02."""
    names = tuple(SHARES)
    codes = rng.choice(len(names), 1_000, p=list(SHARES.values())).astype(np.int32)
    scores = np.array(list(SCALES.values()))[codes] * rng.gumbel(size=1_000)
    known = np.where(codes == names.index("(missing)"), -1, codes).astype(np.int32)
    found = choose_threshold(
        CalibrationSample.from_scores(scores, levels=Levels(known, names)), wish
    )
    assert found.groups, "they were asked for"
    by = {name: found.groups.own.get(name, found).threshold for name in names}
    rates = {name: float(NORMAL.sf(by[name] / SCALES[name])) for name in names}
    plain = {f"all, {name}": float(NORMAL.sf(found.threshold / SCALES[name])) for name in names}
    return {**rates, **plain, "any": sum(SHARES[name] * rates[name] for name in names)}


# ---------------------------------------------------------------- weights


def weighted(rng: np.random.Generator, trials: int) -> Lines:
    """Rows x uniform on [0, 1], scores 4x + Exp(1); traffic has density 1 + s (2x − 1) there."""
    x = (np.arange(2_000) + 0.5) / 2_000
    for n, alpha, s in ((500, 0.05, 0.9), (2_000, 0.01, 0.9), (2_000, 0.01, -0.9)):
        rates, plain = [], []
        for _ in range(trials // 4):
            seen = rng.random(n)
            scores, ratios = 4 * seen + rng.exponential(size=n), 1 + s * (2 * seen - 1)
            given = (
                CalibrationSample.from_scores(scores, weights=ratios),
                CalibrationSample.from_scores(scores),
            )
            for into, evidence in zip((rates, plain), given, strict=True):
                t = choose_threshold(evidence, _wish("conformal", alpha=alpha)).threshold
                tail = np.exp(-np.maximum(t - 4 * x, 0))
                into.append(float(((1 + s * (2 * x - 1)) * tail).mean()))
        where = "higher" if s > 0 else "lower"
        yield Line(f"rate in traffic, {where} scores, {n:,} rows, α = {alpha:g}", rates, alpha)
        yield Line("the same without weights", plain)


# ---------------------------------------------------------------- contamination

ROWS, ALPHA = 2_000, 0.01


def trim(rng: np.random.Generator, trials: int) -> Lines:
    cases = [("no", ODD, 0.0, cut) for cut in (0.0, 0.01, 0.05)]
    for kind, law in (("near", ODD), ("far", FAR)):
        cases += [
            (kind, law, share, part * share) for share in (0.01, 0.05) for part in (0, 0.5, 1)
        ]
    for kind, law, share, cut in cases:
        found = [_contaminated(law, share, cut, rng) for _ in range(trials // 4)]
        setting = f"{share:.0%} {kind}, trim {cut:g}" if share else f"none, trim {cut:g}"
        promised = ALPHA if law is FAR else found[0][2]
        yield Line(f"{setting}: rate of normal rows", [one[0] for one in found], promised)
        if share:
            yield Line(f"{setting}: anomalies found", [one[1] for one in found])


def _contaminated(
    law: Any, share: float, cut: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The rate of normal rows, that of anomalies, and the most that was said of the former."""
    odd = round(share * ROWS)
    rows = np.concatenate([_draw(NORMAL, ROWS - odd, rng), _draw(law, odd, rng)])
    found = choose_threshold(
        CalibrationSample.from_scores(rows), _wish("conformal", alpha=ALPHA, trim_scores=cut)
    )
    said = float(found.figures.get("alpha_if_clean", ALPHA))
    return float(NORMAL.sf(found.threshold)), float(law.sf(found.threshold)), said


def contamination(rng: np.random.Generator, trials: int) -> Lines:
    """How often an excess is told, by how many rows calibrate and were held out of training."""
    for n, held in ((2_000, 600), (500, 150)):
        for share in (0.0, 0.01, 0.05, 0.1):
            for both in (False, True) if share else (False,):
                told = [_told(n, held, share, share * both, rng) for _ in range(trials // 4)]
                where = "everywhere" if both else "among those that calibrate"
                setting = f"told, {n:,} and {held} rows, {share:.0%} anomalies"
                promised = math.nan if share and not both else LEVEL
                yield Line(f"{setting} {where}" if share else setting, told, promised)


def _told(n: int, held: int, share: float, theirs: float, rng: np.random.Generator) -> float:
    ours, others = (
        np.sort(np.where(rng.random(rows) < part, _draw(ODD, rows, rng), _draw(NORMAL, rows, rng)))
        for rows, part in ((n, share), (held, theirs))
    )
    return float(contamination_test(ours, others, ours).p_value <= LEVEL)


# ---------------------------------------------------------------- the run

METHODS: dict[str, Callable[[np.random.Generator, int], Lines]] = {
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
KEYS = ("method", "setting")


def run(options: Options) -> None:
    """Count what is not yet counted, and write the tables."""
    found = Ledger(options.result("thresholds.csv"), KEYS)
    trials = SHORT_TRIALS if options.short else TRIALS
    for number, (method, lines) in enumerate(METHODS.items()):
        if options.wants(method) and method not in set(found.rows["method"]):
            for line in lines(np.random.default_rng(number), trials):
                found.add((method, line.setting), line.to_row())
    text = f"{report(found.rows)}\n{environment()}"
    options.result("thresholds.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def report(rows: pd.DataFrame) -> str:
    """Counts over the settings of each method, then all of them."""
    methods = [(name, part) for name, part in rows.groupby("method", sort=False)]
    parts = [markdown(SUMMARY_HEADS, [_counts(name, part) for name, part in methods])]
    for name, part in methods:
        lines = [_line(row) for row in part.itertuples()]
        parts.append(f"{name}\n\n{markdown(HEADS, lines)}")
    return "\n".join(parts)


def verdict(row: Any) -> str:
    """Whether a promise was kept, as far as chance lets it be seen."""
    if math.isnan(row.promised):
        return NONE
    if row.mean <= row.promised:
        return KEPT
    return CHANCE if row.mean <= row.promised + ERRORS * row.error else ABOVE


def _counts(name: Any, rows: pd.DataFrame) -> tuple[str, ...]:
    found = [verdict(row) for row in rows.itertuples()]
    return (str(name), *(str(found.count(one)) for one in VERDICTS))


def _line(row: Any) -> tuple[str, ...]:
    promised = "" if math.isnan(row.promised) else f"{row.promised:.4g}"
    mean = f"{row.mean:.4g} ± {row.error:.2g}"
    return row.setting, f"{row.trials:,.0f}", promised, mean, verdict(row)
