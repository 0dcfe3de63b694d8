"""Write the flagged rows of a result, and the counts of its p-values, to a case store.

A case and a part's counts are stored once, so that a result may be imported again. The model says
which columns have a meaning, and its words the reasons.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import ConfigError, DataError, StoreError
from anomaly_vae.review import CaseFields, CaseStore
from anomaly_vae.review.case_maker import CaseColumns, CaseMaker
from anomaly_vae.review.cases import Case, CaseReason, Kind, as_number, day_of
from anomaly_vae.review.p_values import UPPER_ENDS, PValueCounts, bin_counts
from anomaly_vae.scoring.detector import Contribution, RegionContribution
from anomaly_vae.scoring.wording import Wording, describe_region, raising_parts
from anomaly_vae.types import REGION
from pipelines import console
from pipelines.batch.result.folder import PLAN, SUMMARY, Record, ResultFolder, records_of
from pipelines.batch.result.layout import NO_VALUE
from pipelines.batch.result.object_folder import result_folder
from pipelines.batch.result.plan import Plan
from pipelines.datasets.windows import expected_columns
from pipelines.registry.model_uri import LoadedModel, open_model

ROWS = 10_000
"""Number of rows that are read at a time."""
PREFIX = "ANOMALY_VAE_CASES_"
"""Beginning of the environment variables about cases, which the service reads too."""
NAMES = ("FIELDS", "MASK", "SALT", "ENTITY", "AMOUNT", "SAMPLE")
MAX_REASONS = 5
"""Maximum number of reasons of a case."""


@dataclass(frozen=True)
class CaseOptions:
    """Where cases are written, and what they keep; see the settings of the service."""

    address: str
    fields: CaseFields = field(default_factory=CaseFields)
    entity: str = ""
    amount: str = ""
    sample: float = 0.0
    """Share of the rows that are not flagged of which cases are made too."""

    @classmethod
    def from_environment(cls, address: str, sample: float | None = None) -> Self:
        """Return the options that the settings of the service give; see docs/serving.md.

        Raises:
            ConfigError: columns are masked without a salt, or the share is none.
        """
        given = {name: os.environ.get(f"{PREFIX}{name}", "") for name in NAMES}
        kept, masked = (
            frozenset(filter(None, map(str.strip, given[name].split(",")))) for name in NAMES[:2]
        )
        share = as_number(given["SAMPLE"] or "0") if sample is None else sample
        if share is None or not 0 <= share <= 1:
            reason = "expected a share from 0 to 1"
            raise ConfigError(f"{PREFIX}SAMPLE: {reason}", key=f"{PREFIX}SAMPLE")
        fields = CaseFields(kept, masked, given["SALT"])
        return cls(address, fields, given["ENTITY"], given["AMOUNT"], share)

    def check(self) -> None:
        """Check the address of the store without connecting to it.

        Raises:
            ConfigError: it is wrong, or the extra ``review`` is missing.
        """
        CaseStore(self.address).close()

    def columns_of(self, config: Mapping[str, Any]) -> CaseColumns:
        """Return the columns with a meaning for cases, by the configuration of the model."""
        return CaseColumns.of_config(config).named(self.entity, self.amount)

    def carried(self, bundle: Bundle) -> tuple[str, ...]:
        """Return the columns of the input that cases need: those that they keep, and some others.

        Without a choice of columns, cases keep those that the model reads.
        """
        columns = self.columns_of(bundle.manifest["config"])
        named = (columns.time, columns.entity, columns.amount)
        read = filter(self.fields.keeps, expected_columns(bundle))
        chosen = sorted(self.fields.kept | self.fields.masked)
        return tuple(dict.fromkeys(name for name in (*named, *read, *chosen) if name))


def import_result(path: Path, options: CaseOptions, source: LoadedModel) -> dict[str, Any]:
    """Write the cases and the counts of a result to a case store.

    Args:
        path: folder of a finished result.
        options: the store, and what cases keep.
        source: the model that scored the rows.

    Raises:
        ConfigError: the address is wrong, or the extra ``review`` is missing.
        DataError: the folder holds no finished result.
        StoreError: the store cannot be used.
    """
    result = _Result.open(result_folder(path), options, source)
    with CaseStore(options.address) as store:
        store.prepare()
        counts = Counter[str]()
        for record in result.records:
            counts.update(_import_part(store, result, record))
        name = str(store)
    console.info(
        f"{counts['flagged']:,} flagged rows and {counts['sample']:,} others: {counts['stored']:,} "
        f"cases stored, {counts['unchanged']:,} known, {counts['snoozed']:,} of them snoozed"
    )
    names = ("flagged", "sample", "stored", "unchanged", "snoozed", "counted")
    return {"store": name, **{key: counts[key] for key in names}}


def carried_columns(options: CaseOptions, source: LoadedModel) -> dict[str, Any]:
    """Return the argument of `score_files` that has a result carry what its cases need.

    Raises:
        ConfigError: the address of the store is wrong, or the extra ``review`` is missing.
    """
    options.check()
    return {"also": options.carried(source.bundle)} if source.kind == "tabular" else {}


def import_when_finished(path: Path, options: CaseOptions, source: LoadedModel) -> dict[str, Any]:
    """Import a result that has just been finished.

    Raises:
        StoreError: the store cannot be used; the result is complete all the same.
    """
    try:
        return import_result(path, options, source)
    except StoreError as error:
        raise StoreError(
            f"{error}; '{path}' holds the finished result: import it with `anomaly-vae cases "
            f"import {path}`"
        ) from None


def recorded_model(path: Path, uri: str | None = None) -> LoadedModel:
    """Open the model of a result, whose configuration says which columns have a meaning.

    Args:
        path: folder of the result.
        uri: URI of the model; None for that of the result.

    Raises:
        DataError: the folder holds no result, or another model scored it.
        AnomalyVAEError: the model cannot be opened.
    """
    recorded = _plan(result_folder(path)).model
    name, version = recorded["name"], recorded["version"]
    uri = uri or (f"models:/{name}/{version}" if version else recorded["uri"])
    source = open_model(uri)
    if source.bundle.digest != recorded["digest"]:
        raise DataError(f"'{uri}' is not the model of '{path}'; name it with --model URI")
    return source


def _plan(folder: ResultFolder) -> Plan:
    content = folder.read(PLAN)
    plan = Plan.from_bytes(content) if content else None
    if plan is None:
        raise DataError(f"'{folder.path}' holds no result of this version of anomaly-vae score")
    return plan


def _import_part(store: CaseStore, result: _Result, record: Record) -> Counter[str]:
    """Write the cases of a part, and its p-values unless they are counted."""
    counts, days = Counter[str](), dict[Any, Any]()
    for table in result.tables(record):
        cases = list(result.cases(table))
        for case, stored in zip(cases, store.record(cases), strict=True):
            counts[case.kind] += 1
            counts["unchanged" if stored is None else "stored"] += 1
            counts["snoozed"] += stored is not None and stored.case.snooze is not None
        result.count(table, days)
    found = result.counts(record, days)
    if store.add_p_values(found, f"{result.plan.digest}:{record.stem}"):
        counts["counted"] += sum(one.rows for one in found)
    return counts


@dataclass(frozen=True)
class _Result:
    """A finished result, and how cases are made of it."""

    folder: ResultFolder
    plan: Plan
    summary: Mapping[str, Any]
    options: CaseOptions
    source: LoadedModel
    recorded_at: float = field(default_factory=time.time)

    @classmethod
    def open(cls, folder: ResultFolder, options: CaseOptions, source: LoadedModel) -> _Result:
        plan, summary = _plan(folder), folder.read(SUMMARY)
        if summary is None:
            raise DataError(
                f"'{folder.path}' holds an unfinished result; let `anomaly-vae score` finish it"
            )
        return cls(folder, plan, json.loads(summary), options, source)

    @cached_property
    def records(self) -> list[Record]:
        """The records of the parts, in order."""
        return records_of(self.folder, self.plan)

    @cached_property
    def maker(self) -> CaseMaker:
        """The maker of the cases."""
        columns = self.options.columns_of(self.source.bundle.manifest["config"])
        model = self.plan.model
        return CaseMaker(
            model=model["name"], version=model["version"], alpha=self.summary["alpha"],
            columns=columns, names=self._names(columns),
            fields=self.options.fields, unit=self.summary.get("unit", "nats"),
        )  # fmt: skip

    @cached_property
    def _carried(self) -> tuple[str, ...]:
        """The columns of the input that the parts have."""
        return tuple(self.plan.options.get("--columns-out") or ())

    def _names(self, columns: CaseColumns) -> tuple[str, ...]:
        """Return the columns that are fields of cases, those of the model first."""
        if self.source.kind != "tabular":
            return self._carried
        read = [n for n in expected_columns(self.source.bundle) if n in self._carried]
        shown_apart = {columns.time, columns.entity, columns.amount}
        return (*read, *(n for n in self._carried if n not in shown_apart))

    @cached_property
    def wording(self) -> Wording:
        """The words for the columns of the model."""
        return Wording.of(self.source.bundle.scorer.encoding, self.source.data)

    @property
    def has_all_rows(self) -> bool:
        """Whether the parts have the rows that are not flagged, too."""
        return not self.plan.options.get("--only-flagged")

    # ------------------------------------------------------------ rows

    def tables(self, record: Record) -> Iterator[pa.Table]:
        """Yield the rows of a part, `ROWS` at a time, with the column that names its folders."""
        for name in record.parts:
            with self.folder.open(name) as file:
                for batch in _batches(name, file):
                    table = pa.table(batch)
                    for column, value in _folder_values(name).items():
                        table = table.append_column(column, pa.array([value] * len(table)))
                    yield table

    def cases(self, table: pa.Table) -> Iterator[Case]:
        """Yield the cases of some rows."""
        names = table.column_names
        keys = [n for n in names[: names.index("score")] if n not in self._carried]
        wanted = np.array(table["is_anomaly"].to_pylist(), bool)
        if self.options.sample:
            wanted |= [self._is_drawn(row) for row in table.select(keys).to_pylist()]
        for row in table.filter(pa.array(wanted)).to_pylist():
            yield self._case(row, keys)

    def _is_drawn(self, keys: Mapping[str, Any]) -> bool:
        """Draw a row at random, the same way each time."""
        text = json.dumps([self.plan.digest, keys], default=str)
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.options.sample * 2**64

    def _case(self, row: Mapping[str, Any], keys: Sequence[str]) -> Case:
        kind: Kind = "flagged" if row["is_anomaly"] else "sample"
        threshold = row.get("threshold")
        return self.maker.make(
            row,
            score=row["score"],
            p_value=row["p_value"],
            threshold=self.summary["threshold"] if threshold is None else threshold,
            kind=kind,
            reasons=self._reasons(row),
            unusual_input=row.get("unusual_input"),
            recorded_at=self.recorded_at,
            row_id=self._row_id(row, keys),
        )

    def _row_id(self, row: Mapping[str, Any], keys: Sequence[str]) -> object:
        """Return the id of a row: that of the data, else its path, else its position."""
        if "path" in keys:
            frame = f"#{row['frame']}" if row.get("frame") else ""
            return f"{row['path']}{frame}"
        named = [row[key] for key in keys if key != "row" and row[key] is not None]
        return named[0] if named else f"{self.plan.digest[:12]}-row-{row.get('row')}"

    def _reasons(self, row: Mapping[str, Any]) -> list[CaseReason]:
        regions = _listed(row.get("regions"))
        if regions:
            return [_region(one) for one in regions[:MAX_REASONS]]
        parts = [Contribution(**one) for one in _listed(row.get("contributions"))]
        raising = islice(raising_parts(parts), MAX_REASONS)
        return [
            CaseReason(
                part.feature, part.nats, part.observed, part.expected, self.wording.sentence(part)
            )
            for part in raising
        ]

    # ------------------------------------------------------------ p-values

    def count(self, table: pa.Table, days: dict[Any, Any]) -> None:
        """Count p-values by day (UTC): that of the event, or else of the import."""
        if not self.has_all_rows:
            return
        today, time_column = day_of(self.recorded_at), self.maker.columns.time
        found = [today] * len(table)
        if time_column in table.column_names:
            form = self.maker.columns.time_format
            found = [_day(cell, form) or today for cell in table[time_column].to_pylist()]
        p_values = np.asarray(table["p_value"].to_numpy(), np.float64)
        numbers = np.array([day.toordinal() for day in found])
        for number in np.unique(numbers).tolist():
            day = type(today).fromordinal(number)
            days[day] = days.get(day, 0) + bin_counts(p_values[numbers == number])

    def counts(self, record: Record, days: Mapping[Any, Any]) -> list[PValueCounts]:
        """Return the counts of a part; a result of flagged rows alone has them in its records."""
        model, version = self.plan.model["name"], self.plan.model["version"]
        if self.has_all_rows:
            return [PValueCounts.of_bins(model, version, day, bins) for day, bins in days.items()]
        bins = {UPPER_ENDS[place]: rows for place, rows in record.counts.p_values.items()}
        return [PValueCounts(model, version or "", day_of(self.recorded_at), bins)]


def _batches(name: str, file: Any) -> Iterator[pa.RecordBatch]:
    if name.endswith(".csv"):
        yield from pyarrow.csv.open_csv(file)
    else:
        yield from pq.ParquetFile(file).iter_batches(ROWS)


def _folder_values(name: str) -> dict[str, str | None]:
    """Return the columns in the names of folders, as in ``day=3/part-00000.parquet``."""
    pairs = (part.partition("=") for part in name.split("/")[:-1])
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, _, value in pairs}


def _listed(cell: Any) -> list[dict[str, Any]]:
    """Return the contributions of a row, which are JSON in CSV."""
    if isinstance(cell, str):
        cell = json.loads(cell) if cell else None
    return cell or []


def _region(region: Mapping[str, Any]) -> CaseReason:
    box = tuple(region["box"]) if "box" in region else ()
    text = describe_region(RegionContribution(box, region["nats"], region["share"]))
    return CaseReason(REGION, region["nats"], ",".join(map(str, box)), None, text)


def _day(cell: Any, time_format: str | None) -> Any:
    try:
        return None if cell is None else day_of(parse_time(cell, time_format))
    except (ValueError, OverflowError):
        return None
