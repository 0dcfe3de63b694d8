"""Make a model of rows whose values and number depend on the hour, and draw such rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.estimators import TabularVAEDetector
from anomaly_vae.monitoring.cycles import Timeline
from anomaly_vae.monitoring.exchangeability import TimedRows, fit_reference, fit_times

TIME = "at"
"""Name of the time column."""
DAYS, ROWS_A_DAY = 14, 400
"""Calibration period."""
START = pd.Timestamp("2024-01-01")
"""First calibration day, a Monday."""


def rows(day: int, count: int, seed: int, hours: tuple[float, float] = (0, 24)) -> pd.DataFrame:
    """Draw rows of a day, in order of time; amounts are three times as large before 8:00."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(*hours, count))
    amount = rng.normal(size=count) * np.where(at < 8, 3, 1)
    time = START + pd.to_timedelta(np.round(3600 * (24 * day + at)), unit="s")
    columns = {TIME: time.strftime("%Y-%m-%dT%H:%M:%S"), "amount": amount}
    return pd.DataFrame({**columns, "other": rng.normal(size=count)})


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as a request has them."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


@cache
def timed_bundle() -> Bundle:
    """Return a model calibrated on two weeks, with alpha 0.05, that knows their hours."""
    days = [rows(day - DAYS, ROWS_A_DAY, day) for day in range(DAYS)]
    table = pd.concat(days, ignore_index=True)
    settings: dict[str, Any] = {"epochs": 1, "alpha": 0.05, "random_state": 0}
    detector = TabularVAEDetector(**settings).fit(rows(0, 500, 99)).calibrate(table)
    return with_times(detector.bundle_, table)


def with_times(bundle: Bundle, table: pd.DataFrame, entity: str | None = None) -> Bundle:
    """Return the bundle with the times, and perhaps entities, of its calibration rows learned."""
    scorer, calibration = bundle.scorer, bundle.detector.calibration
    columns = {name: table[name].tolist() for name in scorer.schema.names}
    batch = scorer.schema.from_columns(columns, len(table))
    x = scorer.encoding.encode(batch)
    seconds = pd.to_datetime(table[TIME]).to_numpy().astype("datetime64[s]").astype(float)
    entities = {entity: pd.factorize(table[entity])[0].astype(np.int64)} if entity else {}
    timed = TimedRows(scorer.score_encoded(x), x, Timeline(TIME, seconds, True, entities))
    plain = fit_reference(scorer.encoding, x)
    reference = fit_times(calibration, scorer.encoding, plain, timed, timed)
    return bundle.calibrated(calibration, None, reference)
