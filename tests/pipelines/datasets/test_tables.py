"""From files to a split data set, and on to a bundle: each input works or fails in one line."""

import csv
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.errors import AnomalyVAEError, ConfigError, DataError
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.labels import label_masks
from pipelines.datasets.loading import load_dataset

N = 200
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=N)
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
HOURS = [START + dt.timedelta(hours=7 * i) for i in range(N)]
FRAUD = [3, 50, 120, 190, 199]
LABELS = [int(i in FRAUD) for i in range(N)]


def config_of(path: Path, **data: Any) -> Config:
    return validate_config(
        {"name": "x", "data": {"path": str(path), **data}, "training": {"epochs": 2}}
    )


def as_parquet(folder: Path, columns: Mapping[str, Any]) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(dict(columns)), path)
    return path


def as_csv(folder: Path, columns: Mapping[str, Any]) -> Path:
    """As Python's own writer spells the values; missing is empty."""
    path = folder / "rows.csv"
    rows = zip(*(pa.array(values).to_pylist() for values in columns.values()), strict=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *rows])
    return path


def load(folder: Path, columns: Mapping[str, Any], **data: Any) -> Dataset:
    return load_dataset(config_of(as_parquet(folder, columns), **data).data)


def through(path: Path, **data: Any) -> tuple[Dataset, np.ndarray[Any, Any]]:
    """The data set, and the scores of its test split by a bundle of two epochs."""
    config = config_of(path, **data)
    dataset = load_dataset(config.data)
    prepared = prepare(config, dataset.schema, dataset.part(TRAIN), dataset.part(VALIDATION))
    fitted = fit_bundle(config, prepared, dataset.summary())
    return dataset, fitted.bundle.scorer.score(dataset.part(TEST))


# ---------------------------------------------------------------- what works

