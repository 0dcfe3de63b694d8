"""Convert exceptions into RFC 9457 problem details, `application/problem+json`.

Each error response has a `Kind`: a status, a stable name and a title. Unexpected exceptions become
a 500 that reveals nothing about its cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from anomaly_vae.client.types import BadRecord
from anomaly_vae.errors import DataError, RecordError

MEDIA_TYPE = "application/problem+json"
INFERENCE_PROTOCOL = "/v2"
"""Prefix of the routes of the Open Inference Protocol."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error response; ``slug`` is its name in problem types and metrics."""

    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        """The problem type, a stable URN."""
        return f"urn:anomaly-vae:{self.slug}"


MALFORMED = Kind(400, "malformed", "The request body is malformed")
UNAUTHENTICATED = Kind(401, "unauthenticated", "An API key is needed")
UNSIGNED = Kind(401, "unsigned", "A signature is needed")
FORBIDDEN = Kind(403, "forbidden", "The API key lacks the scope")
UNKNOWN_MODEL = Kind(404, "unknown-model", "No such model")
NOT_FOUND = Kind(404, "not-found", "No such route")
METHOD_NOT_ALLOWED = Kind(405, "method-not-allowed", "The route has no such method")
NO_LABEL_STORE = Kind(404, "no-label-store", "The service keeps no labels")
NO_CASE_STORE = Kind(404, "no-case-store", "The service keeps no cases")
TIMEOUT = Kind(408, "timeout", "The body took too long to arrive")
TOO_LARGE = Kind(413, "too-large", "The request body is too large")
TOO_MANY_RECORDS = Kind(413, "too-many-records", "Too many records in one request")
TOO_MUCH_EXPLAINED = Kind(413, "too-much-explained", "Too much to explain in one request")
TOO_SLOW = Kind(413, "too-slow", "The images of the request take too long")
UNSUPPORTED = Kind(415, "unsupported-media-type", "The media type is not supported")
INVALID_REQUEST = Kind(422, "invalid-request", "The request does not fit its schema")
INVALID_RECORD = Kind(422, "invalid-record", "A record does not fit the model's schema")
RATE_LIMITED = Kind(429, "rate-limited", "The API key sends too many requests")
HEAD_TOO_LARGE = Kind(431, "head-too-large", "The head of the request is too large")
INVALID_LABEL = Kind(422, "invalid-label", "A label is invalid")
OVERLOADED = Kind(429, "overloaded", "Too many requests at once")
INTERNAL = Kind(500, "internal", "The service failed")
NOT_READY = Kind(503, "not-ready", "The service is not ready")
WINDOWS_DOWN = Kind(503, "windows-down", "The window store cannot be used")
RELOAD_FAILED = Kind(503, "reload-failed", "The registry has nothing that can be served instead")
STORE_DOWN = Kind(503, "label-store-down", "The label store cannot be used")

KINDS = (
    MALFORMED, UNAUTHENTICATED, UNSIGNED, FORBIDDEN, NOT_FOUND, UNKNOWN_MODEL, METHOD_NOT_ALLOWED,
    TIMEOUT, TOO_LARGE, TOO_MANY_RECORDS, TOO_MUCH_EXPLAINED, TOO_SLOW, UNSUPPORTED,
    INVALID_REQUEST, INVALID_RECORD, OVERLOADED, RATE_LIMITED, HEAD_TOO_LARGE, INTERNAL,
    NOT_READY, WINDOWS_DOWN, RELOAD_FAILED, NO_LABEL_STORE, NO_CASE_STORE, INVALID_LABEL,
    STORE_DOWN,
)  # fmt: skip
REFUSED = "refused"
"""Name of the web framework's own errors that have no `Kind`."""
KIND_BY_STATUS = {kind.status: kind for kind in reversed(KINDS)}
"""Kind of the web framework's own errors, by status."""


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error response.

    ``errors`` lists the first bad records in order. ``error`` repeats the detail on the routes of
    the Open Inference Protocol, which requires it.
    """

    type: str
    title: str
    status: int
    detail: str
    record: int | msgspec.UnsetType = msgspec.UNSET
    field: str | msgspec.UnsetType | None = msgspec.UNSET
    errors: list[BadRecord] | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET


class ProblemError(Exception):
    """An error with a defined response; ``bad`` lists the invalid records, in order."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        bad: list[BadRecord] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.headers, self.bad = kind, detail, headers, bad

    @property
    def response(self) -> Response:
        """The response outside the routes of the Open Inference Protocol."""
        return self.response_at("/")

    def response_at(self, path: str) -> Response:
        """Return the response on the route of this path."""
        kind = self.kind
        details = ProblemDetails(kind.type, kind.title, kind.status, self.detail)
        if path.startswith(INFERENCE_PROTOCOL):
            details = msgspec.structs.replace(details, error=self.detail)
        if self.bad:
            record, field = self.bad[0].record, self.bad[0].field
            details = msgspec.structs.replace(
                details, record=record, field=field or msgspec.UNSET, errors=self.bad
            )
        return Response(msgspec.json.encode(details), kind.status, self.headers, MEDIA_TYPE)


def to_problem(error: Exception) -> ProblemError:
    """Convert any exception into a problem that exposes no internals to the client."""
    match error:
        case ProblemError():
            return error
        case RecordError():
            bad = BadRecord(error.record, error.field, error.reason)
            return ProblemError(INVALID_RECORD, str(error), bad=[bad])
        case DataError():
            return ProblemError(INVALID_REQUEST, str(error))
        case HTTPException():
            return _from_status(error)
    return ProblemError(INTERNAL, "unexpected error; see the log of the service")


def _from_status(error: HTTPException) -> ProblemError:
    status = error.status_code
    title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Refused"
    kind = KIND_BY_STATUS.get(status) or Kind(status, REFUSED, title)
    remedy = {404: "; /docs lists the routes", 405: "; the header Allow lists its methods"}
    return ProblemError(kind, kind.title + remedy.get(status, ""), headers=error.headers)
