"""Read late labels from a label store."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from anomaly_vae.data.vocabulary import WORDS
from anomaly_vae.errors import ConfigError
from pipelines.datasets.verdicts import ID_TYPE, Verdicts

ADDRESS: Final = "://"
"""Part of a text that makes it the address of a store, and not a path."""


def is_store(place: str) -> bool:
    """Return whether a place of labels is the address of a store.

    >>> is_store("sqlite:///labels.db"), is_store("labels/*.csv")
    (True, False)
    """
    return ADDRESS in place


def read_label_store(address: str, model: str | None) -> Verdicts:
    """Read the newest verdict on each id of a model.

    Args:
        address: the URL of the store.
        model: name of the model; None for all models.

    Raises:
        ConfigError: the address is wrong, or the extra ``review`` is not installed.
        StoreError: there is no store, or it cannot be used.
    """
    try:
        from anomaly_vae.review import LabelStore
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'anomaly-vae[review]'") from None
    with LabelStore(address) as store:
        labels = list(store.newest(model))
    return Verdicts(
        pa.array([label.id for label in labels], ID_TYPE),
        np.array([WORDS.index(label.label) for label in labels], np.int8),
        np.array([label.at for label in labels], np.float64),
    )
