"""Each problem of the service becomes one kind of error, whose message says what is wrong."""

from __future__ import annotations

import msgspec
import pytest

from anomaly_vae.client import errors
from anomaly_vae.client.errors import (
    BusyError,
    DeniedError,
    FailedError,
    RefusedError,
    ServiceError,
    error_of,
    problem_of,
)
from anomaly_vae.client.types import BadRecord, Problem
from anomaly_vae.errors import AnomalyVAEError

BAD = Problem("urn:x", "Bad records", 422, "record 2", (BadRecord(2, "amount", "not a number"),))


def test_every_error_is_drawn_and_caught_as_one() -> None:
    kinds = ServiceError.__subclasses__()
    assert issubclass(ServiceError, AnomalyVAEError)
    assert len(kinds) == 5
    assert errors.__doc__
    assert all(f"── {kind.__name__} " in errors.__doc__ for kind in kinds)


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (DeniedError, (401, 403)),
        (BusyError, (429, 502, 503, 504)),
        (RefusedError, (307, 400, 404, 413, 422)),
        (FailedError, (500, 501)),
    ],
)
def test_the_status_tells_the_kind_of_error(
    kind: type[ServiceError], statuses: tuple[int, ...]
) -> None:
    for status in statuses:
        problem = Problem("about:blank", "Title", status, "detail")
        error = error_of(problem)
        assert type(error) is kind
        assert str(error) == f"Title: detail (status {status})"
        assert error.problem is problem


def test_a_problem_of_the_first_request_is_kept_as_it_is() -> None:
    assert problem_of(msgspec.json.encode(BAD), 422, "", offset=0) == BAD


def test_records_of_a_later_request_are_counted_from_the_first_of_the_call() -> None:
    moved = problem_of(msgspec.json.encode(BAD), 422, "", offset=10)
    assert moved.errors == (BadRecord(12, "amount", "not a number"),)
    assert moved.detail == "counted from 10: record 2"
    assert (moved.title, moved.status) == (BAD.title, BAD.status)


@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b'{"status": 502}'])
def test_an_answer_of_somebody_else_is_described_by_its_status(content: bytes) -> None:
    problem = problem_of(content, 502, "Bad Gateway", offset=3)
    assert (problem.type, problem.title, problem.status) == ("about:blank", "Bad Gateway", 502)
    assert "not the service's own" in problem.detail
    assert problem.errors == ()
