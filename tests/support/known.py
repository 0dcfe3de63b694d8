"""Make tables in which known anomalies look normal to a detector of unusual rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.type_inference import infer_schema
from anomaly_vae.training.fit import Prepared, prepare

COUNT = 60
"""Number of known anomalies in `rows`; they come first."""


def rows(n: int, seed: int = 0, anomalies: int = COUNT) -> pa.Table:
    """Return n rows, the first of which are anomalies: a dense spot within the normal rows."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))
    a[:anomalies] = 1.2 + 0.1 * rng.normal(size=anomalies)
    b[:anomalies] = -1.2 + 0.1 * rng.normal(size=anomalies)
    b[anomalies::50] = np.nan
    city = rng.choice(["Bern", "Basel", "Genf"], n)
    return pa.table({"a": pa.array(a), "b": pa.array(b, from_pandas=True), "c": c, "city": city})


def known_config(known: str = "auto", **model: object) -> Config:
    """Return a configuration of three epochs."""
    return validate_config(
        {
            "name": "spot",
            "preset": "fast",
            "data": {"path": "spot.csv"},
            "training": {"epochs": 3},
            "model": {"known": known, **model},
        }
    )


def prepared_rows(config: Config, n: int = 2_000, count: int = COUNT) -> Prepared:
    """Return encoded rows: a tenth to validate, the first ``count`` known, the others to train."""
    table = rows(n, anomalies=COUNT)
    schema = infer_schema(table, config.data).schema
    batch, stop = schema.from_arrow(table), n - n // 10
    train, validation = (batch.take(np.arange(*ends)) for ends in ((COUNT, stop), (stop, n)))
    return prepare(config, schema, train, validation, known=batch.take(np.arange(count)))
