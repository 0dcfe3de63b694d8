"""The matrix depends on each row and the training rows only, and can be decoded."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.config import Feature
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.encoding import (
    EXTREME,
    Binary,
    Categorical,
    Cyclic,
    Numeric,
    TabularEncoding,
    fit_encoding,
    pooled_levels,
)
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema
from anomaly_vae.errors import DataError
from anomaly_vae.types import ColumnType

LARGEST = float(np.finfo(np.float64).max)
HOUR, DAY = 3_600.0, 86_400.0
finite = st.floats(allow_nan=False, allow_infinity=False)
columns_of_numbers = st.lists(finite, min_size=1, max_size=30)


def schema_of(**types: str) -> TabularSchema:
    return TabularSchema(tuple(Column(name, ColumnType(kind)) for name, kind in types.items()))


def fit_one(values: Any, kind: str = "numeric", **options: Any) -> TabularEncoding:
    schema = schema_of(x=kind)
    limits = {"x": Feature(type=ColumnType(kind), **options)} if options else None
    return fit_encoding(schema, schema.from_arrow(pa.table({"x": values})), limits)


def fit_numeric(values: Any) -> Numeric:
    [column] = fit_one(pa.array(values, pa.float64())).columns
    assert isinstance(column, Numeric)
    return column


MIXED = schema_of(c="categorical", n="numeric", t="datetime", b="binary", m="numeric")


def mixed_rows(n: int = 200) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "c": rng.choice(["de", "fr", "it"], n),
            "n": rng.normal(3, 2, n),
            "t": pa.array((rng.uniform(0, 90 * DAY, n) * 1e6).astype(np.int64)).cast(
                pa.timestamp("us")
            ),
            "b": rng.integers(0, 2, n),
            "m": rng.standard_cauchy(n),
        }
    )


TRAIN = MIXED.from_arrow(mixed_rows())
ENCODING = fit_encoding(MIXED, TRAIN)


# ---------------------------------------------------------------- numbers


def test_numbers_are_standardised() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(50, 7, 1_000)
    column = fit_numeric(values)
    assert column.unit is None
    x = column.encode(values)
    assert x.dtype == np.float32
    assert x.shape == (1_000, 1)
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-5


def test_heavy_tails_take_the_asinh_scale_and_light_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    heavy = fit_numeric(rng.standard_cauchy(5_000))
    assert heavy.unit == pytest.approx(2 / 1.349, rel=0.1)  # its quartiles are −1 and 1
    assert fit_numeric(rng.normal(size=5_000)).unit is None
    assert fit_numeric(rng.exponential(size=5_000)).unit is None
    assert abs(heavy.encode(np.array([1e6]))[0, 0]) < 15


@given(columns_of_numbers, st.lists(finite, max_size=10))
@example([LARGEST, -LARGEST] * 5, [1.0])
@example([5e-324, 0.0] * 5, [1.0])
@example([5e-324, 0.0, 0.0, 0.0, 0.0], [1.0])
def test_encoded_numbers_are_finite_in_bounds_and_in_order(
    train: list[float], values: list[float]
) -> None:
    ordered = np.array(sorted([*values, *train, -LARGEST, LARGEST, 0.0]))
    x = fit_numeric(train).encode(ordered)[:, 0]
    assert np.isfinite(x).all()
    assert np.abs(x).max() <= EXTREME
    assert (np.diff(x) >= 0).all()


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=30))
def test_decoding_leads_back_to_the_number(train: list[float]) -> None:
    column = fit_numeric(train)
    values = np.array(train)
    spread = column.unit or column.scale
    tolerance = 1e-4 * (np.abs(values) + abs(column.center) + abs(spread))
    decoded = np.array(column.decode(column.encode(values).astype(np.float64)), float)
    held = np.abs(column.encode(values)[:, 0]) < EXTREME
    assert (np.abs(decoded - values)[held] <= tolerance[held]).all()


@given(columns_of_numbers, st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_whatever_a_decoder_says_has_a_finite_value(train: list[float], x: float) -> None:
    [value] = fit_numeric(train).decode(np.array([[x]], np.float32))
    assert value is not None
    assert math.isfinite(value)


@pytest.mark.parametrize("constant", [0.0, 5.0, -3.0, 0.001, 1e-300, 1e9, LARGEST])
def test_another_value_than_the_constant_stands_out(constant: float) -> None:
    column = fit_numeric([constant] * 20)
    other = constant * 2 if 0 < abs(constant) < 1e300 else constant / 2 or 1.0
    x = column.encode(np.array([constant, other]))[:, 0]
    assert x[0] == 0
    assert abs(x[1]) >= 1


def test_a_column_without_values_is_missing_and_reads_others() -> None:
    column = fit_numeric([None, None])
    x = column.encode(np.array([math.nan, 3.0]))
    np.testing.assert_array_equal(x, [[math.nan], [3.0]])


# ---------------------------------------------------------------- levels


def test_levels_are_numbered_from_one_by_frequency_and_others_are_code_zero() -> None:
    encoding = fit_one(["b"] * 6 + ["a"] * 6 + ["c"] * 9 + ["rare"] * 4, "categorical")
    [column] = encoding.columns
    assert isinstance(column, Categorical)
    assert column.levels == ("c", "a", "b")
    batch = schema_of(x="categorical").from_records(
        [{"x": "c"}, {"x": "b"}, {"x": "rare"}, {"x": "unseen"}, {"x": None}, {}]
    )
    codes = encoding.encode(batch)
    np.testing.assert_array_equal(codes[:, 0], [1, 3, 0, 0, math.nan, math.nan])
    assert encoding.decode(codes) == [["c", "b", "(other)", "(other)", None, None]]
    assert encoding.observed(batch) == [["c", "b", "rare", "unseen", None, None]]


def test_declared_limits_choose_the_levels() -> None:
    rows = ["a"] * 3 + ["b"] * 2 + ["c"]
    assert fit_one(rows, "categorical", min_count=1, max_levels=2).layout.n_levels == (3,)
    assert fit_one(rows, "categorical", min_count=3).layout.n_levels == (2,)


# ---------------------------------------------------------------- frequency bands

SEEN = {"once": 1, "twice": 2, "thrice": 3, "often": 40} | {f"single{i}": 1 for i in range(30)}


def merchants(**options: Any) -> tuple[Categorical, TabularSchema, RawBatch]:
    """Fit the merchants in `SEEN`, of whom only one is frequent enough to be a level."""
    schema = schema_of(x="categorical")
    names = [name for name, count in SEEN.items() for _ in range(count)]
    batch = schema.from_records([{"x": name} for name in [*names, None]])
    [column] = fit_encoding(
        schema, batch, {"x": Feature(type=ColumnType.CATEGORICAL, **options)}
    ).columns
    assert isinstance(column, Categorical)
    return column, schema, batch


def codes_of(column: Categorical, schema: TabularSchema, *names: str | None) -> list[float]:
    values = schema.from_records([{"x": name} for name in names]).values["x"]
    return column.encode(values)[:, 0].tolist()


def test_values_that_are_no_levels_are_told_apart_by_their_frequency() -> None:
    column, schema, _ = merchants()
    assert column.names == ("(never seen)", "often", "(seen once)", "(seen 2 times or more)")
    assert codes_of(column, schema, "new", "often", "once", "twice", "thrice") == [0, 1, 2, 3, 3]
    assert math.isnan(codes_of(column, schema, None)[0])


def test_each_training_row_is_left_out_of_its_own_count() -> None:
    """So the share of training rows without a known value is that of new rows from the source."""
    column, _, batch = merchants()
    encoding = TabularEncoding((column,))
    names = dict(zip(batch.values["x"].names, range(100), strict=False))  # type: ignore[union-attr]
    codes = {name: encoding.encode_training(batch)[batch.values["x"].codes == code, 0].tolist()  # type: ignore[union-attr]
             for name, code in names.items()}  # fmt: skip
    assert codes["single0"] == codes["once"] == [0]
    assert (codes["twice"], codes["thrice"]) == ([2, 2], [3, 3, 3])
    assert codes["often"] == [1] * 40
    assert math.isnan(encoding.encode_training(batch)[-1, 0])


def test_left_out_counts_predict_the_share_of_new_values() -> None:
    """Rows of one source: the code 0 is as frequent among training rows as among later ones."""
    rng = np.random.default_rng(0)
    schema = schema_of(x="categorical")
    rows = [{"x": str(value)} for value in rng.zipf(1.4, 20_000).clip(max=10**9)]
    train, later = (schema.from_records(part) for part in (rows[:10_000], rows[10_000:]))
    encoding = fit_encoding(schema, train)
    shares = [
        np.bincount(x[:, 0].astype(int), minlength=80)[[0, *range(65, 80)]] / 10_000
        for x in (encoding.encode_training(train), encoding.encode(later), encoding.encode(train))
    ]
    assert shares[0][0] > 0.05
    assert np.abs(shares[0] - shares[1]).max() < 0.01
    assert shares[2][0] == 0  # as if no new row could have a new value


def test_columns_with_few_rows_or_values_outside_the_levels_have_no_bands() -> None:
    assert merchants(rarity=None)[0].bands is None
    assert merchants(min_count=1)[0].bands is None  # all values are levels
    few = fit_one([*"abcd"] * 10 + ["e"], "categorical").columns[0]
    assert few.bands is None  # type: ignore[union-attr]
    rare = fit_one(["a"] * 1_000 + [f"b{i}" for i in range(40)], "categorical").columns[0]
    assert rare.bands is None  # type: ignore[union-attr]


def test_a_column_without_bands_is_stored_as_in_earlier_versions() -> None:
    [content] = fit_one([*"aaaaabbbbb"], "categorical").to_json()
    assert content == {"name": "x", "type": "categorical", "levels": ["a", "b"], "width": 1}


def test_bands_and_counts_survive_the_bundle() -> None:
    column, schema, batch = merchants(rarity=0.5)
    encoding = TabularEncoding((column,))
    manifest = json.loads(json.dumps(encoding.to_json()))
    assert manifest[0]["bands"] == {"rows": 76, "values": [31, 31, 2], "rarity": 0.5}
    restored = TabularEncoding.from_json(manifest).with_counts(encoding.counts())
    assert bits(restored.encode(batch)) == bits(encoding.encode(batch))
    assert restored.layout == encoding.layout
    assert restored.layout.log_shares == (
        (-math.log(31) / 2, 0, -math.log(31) / 2, -math.log(2) / 2),
    )
    assert codes_of(restored.columns[0], schema, "new", "twice") == [0, 3]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="column 'x' are absent"):
        TabularEncoding.from_json(manifest).with_counts({})


def test_decoded_bands_are_encoded_again_and_are_no_levels() -> None:
    column, schema, _ = merchants()
    codes = np.array([[0], [1], [2], [3], [math.nan]], np.float32)
    names = column.decode(codes)
    np.testing.assert_array_equal(codes_of(column, schema, *names), codes[:, 0])
    assert column.levels_from(codes).codes.tolist() == [-1, 0, -1, -1, -1]


def test_an_explanation_says_how_often_training_saw_a_value() -> None:
    column, schema, _ = merchants()
    values = schema.from_records(
        [{"x": name} for name in ("new", "once", "twice", "often", None)]
    ).values["x"]
    assert isinstance(values, Levels)
    level, band = (np.full((5, 1), code, np.float32) for code in (1, 2))
    assert column.expected(values, level) == [
        "the frequent value often; this one was never seen in 76 training rows",
        "the frequent value often; this one was seen once in 76 training rows",
        "the frequent value often; this one was seen 2 times in 76 training rows",
        "often",
        "often",
    ]
    assert column.expected(values, band)[2:4] == [
        "a value seen once; this one was seen 2 times in 76 training rows",
        "(seen once)",
    ]


def test_a_text_that_is_no_unicode_is_a_value() -> None:
    column, schema, _ = merchants()
    assert codes_of(column, schema, "\ud800") == [0]


def test_the_values_that_are_no_levels_are_reported() -> None:
    column, _, batch = merchants()
    [pooled] = pooled_levels(TabularEncoding((column,)), batch)
    assert str(pooled) == (
        "column 'x': 1 of 34 values are kept as levels; the others, in 47.4% of the training rows, "
        "are told apart only by how often training saw them"
    )
    column, _, batch = merchants(rarity=None)
    [pooled] = pooled_levels(TabularEncoding((column,)), batch)
    assert str(pooled).endswith(
        "become one level; data.features.x.max_levels and min_count keep more"
    )
    column, _, batch = merchants(min_count=1)
    assert pooled_levels(TabularEncoding((column,)), batch) == ()


def test_a_column_of_rare_levels_has_the_one_code_for_others() -> None:
    encoding = fit_one([f"v{i}" for i in range(20)], "categorical")
    assert encoding.layout.n_levels == (1,)


# ---------------------------------------------------------------- times


def cycles_of(seconds: Any) -> dict[str, Cyclic]:
    values = pa.array((np.asarray(seconds) * 1e6).astype(np.int64)).cast(pa.timestamp("us"))
    columns = fit_one(values, "datetime").columns
    assert all(isinstance(column, Cyclic) for column in columns)
    return {column.part: column for column in columns if isinstance(column, Cyclic)}


def test_cycles_are_kept_where_training_spans_enough_of_them() -> None:
    hourly = np.arange(0, 60 * DAY, HOUR)
    assert list(cycles_of(hourly)) == ["hour", "weekday"]
    assert list(cycles_of(hourly[: 24 * 10])) == ["hour"]
    assert list(cycles_of(hourly[: 24 * 3])) == []


def test_a_cycle_that_stands_still_is_left_out() -> None:
    """Dates without a time of day have no hour; weekly ones have no day of the week."""
    assert list(cycles_of(np.arange(60) * DAY)) == ["weekday"]
    assert list(cycles_of(np.arange(60) * 7 * DAY)) == []


def test_a_time_is_a_point_of_the_unit_circle_and_one_period_later_the_same() -> None:
    column = cycles_of(np.arange(0, 60 * DAY, HOUR))["hour"]
    x = column.encode(np.array([0.0, 6 * HOUR, 30 * HOUR]))
    np.testing.assert_allclose(x, [[0, 1], [1, 0], [1, 0]], atol=1e-6)
    assert np.isnan(column.encode(np.array([math.nan]))).all()


@given(st.integers(0, 24 * 60 - 1))
def test_an_hour_is_spelled_to_the_minute(minute: int) -> None:
    column = Cyclic(name="t", part="hour", period=DAY, shift=0.0)
    spelled = f"{minute // 60:02d}:{minute % 60:02d}"
    assert column.observed(np.array([minute * 60.0, math.nan])) == [spelled, None]
    assert column.label == "t.hour"


@pytest.mark.parametrize(
    ("date", "day"),
    [("2024-01-01", "Mon"), ("2024-02-29T23:59:59", "Thu"), ("1969-12-31", "Wed"),
     ("2024-09-08", "Sun")],
)  # fmt: skip
def test_a_day_is_spelled_by_its_name(date: str, day: str) -> None:
    column = cycles_of(np.arange(0, 60 * DAY, HOUR))["weekday"]
    batch = schema_of(x="datetime").from_records([{"x": date}])
    values = batch.values["x"]
    assert isinstance(values, np.ndarray)
    assert column.observed(values) == [day]


# ---------------------------------------------------------------- the whole matrix


def test_columns_come_numeric_binary_categorical() -> None:
    layout = ENCODING.layout
    assert ENCODING.labels == ("n", "t", "m", "b", "c")
    assert (layout.n_numeric, layout.n_binary, layout.n_levels) == (6, 1, (4,))
    assert (layout.n_columns, layout.n_categorical, layout.max_levels) == (8, 1, 4)
    numeric, binary, categorical = layout.split(ENCODING.encode(TRAIN))
    assert (numeric.shape[1], binary.shape[1], categorical.shape[1]) == (6, 1, 1)
    assert set(np.unique(binary)) <= {0, 1}
    assert set(np.unique(categorical)) <= {0, 1, 2, 3}


def test_the_cells_of_a_time_belong_to_one_column() -> None:
    nats = np.arange(8.0)[None, :]
    np.testing.assert_array_equal(ENCODING.per_column(nats), [[0, 1 + 2 + 3 + 4, 5, 6, 7]])


def test_every_column_of_the_matrix_knows_its_source() -> None:
    """The columns are n, the sine and cosine of t's hour and of its weekday, m, b, c."""
    n, *t, m, b, c = ENCODING.sources.tolist()
    assert len(t) == 4
    assert len(set(t)) == 1
    assert sorted({n, t[0], m, b, c}) == [0, 1, 2, 3, 4]


