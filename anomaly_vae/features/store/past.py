"""Give the window features of files the past events of a window store.

Nothing is recorded. The store knows hashes of ids and values alone, so those of the rows in the
files are hashed, too, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.errors import WindowStoreError
from anomaly_vae.features.history import NEVER, NO_ID, EntityHistory, Words
from anomaly_vae.features.inputs import WindowInputs
from anomaly_vae.features.store.opening import StoreOptions, open_backend
from anomaly_vae.features.store.records import Hasher
from anomaly_vae.features.store.store import WindowStore
from anomaly_vae.masking import masked

if TYPE_CHECKING:
    from anomaly_vae.features.offline import OfflineWindows

TOGETHER = 500
"""Number of entities whose events are read at a time."""


def open_filled(options: StoreOptions, inputs: WindowInputs) -> WindowStore:
    """Open the store of a model's windows, which must have events of them.

    Raises:
        ConfigError: see `open_backend`.
        WindowStoreError: the store cannot be used, does not exist, or has no such events.
    """
    backend = open_backend(options, create=False)
    spaces = backend.spaces(Hasher(options.salt, "").check)
    if inputs.definition.layout in spaces:
        store = WindowStore(backend, inputs, options.salt, options.max_events)
        if store.state().newest is not None:
            return store
    raise WindowStoreError(
        f"window store '{masked(options.url)}' has no events for the entities and columns of this "
        "model; fill it with: anomaly-vae windows load"
    )


def add_past(windows: OfflineWindows, store: WindowStore) -> None:
    """Add the events that the entities of all rows of ``windows`` have in the store.

    Raises:
        WindowStoreError: the store cannot be used.
    """
    definition, rows = store.inputs.definition, windows.span(history=False)
    if rows is None:
        return
    windows.begin_stored()
    for ids in windows.texts(["id"], TOGETHER):
        windows.add_hashes("known_ids", store.known_ids(ids))
    values = [f"key:{name}" for name in definition.values]
    for texts in windows.texts(values, TOGETHER) if values else ():
        windows.add_hashes("hashes", store.hashes(texts))
    for entity in definition.entities:
        first = rows.first - definition.reach[entity]
        for texts in windows.texts([f"key:{entity}"], TOGETHER):
            keys, words = _joined(store.histories(entity, texts))
            seen = (words[:, 0] >= first) & (words[:, 0] <= rows.last)
            windows.add_stored(entity, _table(store.layout(entity), keys[seen], words[seen]))


def _joined(histories: Mapping[str, Words]) -> tuple[NDArray[np.object_], Words]:
    """Return the events (N, W) of several entities, and the text (N,) of the entity of each."""
    lengths = [len(words) for words in histories.values()]
    return np.repeat(np.array([*histories], object), lengths), np.concatenate([*histories.values()])


def _table(layout: EntityHistory, keys: NDArray[np.object_], words: Words) -> pa.Table:
    """Return packed events (N, W) as `OfflineWindows.add_stored` takes them."""
    fields = layout.fields(words)
    values = {f"key:{n}": pa.array(v, mask=v == NO_ID) for n, v in fields.values.items()}
    numbers = {f"number:{name}": pa.array(column) for name, column in fields.numbers.items()}
    columns = {"key": pa.array(keys, pa.string()), "time": words[:, 0], "id": words[:, 1]}
    known = np.full(len(words), NEVER) if fields.known is None else fields.known
    is_known = known != NEVER
    labels = {f"label:{layout.label}": pa.array(is_known)} if layout.label else {}
    return pa.table(
        {**columns, "known": np.where(is_known, known, 0), **values, **numbers, **labels}
    )
