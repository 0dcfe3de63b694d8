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


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"records": [{}]} and more',
        b'{"records": [{"TX_AMOUNT": NaN}]}',
        b'{"records": [{"TX_AMOUNT": Infinity}]}',
        b'{"records": [{"TX_AMOUNT": -Infinity}]}',
        b'{"records": [{"TX_CHANNEL": "\xff"}]}',
        b'{"records": [{"TX_CHANNEL": "\\ud800"}]}',
        b'\xef\xbb\xbf{"records": [{}]}',
        b'{"records": [' + b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed(client, body):
    refused(post(client, body), 400, "malformed")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "object"),
        (None, "object"),
        ({}, "records"),
        ({"records": None}, "records"),
        ({"records": {}}, "records"),
        ({"records": []}, "empty"),
        ({"records": [{}], "explain": -1}, "explain"),
        ({"records": [{}], "explain": 1.5}, "explain"),
        ({"records": [{}], "explain": True}, "explain"),
        ({"records": [{}], "explain": "some"}, "explain"),
        ({"records": [{}], "explain": None}, "explain"),
    ],
)
def test_requests_that_do_not_fit(client, body, said):
    assert said in refused(post(client, body), 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("TX_AMOUNT", "12,50"),
        ("TX_AMOUNT", "12.50"),
        ("TX_AMOUNT", True),
        ("TX_AMOUNT", [1]),
        ("TX_AMOUNT", {"value": 1}),
        ("TX_AMOUNT", 10**400),
        ("TX_DURING_NIGHT", 2),
        ("TX_DURING_NIGHT", "yes"),
        ("TX_CHANNEL", ["chip"]),
        ("TX_CHANNEL", {}),
        ("TX_DATETIME", "yesterday"),
        ("TX_DATETIME", 1_700_000_000),
    ],
)
def test_a_wrong_value_names_its_record_and_field(client, records, field, value):
    wrong = [records[0], {**records[1], field: value}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, field)
    assert f"record 1, field '{field}'" in problem["detail"]


def test_every_bad_record_is_listed_in_order(client, records):
    wrong = [{"TX_AMOUNT": "a"}, records[0], {"TX_DURING_NIGHT": 5, "TX_AMOUNT": "b"}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    listed = [(bad["record"], bad["field"]) for bad in problem["errors"]]
    assert listed == [(0, "TX_AMOUNT"), (2, "TX_AMOUNT"), (2, "TX_DURING_NIGHT")]
    assert problem["detail"].endswith("(and 2 more)")


def test_the_list_of_bad_records_is_bounded(client):
    problem = refused(
        post(client, {"records": [{"TX_AMOUNT": "?"}] * 5_000}), 422, "invalid-record"
    )
    assert [bad["record"] for bad in problem["errors"]] == list(range(100))


def test_a_record_that_is_none(client, records):
    problem = refused(post(client, {"records": [records[0], 7]}), 422, "invalid-record")
    assert problem["record"] == 1


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 5000])
def test_numbers_beyond_all_range(client, number):
    body = b'{"records": [{}, {"TX_AMOUNT": ' + number + b"}]}"
    assert refused(post(client, body), 422, "invalid-record")["record"] == 1


@pytest.mark.parametrize("field", ["TX_AMOUNT", "TX_CHANNEL", "TX_DATETIME", "TX_DURING_NIGHT"])
def test_deep_nesting(client, field):
    for depth in (300, 600, 900):
        body = b'{"records":[{"%b":%b}]}' % (field.encode(), b"[" * depth + b"]" * depth)
        assert post(client, body).status_code in {400, 422}


def test_too_many_records(client_of, served):
    client = client_of(served, max_records=5)
    assert post(client, {"records": [{}] * 5}).status_code == 200
    problem = refused(post(client, {"records": [{}] * 6}), 413, "too-many-records")
    assert "at most 5" in problem["detail"]


@pytest.mark.parametrize("explain", [1, "all"])
def test_too_much_to_explain_at_once(client_of, served, explain):
    """Whatever is listed, all contributions are worked out: records times columns."""
    columns = len(served.detector.scorer.encoding.columns)
    client = client_of(served, max_contributions=3 * columns)
    assert post(client, {"records": [{}] * 3, "explain": explain}).status_code == 200
    assert post(client, {"records": [{}] * 4}).status_code == 200
    body = {"records": [{}] * 4, "explain": explain}
    problem = refused(post(client, body), 413, "too-much-explained")
    assert f"{4 * columns} contributions" in problem["detail"]
    assert f"at most {3 * columns}" in problem["detail"]


def test_too_many_bytes_as_declared(client_of, served):
    client = client_of(served, max_body_bytes=1024)
    refused(post(client, b" " * 1025), 413, "too-large")


def test_too_many_bytes_in_chunks(client_of, served):
    """Reading stops at the limit: the rest of an endless body is never asked for."""
    taken = []

    def endless():
        while len(taken) < 1000:
            taken.append(1)
            yield b" " * 512

    client = client_of(served, max_body_bytes=1024)
    refused(client.post("/score", content=endless(), headers=JSON), 413, "too-large")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/csv"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types(client, headers):
    refused(post(client, {"records": [{}]}, headers), 415, "unsupported-media-type")


@pytest.mark.parametrize("media", ["application/json", 'Application/JSON; charset="UTF-8"'])
def test_json_however_it_is_spelled(client, media):
    assert post(client, {"records": [{}]}, {"Content-Type": media}).status_code == 200


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


def test_a_client_that_goes_away_is_no_failure(client):
    async def gone():
        return {"type": "http.disconnect"}

    status, _, _ = asyncio.run(asgi_post(client.app, gone))
    assert status == 400


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