DECLARED = dict(zip("abcd", ("numeric", "binary", "categorical", "datetime"), strict=True))
WORKS: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {
    "500 columns": ({f"c{i}": RNG.normal(size=N) for i in range(500)}, {}),
    "20 rows": ({"a": NORMAL[:20], "b": ["u"] * 19 + ["v"]}, {}),
    "one column among empty ones": ({"a": [None] * N, "b": pa.nulls(N), "c": NORMAL}, {}),
    "empty columns of every type": (
        dict.fromkeys("abcd", pa.nulls(N)),
        {"features": {name: {"type": kind} for name, kind in DECLARED.items()}},
    ),
    "constants": ({"a": [5.0] * N, "b": ["x"] * N, "c": [True] * N}, {}),
    "levels": ({"a": RNG.choice(list("abc"), N), "b": RNG.choice(list("xyz"), N)}, {}),
    "rare levels": ({"a": [f"v{i % 40}" for i in range(N)]}, {}),
    "dates": ({"a": HOURS}, {}),
    "the largest numbers": ({"a": [1.7e308, -1.7e308] * (N // 2), "b": NORMAL}, {}),
    "heavy tails": ({"a": RNG.standard_cauchy(N), "b": np.exp(RNG.normal(0, 5, N))}, {}),
    "half of the cells missing": (
        {"a": np.where(RNG.random(N) < 0.5, np.nan, NORMAL), "b": [None, "x"] * (N // 2)},
        {},
    ),
    "0 and 1": ({"a": NORMAL, "y": LABELS}, {"label": "y"}),
    "labels with gaps": (
        {"a": NORMAL, "y": [None if i % 3 == 1 else y for i, y in enumerate(LABELS)]},
        {"label": "y"},
    ),
    "booleans": ({"a": NORMAL, "y": [y == 1 for y in LABELS]}, {"label": "y"}),
    "words": (
        {"a": NORMAL, "y": ["fraud" if y else "genuine" for y in LABELS]},
        {"label": "y", "positive": "fraud"},
    ),
    "no anomaly": ({"a": NORMAL, "y": [0] * N}, {"label": "y"}),
    "groups": ({"a": NORMAL, "g": np.arange(N) % 40}, {"group": "g"}),
    "groups in time": (
        {"a": NORMAL, "g": np.arange(N) % 40, "t": HOURS},
        {"group": "g", "time": "t"},
    ),
    "nested columns": ({"a": NORMAL, "b": [[1]] * N, "c": [{"x": 1}] * N}, {}),
    "a few cells that do not fit": (
        {"a": ["1", "x", *["2"] * (N - 2)], "b": NORMAL},
        {"features": {"a": {"type": "numeric"}, "b": {"type": "numeric"}}},
    ),
}


@pytest.mark.parametrize("case", WORKS)
def test_it_trains_on(case: str, tmp_path: Path) -> None:
    columns, data = WORKS[case]
    dataset, scores = through(as_parquet(tmp_path, columns), **data)
    assert len(scores) == dataset.assignment.counts["test"] > 0
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    "case", ["levels", "0 and 1", "labels with gaps", "booleans", "words", "groups", "heavy tails"]
)
def test_csv_and_parquet_of_the_same_rows_make_the_same_model(case: str, tmp_path: Path) -> None:
    columns, data = WORKS[case]
    parquet, scores = through(as_parquet(tmp_path, columns), **data)
    text, from_text = through(as_csv(tmp_path, columns), **data)
    assert text.schema == parquet.schema
    assert text.summary() == parquet.summary()
    np.testing.assert_array_equal(from_text, scores)


# ---------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[Mapping[str, Any], dict[str, Any], str]] = {
    "1 row": ({"a": [1.0], "b": ["x"]}, {}, r"0 of 1 rows are left to train on, .* give more rows"),
    "0 rows": ({"a": pa.array([], pa.float64())}, {}, r"no rows in '.*rows\.parquet'"),
    "nothing but missing": (
        {"a": pa.nulls(N), "b": [None] * N},
        {},
        "no column is left to learn from; found 'a', 'b'",
    ),
    "dates without a cycle": ({"a": [START] * N}, {}, "only ones are dates without a cycle"),
    "numbers mixed with text": (
        {"a": ["12,50", *["2"] * (N - 1)], "b": NORMAL},
        {},
        r"column 'a' mixes numbers with text: .* '12,50'; .* declare data\.types\.a\.type",
    ),
    "text declared as numbers": (
        {"a": ["x"] * N},
        {"features": {"a": {"type": "numeric"}}},
        "200 rows left out, .* column 'a', row 0: expected a number, got 'x'",
    ),
    "a list declared as numbers": (
        {"a": [[1]] * N},
        {"features": {"a": {"type": "numeric"}}},
        "column 'a': expected numbers, found list",
    ),
    "no label column": ({"a": NORMAL}, {"label": "fraud"}, "the column 'fraud'.*not there.*'a'"),
    "no label at all": ({"a": NORMAL, "y": pa.nulls(N)}, {"label": "y"}, "'y' has no label"),
    "nothing but anomalies": (
        {"a": NORMAL, "y": [1] * N},
        {"label": "y"},
        "0 of 200 rows are left to train on, at least 10 normal ones",
    ),
    "words without the positive one": (
        {"a": NORMAL, "y": ["fraud", "ok"] * (N // 2)},
        {"label": "y"},
        r"column 'y' never has the value '1' that data\.positive names .*; found 'fraud', 'ok'",
    ),
    "a positive label that no row has": (
        {"a": NORMAL, "y": [0, 1] * (N // 2)},
        {"label": "y", "positive": 2},
        r"column 'y' never has the value '2' that data\.positive names",
    ),
    "labels that are lists": ({"a": NORMAL, "y": [[1]] * N}, {"label": "y"}, "column 'y': exp"),
    "groups that are lists": ({"a": NORMAL, "g": [[1]] * N}, {"group": "g"}, "column 'g': exp"),
    "ids that are lists": ({"a": NORMAL, "i": [[1]] * N}, {"id": "i"}, r"data\.id names .* 'i'"),
    "one group": ({"a": NORMAL, "g": [1] * N}, {"group": "g"}, "0 of 200 rows are left"),
    "numbers as times": ({"a": NORMAL, "t": NORMAL}, {"time": "t"}, r"data\.time .* 't': expected"),
    "words as times": ({"a": NORMAL, "t": ["x"] * N}, {"time": "t"}, "column 't', row 0: expected"),
    "no times": ({"a": NORMAL, "t": pa.nulls(N)}, {"time": "t"}, "200 outside every split"),
    "a gap wider than the data": (
        {"a": NORMAL, "t": HOURS},
        {"time": "t", "splits": {"gap_days": 1_000}},
        "0 of 200 rows are left to train on",
    ),
    "an unknown key": ({"a": NORMAL}, {"lable": "y"}, r"key data\.lable, did you mean label"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, tmp_path: Path) -> None:
    columns, data, expected = REFUSED[case]
    with pytest.raises((DataError, ConfigError), match=expected) as caught:
        through(as_parquet(tmp_path, columns), **data)
    assert isinstance(caught.value, AnomalyVAEError)
    assert "\n" not in str(caught.value)


def test_a_csv_header_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no rows in '.*rows\.csv'"):
        through(tmp_path / "rows.csv")


# ---------------------------------------------------------------- the data set


def test_notes_say_what_was_left_out_and_what_did_not_fit(tmp_path: Path) -> None:
    columns = {"a": ["1.5", "x", *["2.5"] * (N - 2)], "e": pa.nulls(N), "b": NORMAL}
    declared = {"a": {"type": "numeric"}, "b": {"type": "numeric"}}
    dataset = load(tmp_path, columns, features=declared)
    assert dataset.notes == (
        "1 rows left out, their cells do not fit, such as column 'a', row 1: "
        "expected a number, got 'x'",
    )
    dataset = load(tmp_path, {"e": pa.nulls(N), "b": NORMAL})
    assert dataset.notes == ("column 'e': left out, it has no value in the training rows",)


def test_repeated_ids_are_counted_and_missing_ones_are_not(tmp_path: Path) -> None:
    ids = ["a", "a", "a", None, None, *map(str, range(N - 5))]
    dataset = load(tmp_path, {"i": ids, "a": NORMAL}, id="i")
    assert dataset.duplicate_ids == dataset.summary()["duplicate_ids"] == 2
    assert dataset.schema.names == ("a",)


def test_rows_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"a": NORMAL, "g": [None] * N}, group="g")
    assert dataset.rows.group is not None
    assert len(set(dataset.rows.group.tolist())) == N


def test_groups_and_labels_keep_what_they_promise(tmp_path: Path) -> None:
    columns = {"a": NORMAL, "g": [f"customer {i % 50}" for i in range(N)], "y": LABELS}
    dataset = load(tmp_path, columns, group="g", label="y")
    groups = dataset.table.column("g").to_numpy()
    parts = [dataset.assignment.rows(split) for split in (TRAIN, VALIDATION, CALIBRATION, TEST)]
    seen = [set(groups[rows]) for rows in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert not dataset.rows.anomaly[np.concatenate(parts[:3])].any()


def test_the_test_table_holds_the_rows_of_the_test_split(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"a": NORMAL, "t": HOURS, "n": range(N)}, time="t")
    assert dataset.test_table.column("n").to_pylist() == list(range(160, N))


def test_the_digest_is_of_the_values_the_labels_and_the_split(tmp_path: Path) -> None:
    columns = {"a": NORMAL, "b": ["x", "y"] * (N // 2), "y": LABELS, "i": range(N)}
    roles = {"label": "y", "id": "i"}
    digest = load(tmp_path, columns, **roles).digest
    assert load(tmp_path, columns, **roles).digest == digest
    assert load(tmp_path, {**columns, "i": range(N, 2 * N)}, **roles).digest == digest
    changed = [
        load(tmp_path, {**columns, "a": NORMAL + 1e-9}, **roles),
        load(tmp_path, {**columns, "b": ["y", "x"] * (N // 2)}, **roles),
        load(tmp_path, {**columns, "y": LABELS[::-1]}, **roles),
        load(tmp_path, columns, **roles, splits={"seed": 1}),
    ]
    assert len({digest, *(dataset.digest for dataset in changed)}) == 5


def test_the_digest_tells_labels_apart_that_leave_the_split_alone(tmp_path: Path) -> None:
    other = [int(i in {3, 50, 120, 191, 199}) for i in range(N)]  # 190 and 191 are both tested
    first, second = (
        load(tmp_path, {"a": NORMAL, "t": HOURS, "y": labels}, time="t", label="y")
        for labels in (LABELS, other)
    )
    assert first.assignment.digest == second.assignment.digest
    assert first.digest != second.digest


def test_the_summary_adds_up_and_holds_no_path(tmp_path: Path) -> None:
    columns = {"a": NORMAL, "t": HOURS, "y": LABELS}
    dataset = load(tmp_path, columns, time="t", label="y")
    summary = dataset.summary()
    assert sum(summary["splits"].values()) == summary["rows"] == N
    assert sum(summary["unused"].values()) == summary["splits"]["unused"] == 3
    assert summary["anomalies"] == len(FRAUD)
    assert summary["split_digest"] == dataset.assignment.digest
    assert str(tmp_path) not in str(summary)


# ---------------------------------------------------------------- labels

ONE = pa.chunked_array([[1, 0, None]])


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, None], [1.0, 0.0, None], [True, False, None], ["1", "0", ""], ["1.0", "0.0", None],
        ["true", "false", None], ["True", "False", ""], ["TRUE", "FALSE", None],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("positive", [1, 1.0, True, "1", "true", "True"], ids=repr)
def test_one_and_true_mean_the_same_however_they_are_written(
    labels: list[Any], positive: object
) -> None:
    column = pa.chunked_array([labels])
    assert label_masks(column, positive, "y")[0].tolist() == [True, False, False]


def test_zero_may_be_the_value_that_means_anomaly() -> None:
    assert label_masks(ONE, 0, "y")[0].tolist() == [False, True, False]
    assert label_masks(ONE, False, "y")[0].tolist() == [False, True, False]


def test_labels_of_one_kind_only_are_fine() -> None:
    """A month without fraud is a month."""
    assert not label_masks(pa.chunked_array([[0, 0]]), 1, "y")[0].any()


def test_a_table_without_an_anomaly_has_none_whatever_the_labels_are() -> None:
    assert not label_masks(pa.chunked_array([["ok", "ok"]]), "fraud", "y")[0].any()


def test_markers_of_missing_labels_are_no_labels() -> None:
    labels = pa.chunked_array([["NULL", "NA", "0", "1", None]])
    assert label_masks(labels, 1, "y")[1].tolist() == [True, True, False, False, True]


def test_labels_of_many_kinds_have_one_that_counts() -> None:
    column = pa.chunked_array([["theft", "ok"], ["loss", "theft"]])
    assert label_masks(column, "theft", "y")[0].tolist() == [True, False, False, True]


# ---------------------------------------------------------------- what only later rows show


def test_a_column_that_starts_after_the_training_rows_is_left_out(tmp_path: Path) -> None:
    """It would be standardised by nothing, and every later row would look anomalous."""
    late = [None] * (N - 40) + [1000.0] * 40
    dataset = load(tmp_path, {"a": NORMAL, "late": late, "t": HOURS}, time="t")
    assert "late" not in dataset.schema.names
    assert "column 'late': left out, it has no value in the training rows" in dataset.notes


def test_rows_without_a_label_are_told(tmp_path: Path) -> None:
    labels = [None if i % 2 else 0 for i in range(N)]
    dataset = load(tmp_path, {"a": NORMAL, "y": labels}, label="y")
    assert any("rows without a label among those that train" in note for note in dataset.notes)


# ---------------------------------------------------------------- groups and the frozen test


def test_one_row_of_each_group_calibrates(tmp_path: Path) -> None:
    groups = [i // 4 for i in range(N)]
    dataset = load(tmp_path, {"a": NORMAL, "g": groups}, group="g")
    chosen = dataset.calibration_rows
    assert set(chosen) <= set(dataset.assignment.rows(CALIBRATION))
    assert len(chosen) == dataset.assignment.counts["calibration"] / 4


@pytest.mark.parametrize("id_column", [None, "i"])
def test_no_row_of_a_frozen_test_split_trains(tmp_path: Path, id_column: str | None) -> None:
    columns = {"i": [f"r{i}" for i in range(N)], "a": NORMAL, "c": list("xyzw") * (N // 4)}
    ignore = () if id_column else ("i",)
    dataset = load(tmp_path, columns, id=id_column, ignore=ignore)
    later = dataset.without(dataset.table.slice(0, 60))
    assert not np.isin(np.arange(60), later.assignment.rows(TRAIN)).any()
    assert later.assignment.unused["in the frozen test split"] > 30
    assert (later.assignment.rows(TEST) == dataset.assignment.rows(TEST)).all()
    assert later.origin == dataset.digest != later.digest


def test_a_data_sets_own_frozen_test_split_changes_nothing(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"i": [f"r{i}" for i in range(N)], "a": NORMAL}, id="i")
    again = dataset.without(dataset.test_table)
    assert again.digest == dataset.digest


def test_twins_of_its_own_test_split_do_not_change_a_data_set(tmp_path: Path) -> None:
    """Else a model could not be calibrated again once its test split is frozen."""
    dataset = load(tmp_path, {"a": [float(i % 50) for i in range(N)]})
    assert dataset.without(dataset.test_table).digest == dataset.digest


# ---------------------------------------------------------------- typed tables


TEXT_KINDS = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.string_view()]


@pytest.mark.parametrize("kind", [*TEXT_KINDS, "dictionary"], ids=str)
def test_roles_and_features_of_text_are_read_from_every_type(kind: Any, tmp_path: Path) -> None:
    columns = {
        "a": NORMAL.tolist(),
        "c": [f"v{i % 3}" for i in range(N)],
        "y": ["fraud" if y else "no" for y in LABELS],
        "g": [f"g{i % 40}" for i in range(N)],
        "t": [f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in HOURS],
        "id": [f"row {i}" for i in range(N)],
    }
    data = {"label": "y", "positive": "fraud", "group": "g", "time": "t", "id": "id"}
    plain, scores = through(as_parquet(tmp_path, columns), **data)

    def convert(name: str) -> pa.Array:
        text = pa.array(columns[name])
        if name == "a":
            return text
        return text.dictionary_encode() if kind == "dictionary" else text.cast(kind)

    typed = {name: convert(name) for name in columns}
    other, found = through(as_parquet(tmp_path, typed), **data)
    assert (other.digest, other.summary()) == (plain.digest, plain.summary())
    np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize("role", ["label", "time", "group", "feature"])
def test_bytes_that_are_not_utf8_are_refused_with_file_column_and_row(
    role: str, tmp_path: Path
) -> None:
    cells: list[bytes] = [f"2024-01-{1 + i % 28:02d}".encode() for i in range(N)]
    cells[7] = b"\xff"
    data = {} if role == "feature" else {role: "b"}
    reason = r"rows.parquet': column 'b', row 7: bytes that are not UTF-8 text, as are 1 of 200 "
    with pytest.raises(DataError, match=reason):
        load(tmp_path, {"a": NORMAL, "b": cells}, **data)
    ignored = load(tmp_path, {"a": NORMAL, "b": cells}, ignore=["b"])
    assert ignored.schema.names == ("a",)
    listed = load(tmp_path, {"a": NORMAL, "b": cells}, features=["a"])
    assert listed.schema.names == ("a",)


def test_bytes_that_are_no_text_are_left_out_and_said(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"a": NORMAL, "b": [b"\xff\xfe"] * N})
    assert dataset.notes == ("column 'b': left out, it holds bytes that are not UTF-8 text",)
    with pytest.raises(DataError, match="column 'b', row 0: expected text, got bytes"):
        load(tmp_path, {"a": NORMAL, "b": [b"\xff\xfe"] * N}, label="b")


@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0", "Unnamed: 0_level_1"])
def test_an_index_of_pandas_without_a_name_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    cells = RNG.permutation(N) % 50
    dataset = load(tmp_path, {"a": NORMAL, name: cells})
    assert dataset.schema.names == ("a",)
    note = f"column '{name}': left out, it is pandas' index, which numbers the rows"
    assert dataset.notes == (note,)
    declared = load(tmp_path, {"a": NORMAL, name: cells}, features=["a", name])
    assert declared.schema.names == ("a", name)


def test_a_column_that_some_files_lack_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": NORMAL, "b": NORMAL}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": NORMAL}), tmp_path / "2.parquet")
    dataset = load_dataset(config_of(tmp_path).data)
    missing = f"such as '{tmp_path / '2.parquet'}'; its values there are missing"
    assert dataset.notes == (f"column 'a' is not in 1 of 2 files, {missing}",)


def hive(folder: Path, key: str, values: list[Any], suffix: str = "parquet") -> Path:
    """Write N rows, split evenly over the folders of these values."""
    size = N // len(values)
    for number, value in enumerate(values):
        rows = slice(number * size, (number + 1) * size)
        place = folder / f"{key}={value}"
        place.mkdir(parents=True)
        columns = {"a": NORMAL[rows], "b": [f"u{i % 3}" for i in range(size)]}
        (as_csv if suffix == "csv" else as_parquet)(place, columns)
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_folders_are_columns_with_every_role(suffix: str, tmp_path: Path) -> None:
    values = ["2018-07-0" + str(day) for day in range(1, 6)]
    path = hive(tmp_path, "day", values, suffix)
    for data in ({}, {"time": "day"}, {"group": "day"}, {"id": "day"}):
        dataset = load_dataset(config_of(path, **data).data)
        assert dataset.table["day"].to_pylist() == list(np.repeat(values, N // 5))
        assert "columns from the names of folders: 'day'" in dataset.notes
        assert ("day" in dataset.schema.names) == (data in ({}, {"time": "day"}))


@pytest.mark.parametrize("value", [1, "fraud"])
def test_a_folder_can_be_the_label(value: Any, tmp_path: Path) -> None:
    path = hive(tmp_path, "y", [0, 2, 3, 4, value])
    dataset = load_dataset(config_of(path, label="y", positive=value).data)
    assert dataset.rows.anomaly.sum() == N // 5


def test_a_folder_with_one_value_is_left_out_and_said(tmp_path: Path) -> None:
    path = hive(tmp_path / "year=2024", "shop", ["x", "y"])
    dataset = load_dataset(config_of(path).data)
    assert dataset.schema.names == ("a", "b", "shop")
    assert dataset.notes == (
        "columns from the names of folders: 'year', 'shop'",
        "column 'year': left out, the folders give it one value",
    )
