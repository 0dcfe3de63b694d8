"""Test that the windows of rows see the same past events in a store as in history."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.events import EventReader
from anomaly_vae.features.offline import OfflineWindows
from anomaly_vae.features.store import StoreOptions, open_store
from anomaly_vae.features.store import past as past_events
from anomaly_vae.features.store.past import add_past, open_filled
from tests.support.window_streams import DAY, INPUTS, START, WINDOWS, stream

SCHEMA = pa.schema(
    {
        "TRANSACTION_ID": pa.string(),
        "TX_DATETIME": pa.timestamp("us"),
        "CUSTOMER_ID": pa.string(),
        "TERMINAL_ID": pa.string(),
        "TX_AMOUNT": pa.float64(),
        "TX_FRAUD": pa.int8(),
    }
)


def table(events):
    rows = [
        {
            "TRANSACTION_ID": event.id,
            "TX_DATETIME": event.time,
            **event.keys,
            "TX_AMOUNT": event.numbers["TX_AMOUNT"],
            "TX_FRAUD": int(bool(event.anomalous)),
        }
        for event in events
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def options(folder):
    return StoreOptions(f"sqlite:///{folder}/windows.db", salt="a secret of some length")


def computed(definition, rows, history=(), store=None):
    reader = EventReader(definition, "TX_DATETIME", "TRANSACTION_ID")
    with OfflineWindows(reader) as windows:
        if history:
            windows.add_history(reader.read(table(history)))
        windows.add(reader.read(table(rows)), np.arange(len(rows)))
        if store:
            add_past(windows, store)
        return windows.compute().read(np.arange(len(rows)))


@pytest.mark.parametrize("together", [1, 500])
@pytest.mark.parametrize("recorded", [0, 60])
@pytest.mark.parametrize("ids", [True, False])
def test_events_of_a_store_feed_windows_as_history_does(
    ids, recorded, together, tmp_path, monkeypatch
):
    """Some rows may be in the store already; of the entities of rows, some are not there."""
    monkeypatch.setattr(past_events, "TOGETHER", together)
    past, rows = (events := stream(200, seed=7, ids=ids))[:140], events[140:]
    rows[3] = replace(rows[3], keys={"CUSTOMER_ID": "new", "TERMINAL_ID": "new"})
    history = [*past, *rows[: recorded * ids]]
    # an id that the store knows of an event of other entities
    rows = [*rows, replace(rows[9], id=past[0].id if ids else None)]
    store = open_store(options(tmp_path), INPUTS)
    store.load(history)
    found = computed(INPUTS.definition, rows, store=open_filled(options(tmp_path), INPUTS))
    expected = computed(INPUTS.definition, rows, history)
    for name in INPUTS.definition.names:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_windows_may_count_the_values_of_their_own_entity(tmp_path):
    terminals = WINDOWS["TERMINAL_ID"].model_copy(
        update={"distinct": ("TERMINAL_ID", "CUSTOMER_ID")}
    )
    definition = WindowDefinition({**WINDOWS, "TERMINAL_ID": terminals})
    events, inputs = stream(120, seed=8), replace(INPUTS, definition=definition)
    open_store(options(tmp_path), inputs).load(events[:80])
    found = computed(definition, events[80:], store=open_filled(options(tmp_path), inputs))
    expected = computed(definition, events[80:], events[:80])
    for name in definition.names:
        np.testing.assert_array_equal(found[name], expected[name], name)


def test_a_store_without_events_of_the_definition_is_refused(tmp_path):
    with pytest.raises(WindowStoreError, match="does not exist; correct its URL, or fill it with"):
        open_filled(options(tmp_path), INPUTS)
    open_store(options(tmp_path), INPUTS).backend.close()
    with pytest.raises(WindowStoreError, match="has no events for the entities"):
        open_filled(options(tmp_path), INPUTS)


def test_rows_before_what_the_store_knows_or_keeps_see_less(tmp_path):
    store = open_store(options(tmp_path), INPUTS)
    assert store.complete_from(store.state()) is None
    event = replace(stream(1, seed=1)[0], keys={"CUSTOMER_ID": "1", "TERMINAL_ID": "1"})
    reach, horizon = INPUTS.definition.longest, INPUTS.horizon
    store.load([replace(event, time=START)])
    assert store.complete_from(store.state()) == START + reach
    store.load([replace(event, id="later", time=START + 90 * DAY)])
    assert store.complete_from(store.state()) == START + 90 * DAY - horizon
