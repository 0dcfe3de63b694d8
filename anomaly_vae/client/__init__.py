"""Call the scoring service from Python, with typed answers and errors and with retries.

The modules are imported when a name is first used, so that the service can share
`anomaly_vae.client.types` without the client's HTTP library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_vae.client.client import AsyncClient, Client
    from anomaly_vae.client.errors import (
        BusyError,
        DeniedError,
        FailedError,
        RefusedError,
        ServiceError,
        UnreachableError,
    )
    from anomaly_vae.client.types import (
        BadRecord,
        Column,
        Contribution,
        EventCounts,
        Fault,
        Feedback,
        FeedbackResult,
        GroupResult,
        Groups,
        LabelCounts,
        Model,
        ModelInfo,
        Problem,
        RecordedEvents,
        Region,
        Result,
        Schema,
        Scores,
    )

__all__ = [
    "AsyncClient",
    "BadRecord",
    "BusyError",
    "Client",
    "Column",
    "Contribution",
    "DeniedError",
    "EventCounts",
    "FailedError",
    "Fault",
    "Feedback",
    "FeedbackResult",
    "GroupResult",
    "Groups",
    "LabelCounts",
    "Model",
    "ModelInfo",
    "Problem",
    "RecordedEvents",
    "RefusedError",
    "Region",
    "Result",
    "Schema",
    "Scores",
    "ServiceError",
    "UnreachableError",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'anomaly_vae.client' has no attribute '{name}'")
    module = "client" if name in {"AsyncClient", "Client"} else "types"
    module = "errors" if name.endswith("Error") else module
    return getattr(import_module(f"anomaly_vae.client.{module}"), name)
