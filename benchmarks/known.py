"""Measure what known frauds teach a detector of card transactions (`model.known`).

The detector learns from the normal rows of the seven days from 2018-07-25. Of the frauds of July,
10, 30, 100 or 300 drawn at random are known. Thresholds are chosen on 2018-08-01, and the test is
the seven days from 2018-08-08, as in `transactions`. Each draw is another choice of known frauds;
the detector is the same for all.

Methods: the detector alone; boosted trees that tell the known frauds from the normal training rows;
such trees with the detector's score as one more column; and the sum of both surprises, which
`model.known: auto` uses from 30 known frauds on. With 10, `auto` is the detector alone, and the sum
is forced. No label of the test week decides anything.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config.base import utc
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.splitting import CALIBRATION, MIN_KNOWN, TEST, TRAIN, VALIDATION
from anomaly_vae.evaluation.metrics import rate
from anomaly_vae.training.fit import Prepared, fit_bundle, prepare
from anomaly_vae.training.known_anomalies import fit_trees, with_known_head
from benchmarks.common import Ledger, Options, environment, expected_rate_range, markdown_table
from benchmarks.transactions import ALPHAS, COLUMNS, SHORT_STRIDE, SPLITS, configuration
from pipelines.datasets.loading import load_dataset

Scores = NDArray[np.float64]
Metrics = dict[str, float]

SEEDS = 5
"""Number of draws."""
LABELS = (10, 30, 100, 300)
"""Numbers of known frauds."""
JULY = tuple(utc(dt.datetime.fromisoformat(f"2018-0{month}-01")).timestamp() for month in (7, 8))
ALONE, TREES, COLUMN, SUM = (
    "detector alone",
    "boosted trees",
    "trees with the score as a column",
    "sum of surprises",
)
KEYS = ("method", "features", "known", "draw")


@dataclass(frozen=True, eq=False)
class Week:
    """The detector, and encoded rows: to calibrate and to test, and the frauds of July."""

    bundle: Bundle
    prepared: Prepared
    calibration: Matrix
    test: Matrix
    fraud: NDArray[np.bool_]
    july: Matrix


def load_week(folder: Path, features: str, short: bool) -> Week:
    """Read the data and fit the detector."""
    config = configuration(folder, COLUMNS[features], SPLITS["detection"], short)
    data, stride = load_dataset(config.data), SHORT_STRIDE if short else 1
    train, validation, calibration, test = (
        data.assignment.rows(split)[::stride] for split in (TRAIN, VALIDATION, CALIBRATION, TEST)
    )
    assert data.rows.time is not None
    in_july = (data.rows.time >= JULY[0]) & (data.rows.time < JULY[1])
    take = data.batch.take
    prepared = prepare(config, data.schema, take(train), take(validation))
    bundle = fit_bundle(config, prepared, data={}).bundle
    encoded = (
        prepared.encoding.encode(take(rows))
        for rows in (calibration, test, np.flatnonzero(data.rows.anomaly & in_july))
    )
    calibrating, testing, july = encoded
    return Week(bundle, prepared, calibrating, testing, data.rows.anomaly[test], july)


def measure(score: Callable[[Matrix], Scores], week: Week) -> Metrics:
    """Measure the ranking of the test week, and recall and false positive rate at each alpha."""
    calibration, test = score(week.calibration), score(week.test)
    metrics = {"average_precision": float(average_precision_score(week.fraud, test))}
    metrics |= {"n": len(calibration), "normals": int((~week.fraud).sum())}
    for alpha in ALPHAS:
        flags = calibrate(calibration, alpha).flags(test)
        for name, rows in (("recall", week.fraud), ("fpr", ~week.fraud)):
            found = rate(flags[rows])
            assert found is not None, "the test week has frauds and normal rows"
            values = {"": found.value, "_low": found.low, "_high": found.high}
            metrics |= {f"{name}{end}@{alpha}": value for end, value in values.items()}
    return metrics


def methods(week: Week, known: Matrix) -> Iterator[tuple[str, Callable[[Matrix], Scores]]]:
    """Yield the name and the score of each method that learns from known frauds."""
    prepared, scorer = week.prepared, week.bundle.scorer
    parts = prepared.train, prepared.validation, known
    head = with_known_head(week.bundle, *parts, seed=0).scorer
    yield SUM, head.score_encoded
    yield TREES, head.known_surprise  # increases with the margin of the trees

    def beside(x: Matrix) -> Matrix:
        return np.column_stack([x, scorer.score_encoded(x)]).astype(np.float32)

    both = fit_trees(beside(prepared.train), beside(known), seed=0)
    yield COLUMN, lambda x: np.asarray(both.decision_function(beside(x)))


def draw(week: Week, count: int, seed: int) -> Matrix:
    """Draw known frauds at random."""
    order = np.random.default_rng(seed).permutation(len(week.july))
    return week.july[order[:count]]


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    folder = options.data_folder("fraud")
    ledger = Ledger(options.result_path("known.csv"), KEYS)

    @cache
    def week(features: str) -> Week:
        return load_week(folder, features, options.short)

    for features in COLUMNS:
        if (ALONE, features, 0, 0) not in ledger:
            one = week(features)
            ledger.add((ALONE, features, 0, 0), measure(one.bundle.scorer.score_encoded, one))
        for seed in range(1 if options.short else options.seeds):
            for count in LABELS:
                if (COLUMN, features, count, seed) not in ledger:
                    one = week(features)
                    for name, score in methods(one, draw(one, count, seed)):
                        ledger.add((name, features, count, seed), measure(score, one))
    tables = report(ledger.rows)
    options.result_path("known.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


# ---------------------------------------------------------------- the tables


def report(rows: pd.DataFrame) -> str:
    """Return a table of ranking and recall, and one of false positive rates, per set of columns."""
    parts = []
    for features in COLUMNS:
        own = rows[rows["features"] == features]
        parts += [f"Detection, {features}\n\n", _detection(own)]
        parts += [f"\nFalse positive rate, {features}\n\n", _promise(own), "\n"]
    return "".join([*parts, environment()])


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the number of known frauds, the method and its draws, `auto` among them."""
    alone = rows[rows["method"] == ALONE]
    yield "0", ALONE, alone
    for known in LABELS:
        for method in (TREES, COLUMN, SUM):
            found = rows[(rows["method"] == method) & (rows["known"] == known)]
            if len(found):
                yield str(known), _named(method, known), found
        if known < MIN_KNOWN:
            yield str(known), "model.known: auto (off)", alone


