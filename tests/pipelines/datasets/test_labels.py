"""Labels that arrive late, merged into a table by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from anomaly_vae.config.data import TabularData
from anomaly_vae.data.splitting import TEST, TRAIN
from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, UNSURE
from anomaly_vae.errors import AnomalyVAEError, DataError
from anomaly_vae.review import Label, LabelStore
from pipelines.datasets.label_files import LabelSource
from pipelines.datasets.labels import late_labels, relabel
from pipelines.datasets.tables import load_table
from pipelines.datasets.verdicts import ID_TYPE, Verdicts
from tests.support.table_files import write

LATE = Verdicts(
    pa.array(["1", "2", "3", "9"], ID_TYPE),
    np.array([ANOMALY, NORMAL, UNSURE, ANOMALY], np.int8),
    np.full(4, np.nan),
)


@pytest.mark.parametrize(
    ("labels", "positive", "after"),
    [
        (pa.array([0, 1, 1, 0]), 1, [1, 0, None, 0]),
        (pa.array([0.0, 1.0, 1.0, None]), 1, [1, 0, None, None]),
        (pa.array([False, True, True, False]), 1, [True, False, None, False]),
        (pa.array([False, True, True, False]), True, [True, False, None, False]),
        (pa.array(["ok", "bad", "bad", "ok"]), "bad", ["bad", "ok", None, "ok"]),
        (pa.array(["bad", "bad"] * 2), "bad", ["bad", "normal", None, "bad"]),
        (pa.array(["ok", "bad"] * 2).dictionary_encode(), "bad", ["bad", "ok", None, "bad"]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_late_labels_are_written_as_the_column_writes_labels(
    labels: pa.Array, positive: Any, after: list[Any]
) -> None:
    table = pa.table({"tx": [1, 2, 3, 4], "y": labels})
    merged = relabel(table, "tx", "y", positive, LATE)
    assert merged.table.column("y").to_pylist() == after
    assert merged.unknown.to_pylist() == ["9"]
    assert merged.table.column_names == ["tx", "y"]


def test_the_changes_are_counted() -> None:
    table = pa.table({"tx": [1, 2, 3, 4, 1], "y": [0, 0, 1, 1, 1]})
    changes = relabel(table, "tx", "y", 1, LATE).changes
    assert (changes.changed, changes.to_anomaly, changes.to_normal, changes.to_unsure) == (
        2, 1, 0, 1,
    )  # fmt: skip
    assert (changes.anomalies_before, changes.anomalies_after) == (3, 3)
    assert "2 labels changed (1 to anomaly, 1 to unsure)" in str(changes)


def test_a_table_without_changes_stays_as_it_is() -> None:
    table = pa.table({"tx": [5, 6], "y": pa.array(["0", "1"]).dictionary_encode()})
    assert relabel(table, "tx", "y", 1, LATE).table.equals(table)


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Return the address of a store with labels of two models."""
    address = f"sqlite:///{tmp_path}/labels.db"
    with LabelStore(address) as store:
        store.add(
            [
                Label.of("fraud", 5, "normal", "alice", at=100.0),
                Label.of("fraud", "5", "anomaly", "bob", at=200.0),
                Label.of("fraud", 7, "unsure", "alice", at=100.0),
                Label.of("other", 6, "anomaly", "alice", at=100.0),
            ]
        )
    return address


def test_the_newest_labels_of_a_model_are_read_from_a_store(address: str) -> None:
    found = late_labels(LabelSource((address,), "tx", model="fraud")).verdicts
    assert dict(zip(found.ids.to_pylist(), found.codes.tolist(), strict=True)) == {
        "5": ANOMALY,
        "7": UNSURE,
    }


def test_the_newest_of_a_store_and_a_file_counts(address: str, tmp_path: Path) -> None:
    file = tmp_path / "late.csv"
    file.write_text("tx,label,at\n5,normal,1970-01-01T00:02:30\n7,anomaly,1970-01-01T01:00:00\n")
    found = late_labels(LabelSource((str(file), address), "tx", model="fraud")).verdicts
    assert dict(zip(found.ids.to_pylist(), found.codes.tolist(), strict=True)) == {
        "5": ANOMALY,
        "7": ANOMALY,
    }