def naive(column: Any, values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Encode one column by its definition."""
    if not isinstance(column, Numeric):
        encoded: NDArray[np.float32] = column.encode(values)
        return encoded
    v = values - column.center
    if column.unit is not None:
        v = np.arcsinh(v / column.unit) - column.offset
    return np.clip(v / column.scale, -EXTREME, EXTREME).astype(np.float32)[:, None]


doubles = st.floats(allow_infinity=False)
binaries = st.sampled_from([0.0, 1.0, math.nan])
HEAVY = [0.0] * 9 + [1.0] * 9 + [1e9]


@given(
    st.lists(st.tuples(finite, finite), min_size=1, max_size=20),
    st.lists(st.tuples(doubles, doubles, doubles, binaries), max_size=20),
)
@example([(LARGEST, 5e-324), (-LARGEST, 0.0)], [(LARGEST, -LARGEST, 0.0, 1.0)])
@example([(v, -v) for v in HEAVY], [(-1e9, math.nan, -0.0, 0.0), (0.3, 2e9, 1e5, math.nan)])
@np.errstate(over="ignore")
def test_numbers_encoded_together_are_the_bits_of_each_alone(
    train: list[tuple[float, float]], rows: list[tuple[float, ...]]
) -> None:
    """Numbers, heavy-tailed or not, and zeros and ones, with cycles of a time in between."""
    schema = schema_of(a="numeric", t="datetime", b="numeric", c="binary")
    a, b = np.array(train).T
    known = {"a": a, "t": np.arange(len(a)) * 3.7 * DAY, "b": b, "c": np.sign(np.abs(a))}
    encoding = fit_encoding(schema, RawBatch(known, len(a)))
    values = dict(zip("abtc", np.array(rows).reshape(-1, 4).T, strict=True))
    alone = [naive(column, values[column.name]) for column in encoding.columns]
    assert bits(encoding.encode(RawBatch(values, len(rows)))) == bits(np.hstack(alone))


def bits(x: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(x).tobytes()


@given(st.lists(st.integers(0, 199), min_size=1, max_size=8))
def test_a_rows_encoding_depends_on_that_row_alone(rows: list[int]) -> None:
    together = ENCODING.encode(TRAIN)
    chosen = ENCODING.encode(TRAIN.take(np.array(rows)))
    assert bits(chosen) == bits(together[rows])
    alone = MIXED.from_arrow(mixed_rows().slice(rows[0], 1))
    assert bits(ENCODING.encode(alone)) == bits(together[rows[:1]])


def test_records_and_their_table_encode_to_the_same_bits() -> None:
    table = mixed_rows()
    records = [{**row, "t": row["t"].isoformat()} for row in table.to_pylist()]
    from_records = ENCODING.encode(MIXED.from_records(records))
    text = pa.table(
        {name: pa.array([str(v) for v in table[name].to_pylist()]) for name in MIXED.names}
    )
    assert bits(from_records) == bits(ENCODING.encode(MIXED.from_arrow(table)))
    assert bits(from_records) == bits(ENCODING.encode(MIXED.from_arrow(text)))


def test_everything_missing_is_nan_throughout() -> None:
    x = ENCODING.encode(MIXED.from_records([{}]))
    assert x.shape == (1, 8)
    assert np.isnan(x).all()
    assert ENCODING.decode(x) == [[None]] * 6
    assert ENCODING.observed(MIXED.from_records([{}])) == [[None]] * 5


def test_no_rows_encode_to_no_rows() -> None:
    assert ENCODING.encode(MIXED.from_records([])).shape == (0, 8)


@given(columns_of_numbers)
def test_an_encoding_survives_the_manifest_exactly(train: list[float]) -> None:
    schema = schema_of(n="numeric", c="categorical", b="binary")
    table = pa.table({"n": train, "c": ["é"] * len(train), "b": [True] * len(train)})
    encoding = fit_encoding(schema, schema.from_arrow(table))
    manifest = json.dumps(encoding.to_json(), allow_nan=False)
    assert TabularEncoding.from_json(json.loads(manifest)) == encoding
    whole = json.loads(json.dumps(ENCODING.to_json(), allow_nan=False))
    assert TabularEncoding.from_json(whole) == ENCODING


def test_a_typical_record_is_central_and_is_read_back() -> None:
    record = ENCODING.typical_record(MIXED)
    assert list(record) == list(MIXED.names)
    batch: RawBatch = MIXED.from_records([record])
    assert batch.problems == ()
    assert np.abs(ENCODING.encode(batch)[0, :1]).max() < 1


# ---------------------------------------------------------------- what is usual, what is possible


@given(columns_of_numbers, st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=10))
def test_no_expected_number_is_beyond_the_training_values(
    train: list[float], encoded: list[float]
) -> None:
    """Rounding to six digits does not lead beyond them either."""
    column = fit_numeric(train)
    x = np.array(encoded, np.float32)[:, None]
    assert all(min(train) <= v <= max(train) for v in column.expected(x[:, 0], x) if v is not None)
    assert column.limits == (min(train), max(train))


def test_the_expected_value_of_a_constant_binary_column_is_its_value() -> None:
    [column] = fit_one(pa.array([0] * 20), "binary").columns
    assert isinstance(column, Binary)
    assert column.expected(np.zeros(2), np.array([[0.2], [0.9]])) == [0.0, 0.0]


def test_expected_times_are_joined_and_missing_ones_are_none() -> None:
    rows = MIXED.from_records([{"t": "2024-09-08T00:02:00"}, {"t": None}])
    x = ENCODING.encode(rows)
    place = ENCODING.labels.index("t")
    assert ENCODING.observed(rows)[place] == ["Sun 00:02", None]
    assert ENCODING.expected(rows, x)[place] == ["Sun 00:02", None]


def test_usual_numbers_are_those_of_nine_rows_in_ten() -> None:
    column = fit_numeric(np.arange(1, 1_001))
    assert column.usual == (50, 950)
    assert fit_numeric([1.0, 2.0]).usual == (1.0, 2.0)


def hours(first: int, last: int, odd: int = 0) -> NDArray[np.float64]:
    """Return a time in each of these hours on each of 60 days, and ``odd`` times at 3 o'clock."""
    regular = [day * DAY + (hour % 24) * HOUR for day in range(60) for hour in range(first, last)]
    return np.array([*regular, *(day * DAY + 3 * HOUR for day in range(odd))])


@pytest.mark.parametrize(
    ("seconds", "usual"),
    [
        (hours(11, 18), (11, 17)),
        (hours(11, 18, odd=10), (11, 17)),
        (hours(22, 28), (22, 3)),
        (hours(0, 24), None),
    ],
)
def test_usual_hours_are_the_fewest_that_hold_nine_rows_in_ten(
    seconds: NDArray[np.float64], usual: tuple[int, int] | None
) -> None:
    assert cycles_of(seconds)["hour"].usual == usual


def test_usual_weekdays_are_counted_from_monday() -> None:
    days = np.arange(60 * 24) * HOUR
    working = days[np.mod(days + 3 * DAY, 7 * DAY) < 5 * DAY]
    assert cycles_of(working)["weekday"].usual == (0, 4)
    assert cycles_of(days)["weekday"].usual is None


def test_a_manifest_without_what_is_usual_is_read_and_stays_as_it_is() -> None:
    """Bundles of earlier versions have no such keys."""
    old = [
        {key: value for key, value in column.items() if key not in ("limits", "usual")}
        for column in ENCODING.to_json()
    ]
    encoding = TabularEncoding.from_json(old)
    assert encoding.to_json() == old
    rows = MIXED.from_records([{"n": 3.0, "b": 1}])
    x = encoding.encode(rows)
    np.testing.assert_array_equal(x, ENCODING.encode(rows))
    assert encoding.expected(rows, x)[0] == [3.0]


def test_what_is_usual_is_stored_in_the_manifest() -> None:
    stored = json.loads(json.dumps(ENCODING.to_json()))
    assert TabularEncoding.from_json(stored) == ENCODING
