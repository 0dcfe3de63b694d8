"""Simulated data on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.files import atomic_path
from anomaly_vae.simulate import simulate_transactions

TRANSACTIONS = "transactions.parquet"


def write_transactions(out: str | Path, rows: int, seed: int) -> dict[str, Any]:
    """Write ``OUT/transactions.parquet``; returns the command's answer."""
    table: pa.Table = simulate_transactions(rows, seed)
    path = Path(out) / TRANSACTIONS
    with atomic_path(path) as whole:
        pq.write_table(table, whole)
    frauds = int(pc.sum(table.column("TX_FRAUD")).as_py() or 0)
    return {"out": str(path), "rows": len(table), "frauds": frauds, "seed": seed}
