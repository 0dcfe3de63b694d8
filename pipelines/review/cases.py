"""Count, delete and export cases."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from anomaly_vae.errors import ConfigError
from anomaly_vae.files import atomic_path
from anomaly_vae.review import CaseFilter, CaseRecord, CaseStore, Share
from anomaly_vae.review.cases import Status
from pipelines import console

BATCH = 5_000
"""Number of cases that are written at a time."""
TIME = pa.timestamp("us", "UTC")
EXPORTED = pa.schema(
    {
        "number": pa.int64(), "model": pa.string(), "version": pa.string(), "id": pa.string(),
        "kind": pa.string(), "at": TIME, "recorded_at": TIME, "score": pa.float64(),
        "p_value": pa.float64(), "threshold": pa.float64(), "alpha": pa.float64(),
        "unit": pa.string(), "entity_column": pa.string(), "entity": pa.string(),
        "amount_column": pa.string(), "amount": pa.float64(), "status": pa.string(),
        "label": pa.string(), "who": pa.string(), "note": pa.string(), "reasons": pa.string(),
        "unusual_input": pa.string(), "image": pa.string(), "fields": pa.string(),
    }
)  # fmt: skip
"""Columns of an export."""
WRITERS = {".parquet": pq.ParquetWriter, ".csv": pa.csv.CSVWriter}


def count_cases(address: str, labels: str = "", model: str | None = None) -> dict[str, Any]:
    """Count the cases of a store, and estimate the precision of the flags.

    Raises:
        ConfigError: the address is wrong, or the extra `review` is missing.
        StoreError: there is no store, or it cannot be used.
    """
    with CaseStore(address, labels) as store:
        stats, models, name = store.stats(model), store.models(), str(store)
        names = sorted({one for one, _ in models}) if model is None else [model]
        rows = {one: sum(day.rows for day in store.p_values(one)) for one in names}
        snoozes = len(store.active_snoozes())
    console.table("scored rows by model", ("model", "rows"), list(rows.items()))
    oldest = stats.oldest_open
    return {
        "store": name, "cases": stats.cases, **stats.statuses, "active_snoozes": snoozes,
        "oldest_open": None if oldest is None else _moment(oldest).isoformat(),
        "precision": _share(stats.flags), "anomalies_in_sample": _share(stats.sample),
        "scored_rows": rows,
    }  # fmt: skip


def _share(share: Share) -> dict[str, Any]:
    """Return a share with its interval of 95%."""
    interval = [share.lower, share.upper] if share.reviewed else None
    return {"reviewed": share.reviewed, "share": share.value, "interval": interval}


def prune_cases(address: str, days: float, images: Path | None) -> dict[str, Any]:
    """Delete old cases and their scans; labels are kept.

    Raises:
        ConfigError: the address is wrong, or the extra `review` is missing.
        StoreError: there is no store, or it cannot be used.
    """
    with CaseStore(address) as store:
        store.prepare(create=False)
        pruned, name = store.prune(days), str(store)
    for folder in pruned.images if images else ():
        shutil.rmtree(Path(images or "") / folder, ignore_errors=True)
    return {"store": name, "deleted": pruned.cases, "scans": len(pruned.images)}


def export_cases(
    address: str, out: Path, labels: str = "", model: str | None = None, status: str | None = None
) -> dict[str, Any]:
    """Write cases with their labels to a file.

    Raises:
        ConfigError: the address, the status or the suffix of the file is wrong.
        StoreError: there is no store, or it cannot be used.
    """
    if out.suffix.lower() not in WRITERS:
        raise ConfigError(f"--out '{out}': the file must end in {' or '.join(WRITERS)}")
    known: Status | None = status  # type: ignore[assignment]  # the command line checks it
    chosen, total = CaseFilter(model=model, status=known), 0
    with CaseStore(address, labels) as store, atomic_path(out) as whole:
        with WRITERS[out.suffix.lower()](str(whole), EXPORTED) as writer:
            cases = store.all_cases(chosen)
            while some := list(islice(cases, BATCH)):
                writer.write_table(pa.Table.from_pylist(list(map(_row, some)), EXPORTED))
                total += len(some)
        name = str(store)
    return {"store": name, "out": str(out), "cases": total}


def _row(record: CaseRecord) -> dict[str, Any]:
    case, label = record.case, record.label
    row = {name: getattr(case, name) for name in EXPORTED.names if hasattr(case, name)}
    return row | {
        "number": record.number, "id": case.row_id, "status": record.status,
        "at": _moment(case.at), "recorded_at": _moment(case.recorded_at),
        "label": label and label.label, "who": label and label.who, "note": label and label.note,
        "reasons": "; ".join(reason.text for reason in case.reasons),
        "fields": json.dumps(dict(case.fields), ensure_ascii=False),
    }  # fmt: skip


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=round(seconds * 1e6))
