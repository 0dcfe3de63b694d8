"""Test the commands that fill the window store and forget an entity."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.errors import ConfigError, DataError, WindowStoreError
from anomaly_vae.features.inputs import Event
from anomaly_vae.features.store import StoreOptions, open_store
from pipelines import windows
from pipelines.registry.model_uri import open_model
from tests.support.paths import ROOT
from tests.support.window_streams import DAY, INPUTS, START, stream
from tests.support.windowed import record_of

EVENTS = stream(300, seed=31)


@pytest.fixture
def source(windowed_folder):
    return open_model(str(windowed_folder))


@pytest.fixture
def files(tmp_path):
    """Write events with labels, the later half first."""
    rows = [record_of(event) | {"TX_FRAUD": int(bool(event.anomalous))} for event in EVENTS]
    for name, part in (("a", rows[150:]), ("b", rows[:150])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{name}.parquet")
    return [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]


def test_history_is_loaded_in_any_order_and_once(source, files, store_url, tmp_path):
    first = windows.load_windows(source, files, StoreOptions(store_url))
    again = windows.load_windows(source, files, StoreOptions(store_url))
    complete = sum(any(event.keys.values()) for event in EVENTS)
    assert (first["rows"], first["recorded"], first["incomplete"]) == (
        300,
        complete,
        300 - complete,
    )
    assert (again["recorded"], again["duplicate"]) == (0, complete)
    assert first["entities"] == again["entities"] == 5
    assert first["since"].startswith("2018-08-01T")
    live = open_store(StoreOptions(f"sqlite:///{tmp_path}/live.db"), INPUTS)
    live.load(EVENTS)
    store = open_store(StoreOptions(store_url), INPUTS)
    card = {"CUSTOMER_ID": "1", "TERMINAL_ID": "a"}
    row = [Event("new", START + 4 * DAY, card, {"TX_AMOUNT": 1.0})]
    np.testing.assert_array_equal(store.features(row).values, live.features(row).values)


def test_rows_that_cannot_be_read_are_counted(source, store_url, tmp_path, capsys):
    lines = ["TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TX_AMOUNT", "1,2018-08-01,1,2", "2,soon,1,3"]
    (tmp_path / "a.csv").write_text("\n".join([*lines, ",2018-08-02,1,3"]))
    result = windows.load_windows(source, [str(tmp_path / "a.csv")], StoreOptions(store_url))
    assert (result["rows"], result["recorded"], result["rejected"]) == (3, 2, 1)
    shown = " ".join(capsys.readouterr().err.split())
    assert "column 'TX_DATETIME', row 1: expected an ISO 8601 date or time" in shown
    assert "1 rows have no id" in shown
    (tmp_path / "b.csv").write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(DataError, match="no row could be read; the first:"):
        windows.load_windows(source, [str(tmp_path / "b.csv")], StoreOptions(store_url))


def test_a_label_without_a_meaning_is_rejected_with_its_row_in_the_file(
    source, store_url, tmp_path, capsys
):
    head = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"
    values = ["0", "1", "", "normal", "1.0", "true", "maybe"]
    rows = [f"{i},2018-08-01T0{i}:00:00,1,a,5,{value}" for i, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
    result = windows.load_windows(source, [str(tmp_path / "a.csv")], StoreOptions(store_url))
    assert (result["recorded"], result["rejected"]) == (6, 1)
    shown = " ".join(capsys.readouterr().err.split())
    assert "column 'TX_FRAUD', row 6: 'maybe' is neither 1, which data.positive names" in shown


def test_a_model_without_windows_is_refused(calibrated, files, store_url, tmp_path):
    folder = calibrated.save(tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"has no windows; train it with data\.windows"):
        windows.load_windows(open_model(str(folder)), files, StoreOptions(store_url))


def test_an_entity_is_not_forgotten_in_a_store_that_does_not_exist(store_url, tmp_path):
    with pytest.raises(WindowStoreError, match="does not exist; correct its URL"):
        windows.forget("CUSTOMER_ID", "1", StoreOptions(store_url))
    assert not [*tmp_path.iterdir()]


def test_an_entity_is_forgotten(source, files, store_url):
    windows.load_windows(source, files, StoreOptions(store_url, salt="a salt of length"))
    with pytest.raises(WindowStoreError, match="another ANOMALY_VAE_WINDOWS_SALT"):
        windows.forget("CUSTOMER_ID", "1", StoreOptions(store_url))
    options = StoreOptions(store_url, salt="a salt of length")
    assert windows.forget("CUSTOMER_ID", "1.0", options)["forgotten"] == 1
    assert windows.forget("CUSTOMER_ID", "1", options)["forgotten"] == 0


def test_the_commands_take_the_store_of_the_environment(windowed_folder, files, store_url):
    environment = {"ANOMALY_VAE_WINDOWS": store_url, "PYTHONPATH": str(ROOT), "PATH": ""}

    def run(*arguments):
        command = [sys.executable, "-m", "pipelines.cli", "windows", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    loaded = run("load", "--model", str(windowed_folder), "--input", *files)
    assert loaded["recorded"] > 200
    assert run("forget", "CUSTOMER_ID", "1") == {"entity": "CUSTOMER_ID", "forgotten": 1}


@pytest.mark.slow  # starts the command
def test_a_load_that_is_killed_may_be_repeated(source, windowed_folder, store_url, tmp_path):
    events = stream(20_000, seed=32)
    pq.write_table(pa.Table.from_pylist([*map(record_of, events)]), tmp_path / "past.parquet")
    paths, options = [str(tmp_path / "past.parquet")], StoreOptions(store_url)
    command = [sys.executable, "-m", "pipelines.cli", "windows", "load", "--store", store_url]
    command += ["--model", str(windowed_folder), "--input", *paths]
    store = open_store(options, INPUTS)
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        while store.state().newest is None:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    again = windows.load_windows(source, paths, options)
    complete = sum(any(event.keys.values()) for event in events)
    assert 0 < again["duplicate"] < complete == again["duplicate"] + again["recorded"]
    other = open_store(StoreOptions(f"sqlite:///{tmp_path}/other.db"), INPUTS)
    for start in range(0, len(events), 1000):
        other.load(
            [replace(event, anomalous=frozenset()) for event in events[start : start + 1000]]
        )
    for entity, texts in (("CUSTOMER_ID", ["1", "2", "3"]), ("TERMINAL_ID", ["1", "a"])):
        found = [one.histories(entity, texts) for one in (store, other)]
        np.testing.assert_equal(*found)
