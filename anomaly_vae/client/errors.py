"""Define the errors that a call to the service can raise.

ServiceError            a request that returned no scores; ``problem`` is the service's reason
├── UnreachableError    no answer, or none in time
├── BusyError           the service was still busy or not ready after the last attempt
├── DeniedError         401, 403: the API key is missing, unknown or lacks a scope
├── RefusedError        400 to 422: the request is at fault; ``problem.errors`` names records
└── FailedError         5xx: the service is at fault
"""

from __future__ import annotations

import dataclasses

import httpx2
import msgspec

from anomaly_vae.client.types import Problem
from anomaly_vae.errors import AnomalyVAEError

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class ServiceError(AnomalyVAEError):
    """A request that brought no scores."""

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class UnreachableError(ServiceError):
    """There was no answer, or none in time."""


class BusyError(ServiceError):
    """The service was still busy or not ready when patience ran out."""


class DeniedError(ServiceError):
    """The service wants a key, another one, or one that may do more."""


class RefusedError(ServiceError):
    """The request is at fault."""


class FailedError(ServiceError):
    """The service is at fault."""


def error_of(problem: Problem) -> ServiceError:
    """Return the error that a problem of the service is raised as."""
    kinds = {401: DeniedError, 403: DeniedError, **dict.fromkeys(AGAIN, BusyError)}
    other = RefusedError if problem.status < 500 else FailedError
    kind = kinds.get(problem.status, other)
    return kind(f"{problem.title}: {problem.detail} (status {problem.status})", problem)


def problem_of(response: httpx2.Response, offset: int) -> Problem:
    """What an answer says is wrong; bad records are counted from the first of the whole call."""
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        title, status = response.reason_phrase, response.status_code
        return Problem("about:blank", title, status, "the answer is not the service's own")
    if not offset:
        return problem
    errors = [dataclasses.replace(one, record=one.record + offset) for one in problem.errors]
    detail = f"counted from {offset}: {problem.detail}"
    return dataclasses.replace(problem, detail=detail, errors=tuple(errors))
