"""Keep the labels that people give to scored rows, in SQLite or PostgreSQL.

Needs ``pip install 'anomaly-vae[review]'``. The modules are imported when a name is first used, so
that a missing extra is one plain message.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomaly_vae.errors import ConfigError

if TYPE_CHECKING:
    from anomaly_vae.review.labels import CurrentLabel, Label, LabelStats
    from anomaly_vae.review.store import LabelStore

__all__ = ["CurrentLabel", "Label", "LabelStats", "LabelStore"]

LIBRARIES = frozenset({"alembic", "psycopg", "psycopg2", "sqlalchemy"})
"""Libraries that only the extra `review` installs."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'anomaly_vae.review' has no attribute '{name}'")
    module = "store" if name == "LabelStore" else "labels"
    try:
        return getattr(import_module(f"anomaly_vae.review.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        reason = "a label store needs: pip install 'anomaly-vae[review]'"
        raise ConfigError(f"{error}; {reason}") from None
