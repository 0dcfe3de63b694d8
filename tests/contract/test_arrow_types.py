"""The same values have the same scores, whatever Arrow type they arrive in and whoever reads them.

Each type goes through batch scoring, the estimator (Arrow and pandas) and the client's `/score`.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.client import Client
from anomaly_vae.errors import AnomalyVAEError, DataError
from anomaly_vae.estimators.tabular import TabularVAEDetector
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import open_model
from serving.scoring.loading import load_model
from tests.support.estimators import tiny

KINDS = ["chip", "pin", "NA", "", "null"]
N = 60
START = dt.datetime(2024, 1, 1)  # noqa: DTZ001 times without a zone are UTC


def training_table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "kind": pa.array([KINDS[i % 5] for i in range(300)]),
            "amount": pa.array(rng.integers(1, 50, 300).astype(float)),
            "flag": pa.array([bool(i % 3) for i in range(300)]),
            "when": pa.array([START + dt.timedelta(hours=5 * i) for i in range(300)]),
        }
    )


def plain_columns() -> dict[str, pa.Array]:
    """Cells of each column in the plainest type, with a missing value in each."""
    return {
        "kind": pa.array([None, *(KINDS[i % 5] for i in range(1, N))]),
        "amount": pa.array([None, *(float(i % 40) for i in range(1, N))]),
        "flag": pa.array([None, *(bool(i % 3) for i in range(1, N))]),
        "when": pa.array([None, *(START + dt.timedelta(days=i) for i in range(1, N))]),
    }


def dictionary(array: pa.Array, kind: pa.DataType) -> pa.Array:
    encoded = array.dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, encoded.dictionary.cast(kind))


def decimals(kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda array: pa.array(
        [None if v is None else Decimal(str(v)) for v in array.to_pylist()], kind
    )


def as_bool8(array: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.bool8(), array.cast(pa.int8()))


def fixed(array: pa.Array) -> pa.Array:
    cells = array.to_pylist()
    return pa.array(
        [None if c is None else c.encode().ljust(4, b"\0") for c in cells], pa.binary(4)
    )


def cast(kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda array: array.cast(kind)


def as_dictionary(kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda array: dictionary(array, kind)


def as_runs(array: pa.Array) -> pa.Array:
    return pc.run_end_encode(array)


WHEN = [
    *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp(unit, "UTC") for unit in ("s", "ns")),
    pa.timestamp("us", "Europe/Paris"),
    pa.timestamp("us", "+05:30"),
    pa.date32(),
    pa.date64(),
    pa.string(),
]
TEXTS = [pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
CASES: dict[str, tuple[str, Callable[[pa.Array], pa.Array]]] = {
    **{f"kind {kind}": ("kind", cast(kind)) for kind in TEXTS},
    **{
        f"kind dictionary of {kind}": ("kind", as_dictionary(kind))
        for kind in (pa.string(), *TEXTS)
    },
    "kind fixed_size_binary": ("kind", fixed),
    "kind run-end encoded": ("kind", as_runs),
    "kind json": ("kind", lambda a: pa.ExtensionArray.from_storage(pa.json_(), a)),
    **{
        f"amount {kind}": ("amount", cast(kind))
        for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float32())
    },
    **{
        f"amount {kind}": ("amount", decimals(kind))
        for kind in (
            pa.decimal32(5, 2),
            pa.decimal64(12, 2),
            pa.decimal128(20, 3),
            pa.decimal256(50, 2),
        )
    },
    "amount dictionary": ("amount", as_dictionary(pa.float64())),
    "amount run-end encoded": ("amount", as_runs),
    "flag bool8": ("flag", as_bool8),
    "flag int8": ("flag", cast(pa.int8())),
    **{f"when {kind}": ("when", cast(kind)) for kind in WHEN},
}  # fmt: skip
UNSUPPORTED_BY_FILES = {
    "kind run-end encoded",
    "amount run-end encoded",
    "kind dictionary of string_view",
    "kind dictionary of binary_view",
}


@pytest.fixture(scope="module")
def detector() -> TabularVAEDetector:
    return tiny(random_state=0).fit(training_table())


@pytest.fixture(scope="module")
def bundle(detector: TabularVAEDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("types") / "bundle"
    detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def expected(detector: TabularVAEDetector) -> np.ndarray:
    return detector.anomaly_score(pa.table(plain_columns()))


def batch_scores(bundle: Path, table: pa.Table, folder: Path) -> np.ndarray:
    pq.write_table(table, folder / "rows.parquet")
    summary = score_files(open_model(str(bundle)), [str(folder / "rows.parquet")], folder / "out")
    assert (summary["rejected"], summary["scored"]) == (0, len(table))
    return pq.read_table(folder / "out" / "part-00000.parquet")["score"].to_numpy()


@pytest.mark.parametrize("case", CASES)
def test_the_same_values_have_the_same_scores(
    case: str,
    detector: TabularVAEDetector,
    bundle: Path,
    expected: np.ndarray,
    address_of: Any,
    tmp_path: Path,
) -> None:
    name, convert = CASES[case]
    table = pa.table({**plain_columns(), name: convert(plain_columns()[name])})
    np.testing.assert_array_equal(detector.anomaly_score(table), expected)
    if case not in UNSUPPORTED_BY_FILES:
        np.testing.assert_array_equal(batch_scores(bundle, table, tmp_path), expected)
    with Client(address_of(load_model(BundleRef(str(bundle))))) as client:
        sent = [one.score for one in client.score(table)]
    np.testing.assert_allclose(sent, expected, rtol=1e-6)


def test_texts_of_markers_are_levels_and_only_null_is_missing(
    detector: TabularVAEDetector, expected: np.ndarray
) -> None:
    levels = detector.bundle_.scorer.encoding.to_json()[-1]["levels"]
    assert sorted(levels) == sorted(KINDS)
    assert (
        detector.bundle_.scorer.schema.from_arrow(pa.table(plain_columns()))
        .values["kind"]
        .codes.tolist()
        .count(-1)
        == 1
    )  # type: ignore[union-attr]  # levels


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_pandas_text_is_missing_only_if_it_is_none_nan_or_na(
    detector: TabularVAEDetector, expected: np.ndarray, missing: Any
) -> None:
    frame = pa.table(plain_columns()).to_pandas()
    frame["kind"] = [missing, *frame["kind"][1:]]
    for kind in (object, "str", "string", "category"):
        found = detector.anomaly_score(frame.astype({"kind": kind}))
        np.testing.assert_array_equal(found, expected)


BAD = pa.array([b"chip", b"\xff\xfe", None])
SPOILT = {
    "binary": BAD,
    "large_binary": BAD.cast(pa.large_binary()),
    "binary_view": BAD.cast(pa.binary_view()),
    "dictionary": BAD.dictionary_encode(),
    "string": BAD.view(pa.string()),
}


@pytest.mark.parametrize("case", SPOILT)
def test_bytes_that_are_not_utf8_reject_their_row_alone(
    case: str, detector: TabularVAEDetector, bundle: Path, tmp_path: Path
) -> None:
    table = pa.table({"kind": SPOILT[case], "amount": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "rows.parquet")
    summary = score_files(open_model(str(bundle)), [str(tmp_path)], tmp_path / "out")
    assert (summary["scored"], summary["rejected_by_column"]) == (2, {"kind": 1})
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (reject["row"], reject["column"]) == (1, "kind")
    assert "not UTF-8" in reject["reason"]
    full = {**plain_columns(), "kind": pa.concat_arrays([BAD] * (N // 3))}
    with pytest.raises(DataError, match=r"column 'kind', row 1: .*not UTF-8"):
        detector.anomaly_score(pa.table(full))


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([dt.timedelta(1)]),
        pa.array([dt.time(1)]),
    ],
    ids=lambda cells: str(cells.type),
)
def test_types_that_are_no_numbers_are_refused_by_name_and_left_out_of_training(
    cells: pa.Array, bundle: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"amount": cells, "kind": ["pin"]}), tmp_path / "rows.parquet")
    summary = score_files(open_model(str(bundle)), [str(tmp_path)], tmp_path / "out")
    assert summary["rejected_by_column"] == {"amount": 1}
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert reject["reason"].startswith("column 'amount': expected numbers, found ")
    more = training_table().append_column("more", pa.concat_arrays([cells] * 300))
    with pytest.warns(UserWarning, match="column 'more': left out"):
        detector = tiny().fit(more)
    assert "more" not in detector.bundle_.scorer.schema.names


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("year", ["0", "10000", "far"])
def test_times_outside_the_years_1_to_9999_are_rejected(
    unit: str, year: str, bundle: Path, tmp_path: Path
) -> None:
    per_second = {"ms": 1_000, "us": 1_000_000}[unit]
    second = {"0": -62_135_596_801, "10000": 253_402_300_800, "far": 2**62 // per_second}[year]
    table = pa.table({"when": pa.array([0, second * per_second], pa.timestamp(unit))})
    pq.write_table(table, tmp_path / "rows.parquet")
    summary = score_files(open_model(str(bundle)), [str(tmp_path)], tmp_path / "out")
    assert (summary["scored"], summary["rejected_by_column"]) == (1, {"when": 1})


def test_int96_times_outside_those_of_nanoseconds_do_not_wrap(
    detector: TabularVAEDetector, bundle: Path, tmp_path: Path
) -> None:
    moments = [dt.datetime(1500, 1, 1, 7), dt.datetime(9999, 12, 31, 23), START]  # noqa: DTZ001
    when = pa.array(moments, pa.timestamp("us"))
    table = pa.table({name: column.slice(0, 3) for name, column in plain_columns().items()})
    table = table.set_column(3, "when", when)
    pq.write_table(table, tmp_path / "rows.parquet", use_deprecated_int96_timestamps=True)
    score_files(open_model(str(bundle)), [str(tmp_path)], tmp_path / "out")
    scores = pq.read_table(tmp_path / "out" / "part-00000.parquet")["score"].to_numpy()
    np.testing.assert_array_equal(scores, detector.anomaly_score(table))


EXTENSIONS = {
    "uuid": (pa.array([uuid.UUID(int=i % 4) for i in range(300)], pa.uuid()),
             str(uuid.UUID(int=1))),
    "period": (pa.array(pd.Series(pd.period_range("2001Q1", periods=4, freq="Q")).repeat(75)),
               "2001Q2"),
    "interval": (pa.array(pd.Series(pd.interval_range(0, 4)).repeat(75)), "(1, 2]"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTENSIONS)
def test_extension_types_are_their_text(case: str, address_of: Any, tmp_path: Path) -> None:
    cells, text = EXTENSIONS[case]
    table = training_table().append_column("more", cells)
    detector = tiny(features={"amount": "numeric", "more": "categorical"}).fit(table)
    detector.save(tmp_path / "bundle")
    wanted = table.slice(75, 2) if case != "uuid" else table.slice(1, 1)
    expected = detector.anomaly_score(wanted)
    (tmp_path / "in").mkdir()
    pq.write_table(wanted, tmp_path / "in" / "rows.parquet")
    score_files(open_model(str(tmp_path / "bundle")), [str(tmp_path / "in")], tmp_path / "out")
    batch = pq.read_table(tmp_path / "out" / "part-00000.parquet")["score"].to_numpy()
    np.testing.assert_array_equal(batch, expected)
    records = [{"amount": row, "more": text} for row in wanted["amount"].to_pylist()]
    with Client(address_of(load_model(BundleRef(str(tmp_path / "bundle"))))) as client:
        for sent in (records, wanted):
            found = [one.score for one in client.score(sent)]
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_integers_beyond_64_signed_bits_are_numbers(
    detector: TabularVAEDetector, bundle: Path, tmp_path: Path
) -> None:
    table = pa.table({"amount": pa.array([2**64 - 1, 2**63, 1], pa.uint64())})
    assert len(batch_scores(bundle, table, tmp_path)) == 3


def test_what_cannot_be_sent_says_so(bundle: Path, address_of: Any) -> None:
    with Client(address_of(load_model(BundleRef(str(bundle))))) as client:
        for cells in (pa.array([b"\xff"]), pa.array([2**62], pa.timestamp("s"))):
            with pytest.raises(AnomalyVAEError):
                client.score(pa.table({"kind": cells}))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_folder_is_the_column_that_it_names(
    suffix: str, detector: TabularVAEDetector, bundle: Path, tmp_path: Path
) -> None:
    table = pa.table(plain_columns()).drop_columns(["kind"])
    folders = {"chip": "chip", "pin": "p%69n", None: "__HIVE_DEFAULT_PARTITION__"}
    for value in folders.values():
        path = tmp_path / "in" / f"kind={value}" / f"rows.{suffix}"
        path.parent.mkdir(parents=True)
        write = pa.csv.write_csv if suffix == "csv" else pq.write_table
        write(table, path)
    (tmp_path / "in" / "_SUCCESS").touch()
    order = sorted(folders, key=lambda level: f"kind={folders[level]}")
    for number, paths in enumerate((["in"], ["in/*/*"], [f"in/kind={folders[k]}" for k in order])):
        out = tmp_path / f"out{number}"
        score_files(open_model(str(bundle)), [str(tmp_path / path) for path in paths], out)
        found = pq.read_table(out / "part-00000.parquet")["score"].to_numpy().reshape(3, N)
        for scores, level in zip(found, order, strict=True):
            kinds = pa.array([level] * N, pa.string())
            expected = detector.anomaly_score(table.append_column("kind", kinds))
            np.testing.assert_allclose(scores, expected, rtol=1e-6)
