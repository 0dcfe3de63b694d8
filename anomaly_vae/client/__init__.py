"""Call the scoring service from Python, with typed answers and errors and with retries."""

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
    Groups,
    Model,
    ModelInfo,
    Problem,
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
    "FailedError",
    "Groups",
    "Model",
    "ModelInfo",
    "Problem",
    "RefusedError",
    "Region",
    "Result",
    "Schema",
    "Scores",
    "ServiceError",
    "UnreachableError",
]
