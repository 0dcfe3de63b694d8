"""Whatever a client sends, the answer is a problem that names what is wrong, never a 500."""

import asyncio
import json
import logging

import msgspec
import pytest

from anomaly_vae import errors as library
from serving import problems
from serving.problems import KINDS, ProblemError, to_problem
from tests.support.http_requests import asgi_post, nobody, refused

JSON = {"Content-Type": "application/json"}


def post(client, body, headers=JSON):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/score", content=content, headers=headers)






























def test_unknown_models_and_routes(client):
    unknown = client.post("/models/nobody/score", json={"records": [{}]})
    assert "/models/fraud/score" in refused(unknown, 404, "unknown-model")["detail"]
    for path in ("/", "/scores", "/score/", "/models/a/b/score", "/%00", "/models//score"):
        refused(client.post(path, json={}), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/score", "POST"),
        ("DELETE", "/models/fraud/score", "POST"),
        ("POST", "/models", "GET"),
        ("TRACE", "/metrics", "GET"),
    ],
)
def test_wrong_methods(client, method, path, allowed):
    response = client.request(method, path)
    refused(response, 405, "method-not-allowed")
    assert response.headers["allow"] == allowed


def test_nothing_loaded(client_of):
    client = client_of()
    response = post(client, {"records": [{}]})
    refused(response, 503, "not-ready")
    assert response.headers["retry-after"] == "1"
    refused(client.get("/health/ready"), 503, "not-ready")
    assert client.get("/health/live").status_code == 200
    assert client.get("/models").json() == {"models": []}
    assert client.get("/openapi.json").status_code == 200


def test_readiness_goes_when_draining(client):
    assert client.get("/health/ready").json() == {"status": "ready", "models": ["fraud"]}
    client.app.state.store.draining = True
    response = client.get("/health/ready")
    refused(response, 503, "not-ready")
    assert response.headers["connection"] == "close"
    assert post(client, {"records": [{}]}).status_code == 200


def test_a_full_house_says_when_to_come_back(client_of, served):
    client = client_of(served, max_concurrency=2, retry_after_seconds=7, body_seconds=0.3)

    async def scenario():
        slow = [asyncio.create_task(asgi_post(client.app, nobody)) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused_now = await asgi_post(client.app, nobody)
        return refused_now, [await task for task in slow]

    (status, headers, body), slow = asyncio.run(scenario())
    assert status == 429
    assert headers[b"retry-after"] == b"7"
    assert json.loads(body)["type"] == "urn:anomaly-vae:overloaded"
    assert [status for status, _, _ in slow] == [408, 408]
    assert post(client, {"records": [{}]}).status_code == 200, "their places are free again"




@pytest.mark.parametrize("explain", [0, 1])
def test_a_bug_says_nothing_of_the_inside(client, caplog, monkeypatch, records, explain):
    def broken(*_):
        raise RuntimeError("secret amount 1234.56")

    monkeypatch.setattr("anomaly_vae.data.encoding.TabularEncoding.encode", broken)
    body = {"records": records[:1], "explain": explain}
    problem = refused(post(client, body), 500, "internal")
    assert "secret" not in json.dumps(problem)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_every_kind_is_a_to_problem_its_status(kind):
    response = ProblemError(kind, "why").response
    assert response.status_code == kind.status
    details = msgspec.json.decode(response.body, type=problems.ProblemDetails)
    assert (details.status, details.title, details.detail) == (kind.status, kind.title, "why")


def leaves(kind):
    below = kind.__subclasses__()
    return {kind}.union(*map(leaves, below)) if below else {kind}


def test_every_error_of_the_library_is_mapped():
    """Input at fault is a 422; the rest is the service's own fault."""
    for kind in leaves(library.AnomalyVAEError):
        error = kind(0, "f", "r") if kind is library.RecordError else kind("why")
        expected = 422 if isinstance(error, library.DataError) else 500
        assert to_problem(error).kind.status == expected


def test_kinds_have_names_of_their_own():
    assert len({kind.slug for kind in KINDS}) == len(KINDS)


def test_errors_are_logged_without_their_message():
    from serving.observability.logs import JsonFormatter

    try:
        raise ValueError("secret amount 1234.56")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "failed", (), (ValueError, error, error.__traceback__)
        )
    line = json.loads(JsonFormatter().format(record))
    assert line["error"] == "ValueError"
    assert "test_errors_are_logged" in line["trace"][0]
    assert "secret" not in json.dumps(line)
