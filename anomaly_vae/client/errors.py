"""Define the errors that a call to the service can raise.

ServiceError            a request that returned no scores; ``problem`` is the service's reason
├── UnreachableError    no answer, or none in time
├── BusyError           the service was still busy or not ready after the last attempt
├── DeniedError         401, 403: the API key is missing, unknown or lacks a scope
├── RefusedError        400 to 422: the request is at fault; ``problem.errors`` names records
└── FailedError         5xx: the service is at fault
"""

from __future__ import annotations

import msgspec

from anomaly_vae.client.types import Problem
from anomaly_vae.errors import AnomalyVAEError

RETRY_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class ServiceError(AnomalyVAEError):
    """A request that returned no scores.

    ``problem`` is the service's reason; None if there was no answer.

    >>> ServiceError("no answer from http://localhost:8000").problem is None
    True
    """

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class UnreachableError(ServiceError):
    """No answer arrived, or none in time.

    >>> issubclass(UnreachableError, ServiceError)
    True
    """


class BusyError(ServiceError):
    """The service was still busy or not ready after the last attempt.

    >>> problem = Problem("urn:anomaly-vae:overloaded", "Too many requests at once", 429, "…")
    >>> BusyError("429", problem).problem.status
    429
    """


class DeniedError(ServiceError):
    """The API key is missing, unknown or lacks a scope.

    >>> problem = Problem("urn:anomaly-vae:unauthenticated", "An API key is needed", 401, "…")
    >>> DeniedError("401", problem).problem.title
    'An API key is needed'
    """


class RefusedError(ServiceError):
    """The request is at fault; ``problem.errors`` names the first bad records.

    >>> from anomaly_vae.client.types import BadRecord
    >>> bad = BadRecord(2, "amount", "expected a number, got str")
    >>> problem = Problem("urn:anomaly-vae:invalid-record", "…", 422, "…", (bad,))
    >>> RefusedError("422", problem).problem.errors[0].field
    'amount'
    """


class FailedError(ServiceError):
    """The service is at fault.

    >>> problem = Problem("urn:anomaly-vae:internal", "The service failed", 500, "…")
    >>> FailedError("500", problem).problem.status
    500
    """


def error_of(problem: Problem) -> ServiceError:
    """Return the error that a problem of the service is raised as."""
    kinds = {401: DeniedError, 403: DeniedError, **dict.fromkeys(RETRY_STATUSES, BusyError)}
    other = RefusedError if problem.status < 500 else FailedError
    kind = kinds.get(problem.status, other)
    return kind(f"{problem.title}: {problem.detail} (status {problem.status})", problem)


def problem_of(content: bytes, status: int, reason: str, offset: int) -> Problem:
    """Read the problem in an answer.

    Args:
        content: body of the answer.
        status: HTTP status of the answer.
        reason: reason phrase of the status, the title of an answer that is not the service's.
        offset: number of records that earlier requests of the same call sent; it is added to the
            numbers of bad records.
    """
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return Problem("about:blank", reason, status, "the answer is not the service's own")
    if not offset:
        return problem
    errors = tuple(
        msgspec.structs.replace(one, record=one.record + offset) for one in problem.errors
    )
    detail = f"counted from {offset}: {problem.detail}"
    return msgspec.structs.replace(problem, detail=detail, errors=errors)
