"""Keep the past events of entities, and compute the window features of new rows from them."""

from anomaly_vae.features.store.opening import (
    StoreOptions,
    default_url,
    forget_entity,
    open_backend,
    open_store,
    required_time,
)
from anomaly_vae.features.store.records import Backend, Recorded, SpaceState
from anomaly_vae.features.store.store import Label, Windows, WindowStore, now_in_microseconds

__all__ = [
    "Backend",
    "Label",
    "Recorded",
    "SpaceState",
    "StoreOptions",
    "WindowStore",
    "Windows",
    "default_url",
    "forget_entity",
    "now_in_microseconds",
    "open_backend",
    "open_store",
    "required_time",
]
