"""Measure detection and false positives on tables with a column of 10,000 merchants.

Simulated payments have four numbers, a channel and a merchant. Merchants follow Zipf's law, each
has a category, and amounts and channels depend on it. Three in ten of the merchants beyond the 500
largest open only after the training period. All methods learn from 12,000 rows and calibrate on
6,000 rows of the same period. They are tested on 6,000 more of them and 300 frauds, of four kinds:

- *new*: at merchants that open later
- *rare*: at merchants that have at most three training rows
- *frequent*: at ten of the 64 largest merchants, with unusual amounts and channels
- *anywhere*: at merchants drawn like those of normal payments, so that the merchant tells nothing

The false positive rate at alpha 0.01 is measured on rows of the training period, and on rows of the
later period, in which the new merchants have a share of the payments.

The real column is that of the card transactions of `transactions`, with the customer and the
terminal as categories. All customers and terminals are about equally frequent there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from anomaly_vae import TabularVAEDetector
from anomaly_vae.config import Feature
from benchmarks.common import Column, Ledger, Options, cpu_seconds, environment, summary_table

Scores = NDArray[np.float64]
Metrics = dict[str, float]

ALPHA = 0.01
ROWS, CALIBRATION_ROWS, TEST_ROWS, FRAUDS = 12_000, 6_000, 6_000, 300
MERCHANTS, LARGE, NEW_SHARE, LATE_WEIGHT, EXPONENT = 10_000, 500, 0.3, 0.3, 1.1
CHANNELS = np.array(["chip", "contactless", "online", "mail_order"])
CATEGORIES = 20
MERCHANT = "merchant"
DATA_FILES = ("transactions-2018-07.parquet", "transactions-2018-08.parquet")
IDS = ("CUSTOMER_ID", "TERMINAL_ID")
NUMBERS = (
    *("TX_AMOUNT", "TX_DURING_WEEKEND", "TX_DURING_NIGHT"),
    *(
        f"CUSTOMER_ID_{of}_{days}DAY_WINDOW"
        for of in ("NB_TX", "AVG_AMOUNT")
        for days in (1, 7, 30)
    ),
    *(f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW" for days in (1, 7, 30)),
)


@dataclass(frozen=True)
class Task:
    """Rows of each role; frauds by kind."""

    train: pd.DataFrame
    calibration: pd.DataFrame
    normal: pd.DataFrame
    frauds: Mapping[str, pd.DataFrame]
    late: pd.DataFrame | None = None
    many: tuple[str, ...] = (MERCHANT,)
    """Columns with many values."""


# ---------------------------------------------------------------- the data


@dataclass(frozen=True)
class Market:
    """Merchants with their categories, and payments at them."""

    rng: np.random.Generator
    category: NDArray[Any] = field(init=False)
    log_amount: NDArray[Any] = field(init=False)
    channels: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        category = self.rng.integers(0, CATEGORIES, MERCHANTS)
        means = self.rng.normal(3, 0.8, CATEGORIES)[category]
        object.__setattr__(self, "category", category)
        object.__setattr__(self, "log_amount", means + self.rng.normal(0, 0.3, MERCHANTS))
        shares = self.rng.dirichlet(np.full(len(CHANNELS), 0.5), CATEGORIES)
        object.__setattr__(self, "channels", shares.cumsum(1))

    def pay(self, merchants: NDArray[Any]) -> pd.DataFrame:
        """Return normal payments at these merchants (N,)."""
        rng, n = self.rng, len(merchants)
        below = self.channels[self.category[merchants], :-1]
        return pd.DataFrame(
            {
                "amount": np.exp(self.log_amount[merchants] + rng.normal(0, 0.5, n)),
                "hour": np.clip(rng.normal(14, 4, n), 0, 24),
                "activity": rng.gamma(2, 2, n),
                "balance": rng.normal(8, 1, n),
                "channel": CHANNELS[(rng.random((n, 1)) > below).sum(1)],
                MERCHANT: np.char.add("m", merchants.astype(str)),
            }
        )


def simulate(seed: int) -> Task:
    """Simulate normal payments and frauds."""
    rng = np.random.default_rng([seed, 17])
    market, ranks = Market(rng), np.arange(MERCHANTS)
    weight = 1 / (ranks + 1.0) ** EXPONENT
    opens_late = (rng.random(MERCHANTS) < NEW_SHARE) & (ranks > LARGE)
    early, late = np.where(opens_late, 0, weight), np.where(opens_late, LATE_WEIGHT, 1) * weight

    def draw(n: int, weights: NDArray[Any]) -> NDArray[Any]:
        return rng.choice(MERCHANTS, n, p=weights / weights.sum())

    trained = draw(ROWS, early)
    at_most_three = (np.bincount(trained, minlength=MERCHANTS) <= 3).astype(float)
    frequent = np.isin(ranks, rng.choice(64, 10, replace=False)).astype(float)
    return Task(
        market.pay(trained),
        market.pay(draw(CALIBRATION_ROWS, early)),
        market.pay(draw(TEST_ROWS, early)),
        {
            "new": _hurried(market.pay(draw(FRAUDS, opens_late.astype(float))), rng, 0.4),
            "rare": _hurried(market.pay(draw(FRAUDS, at_most_three)), rng, 0.4),
            "frequent": _unfitting(market.pay(draw(FRAUDS, frequent)), rng),
            "anywhere": _hurried(market.pay(draw(FRAUDS, early)), rng, 1.0, hour=6),
        },
        market.pay(draw(TEST_ROWS, late)),
    )


def _hurried(rows: pd.DataFrame, rng: Any, raise_by: float, hour: float = 10) -> pd.DataFrame:
    """Raise amounts and move payments towards an hour."""
    n = len(rows)
    amount = rows["amount"] * np.exp(rng.normal(raise_by, 0.4, n))
    return rows.assign(amount=amount, hour=np.clip(rng.normal(hour, 5.5, n), 0, 24))


def _unfitting(rows: pd.DataFrame, rng: Any) -> pd.DataFrame:
    """Give payments amounts and channels that do not fit their merchants."""
    amount = rows["amount"] * np.exp(1.3 * rng.choice([-1, 1], len(rows)))
    return rows.assign(amount=amount, channel=rng.choice(CHANNELS, len(rows)))


def load_transactions(folder: Path, seed: int) -> Task:
    """Draw rows of the card transactions, with the customer and the terminal."""
    columns = [*NUMBERS, *IDS, "TX_DATETIME", "TX_FRAUD"]
    rows = pd.concat([pd.read_parquet(folder / name, columns=columns) for name in DATA_FILES])
    rows = rows.astype(dict.fromkeys(IDS, str))
    fraud = rows.pop("TX_FRAUD") == 1
    time = rows.pop("TX_DATETIME")

    def draw(start: str, end: str, n: int, wanted: Any) -> pd.DataFrame:
        period = rows[(time >= start) & (time < end) & wanted]
        return period.sample(min(n, len(period)), random_state=seed)

    return Task(
        draw("2018-07-25", "2018-07-31", 2 * ROWS, ~fraud),
        draw("2018-07-31", "2018-08-01", CALIBRATION_ROWS, ~fraud),
        draw("2018-08-08", "2018-08-15", 4 * TEST_ROWS, ~fraud),
        {"real": draw("2018-08-08", "2018-08-15", len(rows), fraud)},
        many=IDS,
    )


# ---------------------------------------------------------------- methods


@dataclass(frozen=True)
class Ours:
    """Our detector with a way to encode the columns with many values."""

    levels: int = 64
    rarity: float | None = None
    keep: bool = True
    """Whether the column is kept."""
    frequency: bool = False
    """Whether the logarithm of the frequency is a number of its own."""
    buckets: int = 0
    """Number of buckets that values are hashed into; 0: none."""

    def fit(self, task: Task, seed: int, preset: Any) -> tuple[Callable[[Any], Scores], float]:
        """Return a score and the threshold."""
        counts = {name: task.train[name].value_counts() for name in task.many}
        prepare = partial(self._prepare, counts=counts)
        train = prepare(task.train, own=1)
        feature = Feature(type="categorical", max_levels=self.levels, rarity=self.rarity)  # type: ignore[arg-type]  # pydantic converts it
        features: dict[str, Any] = {
            name: feature if name in task.many else _kind(train[name]) for name in train
        }
        detector = TabularVAEDetector(
            preset=preset, alpha=ALPHA, random_state=seed, features=features,
            calibration_fraction=0.02,
        ).fit(train).calibrate(prepare(task.calibration))  # fmt: skip
        return lambda rows: detector.anomaly_score(prepare(rows)), -detector.offset_

    def _prepare(self, rows: pd.DataFrame, counts: Mapping[str, Any], own: int = 0) -> Any:
        changed = rows.copy()
        for name, count in counts.items():
            if self.frequency:
                changed[f"{name}_frequency"] = _log_frequency(rows[name], count, own)
            if self.buckets:
                hashed = pd.util.hash_array(rows[name].to_numpy(object)) % self.buckets
                changed[name] = np.char.add("b", hashed.astype(str))
            if not self.keep:
                changed = changed.drop(columns=name)
        return changed


def _kind(values: pd.Series[Any]) -> str:
    return "numeric" if pd.api.types.is_numeric_dtype(values) else "categorical"


def _log_frequency(values: pd.Series[Any], counts: pd.Series[int], own: int) -> Scores:
    """Return log(1 + number of training rows with the value), training rows without themselves."""
    return np.asarray(np.log1p(values.map(counts).fillna(0).to_numpy(float) - own))


@dataclass(frozen=True)
class Peer:
    """A peer that reads standardised numbers, one-hot channels and log frequencies."""

    model: Callable[[Scores, int], Callable[[Scores], Scores]]

    def fit(self, task: Task, seed: int, preset: Any) -> tuple[Callable[[Any], Scores], float]:
        """Return a score and the threshold."""
        del preset
        counts = {name: task.train[name].value_counts() for name in task.many}
        train = _matrix(task.train, counts, own=1)
        scaler = StandardScaler().fit(train)
        raw = self.model(scaler.transform(train), seed)

        def score(rows: pd.DataFrame) -> Scores:
            return raw(scaler.transform(_matrix(rows, counts)))

        rank = int(np.ceil((1 - ALPHA) * (len(task.calibration) + 1))) - 1
        return score, float(np.sort(score(task.calibration))[rank])


def _matrix(rows: pd.DataFrame, counts: Mapping[str, Any], own: int = 0) -> Scores:
    names = [name for name in rows if name not in counts and _kind(rows[name]) == "numeric"]
    parts = [rows[names].to_numpy(float)]
    parts += [_log_frequency(rows[name], count, own)[:, None] for name, count in counts.items()]
    if "channel" in rows:
        parts.append((rows["channel"].to_numpy()[:, None] == CHANNELS).astype(float))
    return np.concatenate(parts, axis=1)


def _neighbours(train: Scores, seed: int) -> Callable[[Scores], Scores]:
    del seed
    index = NearestNeighbors(n_neighbors=5).fit(train)
    return lambda rows: np.asarray(index.kneighbors(rows)[0].mean(1))


def _forest(train: Scores, seed: int) -> Callable[[Scores], Scores]:
    forest = IsolationForest(random_state=seed).fit(train)
    return lambda rows: -forest.score_samples(rows)


METHODS: dict[str, Ours | Peer] = {
    "64 levels, the rest one level": Ours(),
    "256 levels, the rest one level": Ours(levels=256),
    "64 buckets of a hash": Ours(buckets=64),
    "log frequency in place of levels": Ours(keep=False, frequency=True),
    "64 levels and log frequency": Ours(frequency=True),
    "64 levels and bands, rarity: 0": Ours(rarity=0.0),
    "64 levels and bands, rarity: 0.25": Ours(rarity=0.25),
    "64 levels and bands, rarity: 0.5": Ours(rarity=0.5),
    "64 levels and bands, rarity: 1": Ours(rarity=1.0),
    "kNN, k = 5, log frequency": Peer(_neighbours),
    "IsolationForest, log frequency": Peer(_forest),
}
POOLED, BANDED = "64 levels, the rest one level", "64 levels and bands, rarity: 0.25"
FAST, TRANSACTIONS, DEFAULT = "simulated, preset fast", "transactions, preset fast", "simulated"
METHODS_OF: dict[str, tuple[str, ...]] = {
    FAST: tuple(METHODS),
    TRANSACTIONS: (POOLED, "64 levels and log frequency", BANDED, "IsolationForest, log frequency"),
    DEFAULT: (POOLED, "64 levels and bands, rarity: 0", BANDED),
}
"""Methods by data and preset."""


# ---------------------------------------------------------------- the run

KEYS = ("data", "method", "seed")
KINDS = ("new", "rare", "frequent", "anywhere")
SIMULATED = {
    **{f"{kind}_ap": Column(f"{kind}, AP") for kind in KINDS},
    **{f"{kind}_auroc": Column(f"{kind}, AUROC", ".2f", False) for kind in KINDS},
    "fpr": Column("FPR", ".4f"),
    "fpr_late": Column("FPR, later", ".4f"),
    "fit_seconds": Column("fit, CPU-s", ".0f", False),
}
FORMATS = {
    FAST: SIMULATED,
    DEFAULT: SIMULATED,
    TRANSACTIONS: {
        "real_ap": Column("AP"),
        "real_auroc": Column("AUROC"),
        "fpr": Column("FPR", ".4f"),
        "fit_seconds": Column("fit, CPU-s", ".0f", False),
    },
}


def measure(method: Ours | Peer, task: Task, seed: int, preset: str) -> Metrics:
    """Measure the ranking of each kind of frauds among normal rows, and false positive rates."""
    (score, threshold), seconds = cpu_seconds(lambda: method.fit(task, seed, preset))
    normal = score(task.normal)
    metrics = {"fit_seconds": seconds, "fpr": float((normal > threshold).mean())}
    if task.late is not None:
        metrics["fpr_late"] = float((score(task.late) > threshold).mean())
    for kind, rows in task.frauds.items():
        scores = np.concatenate([normal, score(rows)])
        labels = np.arange(len(scores)) >= len(normal)
        metrics[f"{kind}_auroc"] = float(roc_auc_score(labels, scores))
        metrics[f"{kind}_ap"] = float(average_precision_score(labels, scores))
    return metrics


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    ledger = Ledger(options.result_path("merchants.csv"), KEYS)
    for data, name, seed in _plan(options):
        if (data, name, seed) not in ledger:
            real = data == TRANSACTIONS
            task = load_transactions(options.data_folder("fraud"), seed) if real else simulate(seed)
            preset = "default" if data == DEFAULT else "fast"
            ledger.add((data, name, seed), measure(METHODS[name], task, seed, preset))
    tables = [
        f"{data}\n\n{summary_table(rows, 'method', FORMATS[str(data)])}"
        for data, rows in ledger.rows.groupby("data", sort=False)
    ]
    text = "\n".join([*tables, environment()])
    options.result_path("merchants.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _plan(options: Options) -> Iterator[tuple[str, str, int]]:
    for seed in range(1 if options.short else options.seeds):
        for data, names in METHODS_OF.items():
            yield from ((data, name, seed) for name in filter(options.wants, names))
