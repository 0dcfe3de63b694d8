"""The same rows as a data frame of pandas or polars, or an Arrow table: the same answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_vae.config.data import TabularData
from anomaly_vae.data.dataframes import detect_container, from_table, to_table
from anomaly_vae.data.schema import Levels, RawBatch
from anomaly_vae.data.type_inference import infer_schema
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.tabular import TabularVAEDetector
from tests.support.estimators import tiny


class Stream:
    """A table of some other library, which speaks Arrow's protocol and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self.table, self.columns = table, table.column_names

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def with_categories(table: pa.Table) -> pl.DataFrame:
    """In polars, each text as one of a list, where it may be."""
    frame = pl.DataFrame(table)
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    return frame.with_columns(pl.col(texts).cast(pl.Categorical))


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "pandas": lambda table: table.to_pandas(),
    "pandas of Arrow's types": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": pl.DataFrame,
    "polars in pieces": lambda table: pl.concat(
        [pl.DataFrame(table[:3]), pl.DataFrame(table[3:])], rechunk=False
    ),
    "polars with categories": with_categories,
    "another library": Stream,
}

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "amount": (pa.float64(), st.floats(-1e6, 1e6)),
    "items": (pa.int64(), st.integers(0, 9)),
    "small": (pa.uint8(), st.integers(0, 255)),
    "online": (pa.bool_(), st.booleans()),
    "country": (pa.string(), st.sampled_from(["de", "fr", "NA", "1", "1.0", " it"])),
    "day": (pa.date32(), st.dates(dt.date(1990, 1, 1), dt.date(2030, 1, 1))),
    "at": (pa.timestamp("us"), st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2030, 1, 1))),  # noqa: DTZ001
    "zoned": (
        pa.timestamp("ms", "Europe/Berlin"),
        st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2030, 1, 1)),  # noqa: DTZ001
    ),
}


@st.composite
def tables(draw: st.DrawFn, least: int = 1) -> pa.Table:
    """Rows with gaps, at least one value in each column."""
    n = draw(st.integers(least, 12))
    return pa.table(
        {
            name: pa.array(
                [draw(values), *draw(st.lists(st.none() | values, min_size=n - 1, max_size=n - 1))],
                kind,
            )
            for name, (kind, values) in COLUMNS.items()
        }
    )


def read(table: pa.Table) -> tuple[tuple[Any, ...], RawBatch]:
    """The columns as inferred, and their values."""
    schema = infer_schema(table, TabularData(path=())).schema
    return schema.columns, schema.from_arrow(table)


def cells(batch: RawBatch) -> dict[str, list[Any]]:
    """Values by column, levels by name; None where missing."""
    names = {key: (*v.names, None) for key, v in batch.values.items() if isinstance(v, Levels)}
    return {
        key: [names[key][code] for code in values.codes]
        if isinstance(values, Levels)
        else [None if np.isnan(value) else value for value in values]
        for key, values in batch.values.items()
    }


# ---------------------------------------------------------------- read


@given(tables())
def test_the_same_rows_are_read_the_same(table: pa.Table) -> None:
    columns, batch = read(table)
    for name, form in FORMS.items():
        found, same = read(to_table(form(table)))
        assert found == columns, name
        assert cells(same) == cells(batch), name
        assert same.problems == batch.problems, name


@pytest.mark.parametrize(
    ("given", "container"),
    [
        (pl.DataFrame({"a": [1]}), "polars"),
        (pd.DataFrame({"a": [1]}), "frame"),
        (pd.DataFrame({0: [1]}), "array"),
        (pa.table({"a": [1]}), "table"),
        (pa.record_batch({"a": [1]}), "table"),
        (Stream(pa.table({"a": [1]})), "table"),
        (pl.Series([1]), "array"),
        (pd.Series([1]), "array"),
        (pa.chunked_array([[1]]), "array"),
        ([[1.0]], "array"),
        (np.eye(2), "array"),
    ],
)
def test_what_has_named_columns_is_a_table(given: Any, container: Any) -> None:
    assert detect_container(given) == container
    table = to_table(given)
    assert (table is None) == (container == "array")
    if table is not None:
        assert detect_container(from_table(table, container)) == container
        assert to_table(from_table(table, container)).equals(table)