def test_a_store_that_is_not_there_is_said_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(AnomalyVAEError, match=r"none\.db"):
        late_labels(LabelSource((f"sqlite:///{tmp_path}/none.db",), "tx"))
    with pytest.raises(AnomalyVAEError) as caught:
        late_labels(LabelSource(("postgresql://me:s3cret@127.0.0.1:9/labels",), "tx"))
    assert "s3cret" not in str(caught.value)


def test_an_address_with_a_password_is_no_configuration() -> None:
    with pytest.raises(ValidationError, match="PGPASSWORD"):
        TabularData(path="x", id="tx", labels="postgresql://me:s3cret@db/labels")


# ---------------------------------------------------------------- in a data set


def rows(folder: Path, **columns: Any) -> Path:
    """Write 200 rows, a day apart, of which row 10 is an anomaly."""
    rng = np.random.default_rng(0)
    days = np.datetime64("2024-01-01") + np.arange(200)
    table = {"tx": np.arange(200), "at": days, "amount": rng.normal(size=200), **columns}
    path = folder / "rows.parquet"
    pq.write_table(pa.table(table), path)
    return path


def data(folder: Path, labels: str, **options: Any) -> TabularData:
    label = np.where(np.arange(200) == 10, 1, 0)
    columns = {"y": label} if options.get("label") else {}
    path = rows(folder, **columns)
    late = write(folder / "late.csv", labels)
    return TabularData(path=str(path), id="tx", time="at", labels=str(late), **options)


def test_late_anomalies_neither_train_nor_calibrate(tmp_path: Path) -> None:
    late = "tx,label\n10,normal\n20,anomaly\n190,anomaly\n191,unsure\n"
    found = load_table(data(tmp_path, late, label="y"))
    codes = found.assignment.codes
    assert np.flatnonzero(found.rows.anomaly).tolist() == [20, 190]
    assert codes[20] not in (TRAIN, TEST)
    assert codes[190] == TEST
    assert codes[191] != TEST, "an unsure row is unlabelled, and tests nothing"
    assert "3 labels" not in found.label_notes[0]
    assert "4 labels changed (2 to anomaly, 1 to normal, 1 to unsure)" in found.label_notes[0]
    test = dict(zip(*found.test_table.select(["tx", "y"]).to_pydict().values(), strict=True))
    assert test[190] == 1


def test_other_labels_are_other_data_and_other_digests(tmp_path: Path) -> None:
    before = load_table(data(tmp_path, "tx,label\n", label="y"))
    test_label = load_table(data(tmp_path, "tx,label\n190,1\n", label="y"))
    train_label = load_table(data(tmp_path, "tx,label\n20,1\n", label="y"))
    assert len({before.digest, test_label.digest, train_label.digest}) == 3
    assert before.fit_digest == test_label.fit_digest
    assert before.fit_digest != train_label.fit_digest
    assert before.summary()["fit_digest"] == before.fit_digest
    assert "none yet" in before.label_notes[0]


def test_without_a_label_column_every_other_row_is_normal(tmp_path: Path) -> None:
    found = load_table(data(tmp_path, "tx,label\n190,anomaly\n191,unsure\n"))
    assert found.label == "label"
    assert np.flatnonzero(found.rows.anomaly).tolist() == [190]
    assert np.flatnonzero(found.rows.unlabelled).tolist() == [191]
    assert "label" not in found.schema.names


def test_no_anomaly_need_have_arrived_yet(tmp_path: Path) -> None:
    found = load_table(data(tmp_path, "tx,label\n", positive="fraud"))
    assert not found.rows.anomaly.any()


def test_a_column_called_label_is_not_taken_for_a_feature(tmp_path: Path) -> None:
    path = rows(tmp_path, label=np.zeros(200))
    late = write(tmp_path / "late.csv", "tx,label\n1,1\n")
    with pytest.raises(DataError, match=r"set data\.label: label"):
        load_table(TabularData(path=str(path), id="tx", labels=str(late)))


def test_late_labels_need_ids() -> None:
    with pytest.raises(ValueError, match="name their column in id"):
        TabularData(path="rows.csv", labels="late.csv")
