"""Verify that the false positive rate of conformal thresholds is at most alpha on average.

Tables: for each data set of `tabular`, seed and alpha, fit the estimator with its public API on a
random half of the normal rows and measure the fraction of the other half that it flags. All rows
are exchangeable, so the expected rate is ⌊α (n + 1)⌋ / (n + 1), where n is the number of rows that
the estimator holds out for calibration. The random deviation of the mean over the seeds has a known
distribution (`expected_rate_range`).

Transactions: train on six days, calibrate on the seventh and test on a week one week later, as in
`transactions`. A second variant shuffles the calibration and test rows, so that nothing drifts. In
the variant by time, all seeds share the same calibration day and are therefore a single sample.

The guarantee does not depend on how well the model detects, so the models train for few epochs.
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
from benchmarks.common import Ledger, Options, environment, expected_rate_range, markdown_table

Scores = NDArray[np.float64]
Metrics = dict[str, float]

ALPHAS = (0.05, 0.01, 0.001)
SEEDS = 20
SHORT_SEEDS, SHORT_SETS = 5, 6
EPOCHS = 5
"""Number of training epochs, with the preset ``fast``; a fit takes about 0.2 seconds."""
LIGHT_CONFIG: Mapping[str, Any] = {**PRESETS["tabular"]["fast"], "training": {"epochs": EPOCHS}}
"""Configuration overrides that correspond to the preset ``fast`` and `EPOCHS`."""
TRANSACTIONS, BY_TIME, SHUFFLED = "transactions", "by time", "shuffled"

WITHIN_ALPHA, WITHIN_CHANCE, ABOVE_ALPHA = "at most α", "above, as chance explains", "above"
REFUSED = "refused: too few rows"
VERDICTS = (WITHIN_ALPHA, WITHIN_CHANCE, ABOVE_ALPHA, REFUSED)
HEADINGS = ("set", "held out", "tested", "promised", "mean rate ± s.e.", "if kept, 95%", "")
SUMMARY_HEADINGS = ("α", *VERDICTS, "promised", "mean over sets ± s.e.")


# ---------------------------------------------------------------- tables


def measure_table(task: tabular.Task, alpha: float, seed: int) -> Metrics:
    """Measure the false positive rate of one fit.

    Returns:
        The number of calibration rows, the number of normal test rows, and the false positive
        rate; NaN if the calibration rows are too few for alpha.
    """
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


def run_tables(ledger: Ledger, files: list[Path], seeds: int) -> None:
    """Run the missing fits of every data set and alpha, one seed after the other."""
    for seed in range(seeds):
        for path in files:
            wanted = [alpha for alpha in ALPHAS if (path.stem, alpha, seed) not in ledger]
            task = tabular.load_task(path, seed) if wanted else None
            for alpha in wanted:
                assert task
                ledger.add((path.stem, alpha, seed), measure_table(task, alpha, seed))


# ---------------------------------------------------------------- transactions


def measure_transactions(
    task: transactions.Task, seed: int
) -> Iterator[tuple[str, float, Metrics]]:
    """Yield the order of the rows, alpha, and the false positive rate of one fit."""
    model = transactions.Ours(LIGHT_CONFIG, seed)
    model.fit(task)
    calibration_scores = model.score(task.calibration)
    test_scores = model.score(task.test)[~task.fraud]
    scores = np.concatenate([calibration_scores, test_scores])
    shuffled = np.random.default_rng(seed).permutation(scores)
    halves = shuffled[: len(calibration_scores)], shuffled[len(calibration_scores) :]
    for alpha in ALPHAS:
        yield BY_TIME, alpha, _false_positive_rate(calibration_scores, test_scores, alpha)
        yield SHUFFLED, alpha, _false_positive_rate(*halves, alpha)


def _false_positive_rate(calibration_scores: Scores, test_scores: Scores, alpha: float) -> Metrics:
    flags = calibrate(calibration_scores, alpha).flags(test_scores)
    return {"n": len(calibration_scores), "normals": len(test_scores), "fpr": float(flags.mean())}


def run_transactions(ledger: Ledger, folder: Path, seeds: int, short: bool) -> None:
    """Run the missing fits, with and without the columns that need past labels."""
    for features, columns in transactions.COLUMNS.items():
        names = {order: _set_name(features, order) for order in (BY_TIME, SHUFFLED)}
        keys = {
            seed: [(name, alpha, seed) for name in names.values() for alpha in ALPHAS]
            for seed in range(seeds)
        }
        missing_seeds = [
            seed for seed in range(seeds) if any(key not in ledger for key in keys[seed])
        ]
        if not missing_seeds:
            continue
        task = transactions.load_task(folder, columns, transactions.SPLITS["promise"], short)
        for seed in missing_seeds:
            for order, alpha, metrics in measure_transactions(task, seed):
                if (key := (names[order], alpha, seed)) not in ledger:
                    ledger.add(key, metrics)


def _set_name(features: str, order: str) -> str:
    return f"{TRANSACTIONS} {features}, {order}"


# ---------------------------------------------------------------- the run

KEYS = ("set", "alpha", "seed")


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    ledger = Ledger(options.result_path("promise.csv"), KEYS)
    files = sorted(options.data_folder("adbench").glob("*.npz"))
    seeds = min(options.seeds, SHORT_SEEDS) if options.short else options.seeds
    wanted = [path for path in files if options.wants(path.stem)]
    run_tables(ledger, wanted[:SHORT_SETS] if options.short else wanted, seeds)
    if options.wants(TRANSACTIONS):
        run_transactions(ledger, options.data_folder("fraud"), seeds, options.short)
    text = f"{report(ledger.rows)}\n{environment()}"
    options.result_path("promise.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def report(rows: pd.DataFrame) -> str:
    """Tabulate verdicts per alpha, without the transactions, then all rates per alpha and set."""
    judged = pd.DataFrame([_judge_rate(part) for _, part in rows.groupby(["alpha", "set"])])
    tables = judged[~judged["set"].str.startswith(TRANSACTIONS)]
    parts = [markdown_table(SUMMARY_HEADINGS, [_alpha_row(*each) for each in _by_alpha(tables)])]
    for alpha, group in _by_alpha(judged):
        lines = [_set_row(row) for row in group.itertuples()]
        parts.append(f"α = {alpha:g}\n\n{markdown_table(HEADINGS, lines)}")
    return "\n".join(parts)


def _by_alpha(rows: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    return [(alpha, rows[rows["alpha"] == alpha]) for alpha in ALPHAS]


def _judge_rate(rows: pd.DataFrame) -> dict[str, Any]:
    """Compare the mean rate over the seeds of one set and alpha with its expected range."""
    name, alpha, n, normals = rows[["set", "alpha", "n", "normals"]].iloc[0]
    row = {"set": name, "alpha": alpha, "n": n, "normals": normals}
    if rows["fpr"].isna().all():
        return row | {"verdict": REFUSED}
    fits = 1 if name.endswith(BY_TIME) else len(rows)
    low, high = expected_rate_range(alpha, n, normals, fits)
    m, mean = ranks_within(alpha, n), float(rows["fpr"].mean())
    error = betabinom(normals, m, n + 1 - m).std() / normals / np.sqrt(fits)
    expected = {"promised": m / (n + 1), "error": error, "low": low, "high": high}
    verdict = WITHIN_ALPHA if mean <= alpha else WITHIN_CHANCE if mean <= high else ABOVE_ALPHA
    return row | expected | {"mean": mean, "observed_error": rows["fpr"].sem(), "verdict": verdict}


def _set_row(row: Any) -> tuple[str, ...]:
    sizes = (str(row.set), f"{row.n:,}", f"{row.normals:,}")
    if row.verdict == REFUSED:
        return (*sizes, "", "", "", REFUSED)
    rates = f"{row.mean:.4f} ± {row.observed_error:.4f}", f"{row.low:.4f} to {row.high:.4f}"
    return (*sizes, f"{row.promised:.4f}", *rates, row.verdict)


def _alpha_row(alpha: float, rows: pd.DataFrame) -> tuple[str, ...]:
    """Format the verdict counts of one alpha and the mean rate over the sets.

    The standard error is the theoretical one, under exchangeability.
    """
    counts = (str((rows["verdict"] == verdict).sum()) for verdict in VERDICTS)
    measured = rows.dropna(subset=["mean"]) if "mean" in rows else rows[:0]
    if not len(measured):
        return (f"{alpha:g}", *counts, "", "")
    error = np.sqrt((measured["error"] ** 2).sum()) / len(measured)
    mean = f"{measured['mean'].mean():.5f} ± {error:.5f}"
    return (f"{alpha:g}", *counts, f"{measured['promised'].mean():.5f}", mean)