def test_a_lazy_frame_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"X is a LazyFrame, .* pass X\.collect\(\)"):
        tiny().fit(pl.LazyFrame({"a": [1.0]}))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pa.table([[1], [2]], ["a", "a"]), "column 'a' appears more than once"),
        (pl.DataFrame({"a": pl.Series([1], dtype=pl.Int128)}), "cast such a column first"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(frame: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_table(frame)


@pytest.mark.parametrize("one", [pl.Series([1.0, 2.0]), pd.Series([1.0, 2.0])])
def test_one_column_alone_is_no_table(one: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected (2D array|a 2-dimensional container)"):
        tiny().fit(one)


# ---------------------------------------------------------------- fitted and scored


@pytest.fixture(scope="module", name="rows")
def normal_rows() -> pa.Table:
    """(120, 8) of every type, with gaps; levels as often as one another."""
    rng = np.random.default_rng(0)
    at = np.datetime64("2024-03-01") + (rng.random(120) * 60 * 86_400e6).astype("m8[us]")
    gaps = rng.random(120) < 0.1
    return pa.table(
        {
            "amount": pa.array(rng.lognormal(3, 1, 120), mask=gaps),
            "items": rng.poisson(3, 120),
            "small": rng.integers(0, 255, 120).astype(np.uint8),
            "online": pa.array(rng.random(120) < 0.3, mask=gaps[::-1]),
            "country": np.resize(["it", "de", "fr"], 120),
            "day": pa.array(at.astype("M8[D]"), pa.date32()),
            "at": pa.array(at, pa.timestamp("us"), mask=gaps),
            "zoned": pa.array(at.astype("M8[ms]"), pa.timestamp("ms")).cast(
                pa.timestamp("ms", "Europe/Berlin")
            ),
        }
    )


@pytest.fixture(scope="module")
def fitted(rows: pa.Table) -> TabularVAEDetector:
    return tiny().fit(rows)


@pytest.mark.parametrize("form", FORMS)
def test_fitting_to_the_same_rows_gives_the_same_model(
    rows: pa.Table, fitted: TabularVAEDetector, form: str
) -> None:
    same = tiny().fit(FORMS[form](rows))
    assert same.bundle_.weights == fitted.bundle_.weights
    assert same.offset_ == fitted.offset_
    assert list(same.feature_names_in_) == list(rows.column_names)
    assert same.n_features_in_ == rows.num_columns
    found, truth = (one.bundle_.manifest["data"] for one in (same, fitted))
    assert found["digest"] == truth["digest"]


@settings(max_examples=30)
@given(tables())
def test_the_same_rows_are_judged_the_same(fitted: TabularVAEDetector, table: pa.Table) -> None:
    score, latent = fitted.score_samples(table), fitted.transform(table)
    explained = fitted.explain(table, 3)
    for form in FORMS.values():
        same = form(table)
        np.testing.assert_array_equal(fitted.score_samples(same), score)
        np.testing.assert_array_equal(fitted.transform(same), latent)
        assert fitted.explain(same, 3) == explained
        assert len(fitted.predict(same)) == len(fitted.p_values(same)) == len(table)


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_found_by_name(rows: pa.Table, fitted: TabularVAEDetector, form: str) -> None:
    reordered = rows.select(rows.column_names[::-1]).append_column("more", [["?"] * len(rows)])
    np.testing.assert_array_equal(
        fitted.score_samples(FORMS[form](reordered)), fitted.score_samples(rows)
    )
    renamed = rows.rename_columns(["sum", *rows.column_names[1:]])
    with pytest.raises(ValueError, match="X lacks columns that the model reads: 'amount'"):
        fitted.predict(FORMS[form](renamed))


def test_polars_after_an_array_is_read_by_position_with_a_warning() -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    detector = tiny().fit(X)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        score = detector.score_samples(pl.DataFrame(X, schema=["a", "b"]))
    np.testing.assert_array_equal(score, detector.score_samples(X))


def test_samples_of_what_polars_held_are_polars_after_loading_too(
    rows: pa.Table, fitted: TabularVAEDetector, tmp_path: Path
) -> None:
    detector = tiny().fit(pl.DataFrame(rows))
    loaded = TabularVAEDetector.load(detector.save(tmp_path / "bundle"))
    for made in (detector.sample(3), loaded.sample(3)):
        assert isinstance(made, pl.DataFrame)
        assert made.to_arrow().cast(fitted.sample(3).schema).equals(fitted.sample(3))
    back = loaded.inverse_transform(loaded.transform(rows[:2]))
    assert isinstance(back, pl.DataFrame)
    assert back.height == 2


def test_bins_of_pandas_are_categories() -> None:
    values = np.random.default_rng(0).normal(size=120)
    frame = pd.DataFrame({"a": values, "bin": pd.cut(values, [-9, -1, 0, 1, 9])})
    detector = tiny().fit(frame)
    assert [c.type for c in detector.bundle_.scorer.schema.columns] == ["numeric", "categorical"]
    as_text = frame.assign(bin=frame["bin"].astype(str))
    np.testing.assert_array_equal(detector.score_samples(frame), detector.score_samples(as_text))


@pytest.mark.parametrize("column", [["a", "b"] * 60, pd.cut(np.arange(120), 4), [(1, 2)] * 120])
def test_a_frame_with_numbers_for_names_may_hold_only_numbers(column: object) -> None:
    frame = pd.DataFrame({0: np.arange(120.0), 1: column})
    with pytest.raises(DataError, match=r"column 1 does not hold numbers.*columns\.map\(str\)"):
        tiny().fit(frame)


@pytest.mark.parametrize(
    "y",
    [
        [True, False] * 60, ["normal"] * 120, pd.Categorical(["a", "b"] * 60),
        pd.array([0, None] * 60, "Int64"), pd.array(["a", None] * 60, "string"), None,
    ],
)  # fmt: skip
def test_labels_of_any_type_are_ignored(y: object) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 2))
    assert tiny().fit(rows, y).offset_ == tiny().fit(rows).offset_
