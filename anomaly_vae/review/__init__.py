"""Keep cases for review and the labels that people give them, in SQLite or PostgreSQL.

Needs ``pip install 'anomaly-vae[review]'``. The modules are imported when a name is first used, so
that a missing extra is one plain message.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomaly_vae.errors import ConfigError

if TYPE_CHECKING:
    from anomaly_vae.review.case_maker import CaseColumns, CaseFields, CaseMaker
    from anomaly_vae.review.case_store import CaseStats, CaseStore, Pruned
    from anomaly_vae.review.cases import Case, CaseFilter, CaseReason, CaseRecord, Snooze
    from anomaly_vae.review.guarantees import GuaranteeLog, GuaranteeState
    from anomaly_vae.review.labels import CurrentLabel, Label, LabelStats
    from anomaly_vae.review.p_values import PValueCounts
    from anomaly_vae.review.precision import Share
    from anomaly_vae.review.store import LabelStore

MODULES = {
    "Case": "cases",
    "CaseColumns": "case_maker",
    "CaseFields": "case_maker",
    "CaseFilter": "cases",
    "CaseMaker": "case_maker",
    "CaseReason": "cases",
    "CaseRecord": "cases",
    "CaseStats": "case_store",
    "CaseStore": "case_store",
    "CurrentLabel": "labels",
    "Label": "labels",
    "GuaranteeLog": "guarantees",
    "GuaranteeState": "guarantees",
    "LabelStats": "labels",
    "LabelStore": "store",
    "PValueCounts": "p_values",
    "Pruned": "case_store",
    "Share": "precision",
    "Snooze": "cases",
}
"""Module of each public name."""

__all__ = [
    "Case", "CaseColumns", "CaseFields", "CaseFilter", "CaseMaker", "CaseReason", "CaseRecord",
    "CaseStats", "CaseStore", "CurrentLabel", "GuaranteeLog", "GuaranteeState", "Label",
    "LabelStats", "LabelStore", "PValueCounts", "Pruned", "Share", "Snooze",
]  # fmt: skip

LIBRARIES = frozenset({"alembic", "psycopg", "psycopg2", "sqlalchemy"})
"""Libraries that only the extra `review` installs."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'anomaly_vae.review' has no attribute '{name}'")
    try:
        return getattr(import_module(f"anomaly_vae.review.{MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        reason = "labels and cases need: pip install 'anomaly-vae[review]'"
        raise ConfigError(f"{error}; {reason}") from None
