"""Test how events are read from rows."""

import math
from dataclasses import replace

import pytest

from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.data.schema import Column, TabularSchema
from anomaly_vae.errors import BundleError
from anomaly_vae.features import WindowDefinition, WindowInputs
from anomaly_vae.types import ColumnType
from tests.support.window_streams import INPUTS, START

SCHEMA = TabularSchema(
    (Column("TX_AMOUNT", ColumnType.NUMERIC), Column("CUSTOMER_ID_count_1h", ColumnType.NUMERIC)),
    known=frozenset({"TRANSACTION_ID", "CUSTOMER_ID", "TX_FRAUD"}),
    literal_text=True,
)
RECORD = {
    "TRANSACTION_ID": 7,
    "TX_DATETIME": "2018-08-01T00:00:00.000001",
    "CUSTOMER_ID": 12.0,
    "TERMINAL_ID": "a ",
    "TX_AMOUNT": 3.5,
    "TX_FRAUD": True,
}


def read(**changed):
    (event,) = INPUTS.events(INPUTS.event_schema(SCHEMA).from_records([RECORD | changed]))
    return event


def test_the_raw_schema_has_no_windows_and_all_that_they_need():
    schema = INPUTS.raw_schema(SCHEMA)
    assert set(schema.names) == RECORD.keys() - {"TX_FRAUD"}
    assert "TX_FRAUD" in schema.known
    assert "CUSTOMER_ID_count_1h" in schema.from_records([{"CUSTOMER_ID_count_1h": 1}]).ignored
    assert set(INPUTS.event_schema(SCHEMA).names) == RECORD.keys()
    (event,) = INPUTS.events(schema.from_records([RECORD]))
    assert not event.anomalous


def test_a_record_is_read_as_an_event():
    event = read()
    assert (event.id, event.time) == ("7", START + 1)
    assert event.keys == {"CUSTOMER_ID": "12", "TERMINAL_ID": "a"}
    assert event.numbers == {"TX_AMOUNT": 3.5}
    assert event.anomalous == {"TX_FRAUD"}


@pytest.mark.parametrize("value", [12, 12.0, "12", " 12 ", "12.0"])
def test_entities_are_compared_as_text(value):
    assert read(CUSTOMER_ID=value).keys["CUSTOMER_ID"] == "12"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_missing_values_are_none(value):
    event = read(CUSTOMER_ID=value, TX_DATETIME=None, TRANSACTION_ID=value, TX_AMOUNT=None)
    assert (event.id, event.time, event.keys["CUSTOMER_ID"]) == (None, None, None)
    assert math.isnan(event.numbers["TX_AMOUNT"])


@pytest.mark.parametrize(
    ("field", "value"), [("CUSTOMER_ID", [1]), ("TX_DATETIME", "soon"), ("TX_AMOUNT", "much")]
)
def test_an_unreadable_field_is_a_problem_that_names_it(field, value):
    batch = INPUTS.raw_schema(SCHEMA).from_records([RECORD | {field: value}])
    assert [problem.column for problem in batch.problems] == [field]


@pytest.mark.parametrize(
    ("recorded", "problems"), [({}, []), ({"TX_FRAUD": frozenset({"ok"})}, [(2, "TX_FRAUD")])]
)
def test_labels_without_a_meaning_are_problems_if_the_values_are_recorded(recorded, problems):
    inputs = replace(INPUTS, positive="bad", normal=recorded)
    rows = [RECORD | {"TX_FRAUD": label} for label in ("bad", "ok", "Bad", None, "NA", "ANOMALY")]
    batch = inputs.event_schema(SCHEMA).from_records(rows)
    assert [(one.row, one.column) for one in inputs.unknown_labels(batch)] == problems
    marked = [bool(event.anomalous) for event in inputs.events(batch)]
    assert marked == [True, False, False, False, False, True]


def test_entities_may_be_numeric_columns_of_the_model():
    card = EntityWindows(over=("1h",), count=True)
    inputs = WindowInputs(WindowDefinition({"TX_AMOUNT": card}), "TX_DATETIME")
    batch = inputs.raw_schema(SCHEMA).from_records([RECORD, {"TX_AMOUNT": None}])
    assert [event.keys["TX_AMOUNT"] for event in inputs.events(batch)] == ["3.5", None]


def test_a_manifest_without_windows_has_none():
    assert WindowInputs.from_manifest({"config": {"data": {"time": "at"}}}) is None


def test_a_damaged_definition_is_refused():
    data = {"time": "at", "windows": {"card": {"over": ["soon"]}}}
    with pytest.raises(BundleError, match="its windows cannot be read"):
        WindowInputs.from_manifest({"name": "fraud", "config": {"data": data}})


def test_times_have_the_format_that_was_found_in_training():
    data = {"time": "at", "time_format": "%d/%m/%Y", "windows": {"card": {"over": ["1h"]}}}
    data["windows"]["card"]["count"] = True
    manifest = {"name": "fraud", "config": {"data": data}}
    assert WindowInputs.from_manifest(manifest).time_format == "%d/%m/%Y"
    found = manifest | {"data": {"windows": {"time_format": "epoch_ms"}}}
    assert WindowInputs.from_manifest(found).time_format == "epoch_ms"


@pytest.mark.parametrize("value", [2e150, -2e150])
def test_numbers_beyond_the_limit_are_problems(value):
    for schema in (INPUTS.raw_schema(SCHEMA), INPUTS.event_schema(SCHEMA)):
        (problem,) = schema.from_records([RECORD | {"TX_AMOUNT": value}]).problems
        assert (problem.column, "at most 1e+150" in problem.reason) == ("TX_AMOUNT", True)


def test_bits_of_the_model_are_numbers_of_windows():
    windows = {"card": EntityWindows(over=("1h",), of={"chip": ("mean",)})}
    schema = TabularSchema((Column("chip", ColumnType.BINARY),), literal_text=True)
    raw = (inputs := WindowInputs(WindowDefinition(windows), "at")).raw_schema(schema)
    events = inputs.events(raw.from_records([{"chip": True}, {"chip": 0}]))
    assert ([event.numbers["chip"] for event in events], raw.again) == ([1.0, 0.0], {})
