"""Fill case stores with cases as a service of card transactions writes them."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import numpy as np
from sqlalchemy import delete, insert, text

from anomaly_vae.review import Case, CaseReason, CaseStore, PValueCounts
from anomaly_vae.review.case_store import _row
from anomaly_vae.review.tables import CASES, COUNTED, GUARANTEES, LABELS, P_VALUES, SNOOZES

DAY = 86_400.0
KNOWN = 500
"""Number of cases that `fill` makes before it repeats them with other ids and p-values."""


def case_of(number: int, **changes: Any) -> Case:
    """Return the case of a card transaction; the first of them have the lowest p-values."""
    amount = round(2000 / (1 + number % 37) + number % 5, 2)
    return Case.of(
        **{
            "model": "fraud",
            "row": f"T{number:05d}",
            "score": 120.0 - 60 * number / (number + 50),
            "p_value": (1 + number) / 50_000,
            "threshold": 55.48,
            "alpha": 0.05,
            "at": time.time() - 600.0 * number - 900,
            "entity_column": "CUSTOMER_ID",
            "entity": f"C{number % 23:03d}",
            "amount_column": "TX_AMOUNT",
            "amount": amount,
            "fields": {
                "TRANSACTION_ID": f"T{number:05d}", "CUSTOMER_ID": f"C{number % 23:03d}",
                "TERMINAL_ID": 3000 + number % 11, "TX_AMOUNT": amount,
                "TX_DURING_NIGHT": bool(number % 3), "TX_COUNTRY": "PT" if number % 7 else None,
            },
            "reasons": [
                CaseReason("TX_AMOUNT", 31.4, amount, 38.2,
                           f"TX_AMOUNT {amount:g}, usually 3.1 to 112"),
                CaseReason("TX_DATETIME", 9.7, "Sun 03:12", "Wed 14:00",
                           "TX_DATETIME at 03:12, usually 8 to 22h"),
                CaseReason("TERMINAL_ID", 3.2, str(3000 + number % 11), "3004",
                           f"TERMINAL_ID {3000 + number % 11}, rare or never seen in training; "
                           "usually 3004"),
            ],
            **changes,
        }
    )  # fmt: skip


def fill(store: CaseStore, count: int, first: int = 0) -> None:
    """Add cases to a store, all at once."""
    known = [_row(case_of(number)) for number in range(min(first + count, KNOWN))]
    rows = [
        {**known[n % KNOWN], "key": f"key {n}", "row_id": f"T{n:05d}", "p_value": (1 + n) / 50_000}
        for n in range(first, first + count)
    ]
    if rows:
        with store._writing() as connection:
            connection.execute(insert(CASES), rows)


def empty(store: CaseStore) -> None:
    """Remove everything from a store, and count cases from 1 again."""
    with store._writing() as connection:
        for table in (CASES, COUNTED, GUARANTEES, LABELS, P_VALUES, SNOOZES):
            connection.execute(delete(table))
        connection.execute(text("DELETE FROM sqlite_sequence"))


def count_p_values(
    store: CaseStore, days: int = 28, rows: int = 4_000, model: str = "fraud"
) -> None:
    """Count the p-values of normal rows, with a few anomalies more on the last days."""
    rng, today = np.random.default_rng(0), dt.datetime.now(dt.UTC).date()
    counts = []
    for age in range(days):
        p_values = np.ceil(rng.uniform(size=rows + 300 * (age % 7 > 1)) * 5_000) / 5_000
        p_values[: max(90 - 12 * age, 10)] = 0.0002
        counts.append(PValueCounts.of(model, "", today - dt.timedelta(days=age), p_values))
    store.add_p_values(counts)
