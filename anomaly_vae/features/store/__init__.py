"""Keep the past events of entities, and compute the window features of new rows from them."""

from anomaly_vae.features.store.opening import StoreOptions, open_store
from anomaly_vae.features.store.store import WindowStore

__all__ = ["StoreOptions", "WindowStore", "open_store"]