def _named(method: str, known: int) -> str:
    if method != SUM:
        return method
    return f"**model.known: auto** ({SUM})" if known >= MIN_KNOWN else f"{SUM}, forced"


def _detection(rows: pd.DataFrame) -> str:
    columns = {"average_precision": "average precision"}
    columns |= {f"recall@{alpha}": f"recall at α = {alpha:g}" for alpha in ALPHAS}
    lines = [
        (known, name, *(_spread(found[column]) for column in columns))
        for known, name, found in _lines(rows)
    ]
    return markdown_table(("known frauds", "method", *columns.values()), lines)


def _promise(rows: pd.DataFrame) -> str:
    """Tabulate mean rates, their lowest and highest draw, and the range if alpha is kept."""
    first = rows.iloc[0]
    ranges = (expected_rate_range(a, int(first["n"]), int(first["normals"])) for a in ALPHAS)
    lines = [("", "*if kept, 95%*", *(f"{low:.4f} to {high:.4f}" for low, high in ranges))]
    for known, name, found in _lines(rows):
        lines.append((known, name, *(_interval(found, alpha) for alpha in ALPHAS)))
    return markdown_table(("known frauds", "method", *(f"α = {a:g}" for a in ALPHAS)), lines)


def _spread(values: pd.Series[float]) -> str:
    mean = f"{values.mean():.3f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std():.3f}"


def _interval(rows: pd.DataFrame, alpha: float) -> str:
    """Return the mean rate, and the mean ends of the 95% interval of each draw."""
    mean = rows.mean(numeric_only=True)
    low, high = mean[f"fpr_low@{alpha}"], mean[f"fpr_high@{alpha}"]
    return f"{mean[f'fpr@{alpha}']:.4f} [{low:.4f}, {high:.4f}]"
