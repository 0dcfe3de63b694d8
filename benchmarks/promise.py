"""The promise: over many splits, the false positive rate at alpha is at most alpha.

Tables: for each set of `tabular`, seed and alpha the estimator as a user calls it, on a random half
of the normal rows, and the share of the other half that it flags. All are exchangeable, so over the
seeds the mean has to be ⌊α (n + 1)⌋ / (n + 1), with n the rows that it holds out to calibrate; and
what chance adds to that mean is known exactly (`kept_range`).

Transactions: trained on six days, calibrated on the seventh, tested on a week later (by time, as in
`transactions`); and with the rows of these eight days shuffled, where nothing drifts. By time, all
seeds share the calibration day: they are one sample of it.

A threshold keeps alpha however well the model detects, so the fits are the lightest there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import betabinom

from anomaly_vae import TabularVAEDetector
from anomaly_vae.calibration.conformal import calibrate, ranks_within, scores_needed
from anomaly_vae.config import PRESETS
from anomaly_vae.errors import CalibrationError
from benchmarks import tabular, transactions
from benchmarks.common import Ledger, Options, environment, kept_range, markdown

Scores = NDArray[np.float64]
Figures = dict[str, float]

ALPHAS = (0.05, 0.01, 0.001)
SEEDS = 20
SHORT_SEEDS, SHORT_SETS = 5, 6
EPOCHS = 5
"""Of the preset fast: a fifth of a second a fit, so that there can be many."""
LIGHT: Mapping[str, Any] = {**PRESETS["tabular"]["fast"], "training": {"epochs": EPOCHS}}
"""The same, laid upon a configuration."""
TRANSACTIONS, BY_TIME, SHUFFLED = "transactions", "by time", "shuffled"

KEPT, CHANCE, ABOVE = "at most α", "above, as chance explains", "above"
REFUSED = "refused: too few rows"
VERDICTS = (KEPT, CHANCE, ABOVE, REFUSED)
HEADS = ("set", "held out", "tested", "promised", "mean rate ± s.e.", "if kept, 95%", "")
SUMMARY_HEADS = ("α", *VERDICTS, "promised", "mean over sets ± s.e.")


# ---------------------------------------------------------------- tables


def of_table(task: tabular.Task, alpha: float, seed: int) -> Figures:
    """Rows held out, normal rows tested, and the share of them that is flagged; NaN: refused."""
    normal = task.test[~task.anomaly]
    detector = TabularVAEDetector(preset="fast", epochs=EPOCHS, alpha=alpha, random_state=seed)
    try:
        detector.fit(task.train)
    except CalibrationError:
        return {"n": scores_needed(alpha), "normals": len(normal), "fpr": np.nan}
    calibration = detector.bundle_.calibration
    assert calibration, "a fitted estimator has a threshold"
    rate = float((detector.predict(normal) == -1).mean())
    return {"n": len(calibration.scores), "normals": len(normal), "fpr": rate}


def run_tables(found: Ledger, files: list[Path], seeds: int) -> None:
    """Every set and alpha, the first seed of all first."""
    for seed in range(seeds):
        for path in files:
            wanted = [a for a in ALPHAS if (path.stem, a, seed) not in found]
            task = tabular.load_task(path, seed) if wanted else None
            for alpha in wanted:
                assert task
                found.add((path.stem, alpha, seed), of_table(task, alpha, seed))


# ---------------------------------------------------------------- transactions


def of_transactions(task: transactions.Task, seed: int) -> Iterator[tuple[str, float, Figures]]:
    """The order of the rows, alpha, and the figures of one fit."""
    model = transactions.Ours(LIGHT, seed)
    model.fit(task)
    held, new = model.score(task.calibration), model.score(task.test)[~task.fraud]
    mixed = np.random.default_rng(seed).permutation(np.concatenate([held, new]))
    for alpha in ALPHAS:
        yield BY_TIME, alpha, _rate(held, new, alpha)
        yield SHUFFLED, alpha, _rate(mixed[: len(held)], mixed[len(held) :], alpha)


def _rate(held: Scores, new: Scores, alpha: float) -> Figures:
    flags = calibrate(held, alpha).flags(new)
    return {"n": len(held), "normals": len(new), "fpr": float(flags.mean())}


def run_transactions(found: Ledger, folder: Path, seeds: int, short: bool) -> None:
    """Every seed with and without the columns that need past labels."""
    for features, columns in transactions.COLUMNS.items():
        names = {order: _name(features, order) for order in (BY_TIME, SHUFFLED)}
        keys = {s: [(n, a, s) for n in names.values() for a in ALPHAS] for s in range(seeds)}
        left = [seed for seed in range(seeds) if any(key not in found for key in keys[seed])]
        if not left:
            continue
        task = transactions.load_task(folder, columns, transactions.SPLITS["promise"], short)
        for seed in left:
            for order, alpha, figures in of_transactions(task, seed):
                if (key := (names[order], alpha, seed)) not in found:
                    found.add(key, figures)


def _name(features: str, order: str) -> str:
    return f"{TRANSACTIONS} {features}, {order}"


# ---------------------------------------------------------------- the run

KEYS = ("set", "alpha", "seed")


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the tables."""
    found = Ledger(options.result("promise.csv"), KEYS)
    files = sorted(options.folder("adbench").glob("*.npz"))
    seeds = min(options.seeds, SHORT_SEEDS) if options.short else options.seeds
    wanted = [path for path in files if options.wants(path.stem)]
    run_tables(found, wanted[:SHORT_SETS] if options.short else wanted, seeds)
    if options.wants(TRANSACTIONS):
        run_transactions(found, options.folder("fraud"), seeds, options.short)
    text = f"{report(found.rows)}\n{environment()}"
    options.result("promise.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def report(rows: pd.DataFrame) -> str:
    """Counts over the tables, then for each alpha all of them; transactions are not counted."""
    found = pd.DataFrame([_compared(part) for _, part in rows.groupby(["alpha", "set"])])
    tables = found[~found["set"].str.startswith(TRANSACTIONS)]
    parts = [markdown(SUMMARY_HEADS, [_summary(*each) for each in _by_alpha(tables)])]
    for alpha, group in _by_alpha(found):
        lines = [_line(row) for row in group.itertuples()]
        parts.append(f"α = {alpha:g}\n\n{markdown(HEADS, lines)}")
    return "\n".join(parts)


def _by_alpha(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    return [(alpha, rows[rows["alpha"] == alpha]) for alpha in ALPHAS]


def _compared(rows: pd.DataFrame) -> dict[str, Any]:
    """The mean rate over the seeds of one table and alpha, and what it is to be."""
    name, alpha, n, normals = rows[["set", "alpha", "n", "normals"]].iloc[0]
    found = {"set": name, "alpha": alpha, "n": n, "normals": normals}
    if rows["fpr"].isna().all():
        return found | {"verdict": REFUSED}
    fits = 1 if name.endswith(BY_TIME) else len(rows)
    low, high = kept_range(alpha, n, normals, fits)
    m, mean = ranks_within(alpha, n), float(rows["fpr"].mean())
    error = betabinom(normals, m, n + 1 - m).std() / normals / np.sqrt(fits)
    expected = {"promised": m / (n + 1), "error": error, "low": low, "high": high}
    verdict = KEPT if mean <= alpha else CHANCE if mean <= high else ABOVE
    return found | expected | {"mean": mean, "found_error": rows["fpr"].sem(), "verdict": verdict}


def _line(row: Any) -> tuple[str, ...]:
    sizes = (str(row.set), f"{row.n:,}", f"{row.normals:,}")
    if row.verdict == REFUSED:
        return (*sizes, "", "", "", REFUSED)
    rates = f"{row.mean:.4f} ± {row.found_error:.4f}", f"{row.low:.4f} to {row.high:.4f}"
    return (*sizes, f"{row.promised:.4f}", *rates, row.verdict)


def _summary(alpha: float, rows: pd.DataFrame) -> tuple[str, ...]:
    """Counts, and the mean over the sets with the error that it has where the promise is kept."""
    counts = (str((rows["verdict"] == verdict).sum()) for verdict in VERDICTS)
    kept = rows.dropna(subset=["mean"]) if "mean" in rows else rows[:0]
    if not len(kept):
        return (f"{alpha:g}", *counts, "", "")
    error = np.sqrt((kept["error"] ** 2).sum()) / len(kept)
    mean = f"{kept['mean'].mean():.5f} ± {error:.5f}"
    return (f"{alpha:g}", *counts, f"{kept['promised'].mean():.5f}", mean)
