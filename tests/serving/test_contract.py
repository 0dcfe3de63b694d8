"""One contract, every way in: each scoring route knows each status, in the one shape."""

import asyncio
import hashlib
import json

import pytest

from serving.settings import ApiKey
from tests.support.http_requests import JSON, asgi_post, nobody, refused
from tests.support.scoring_ways import Way, ways

KEYS = tuple(
    ApiKey(scope, frozenset({scope}), hashlib.sha256(scope.encode()).hexdigest())
    for scope in ("score", "metrics")
)
WAYS = list(ways())


@pytest.fixture(params=WAYS)
def way(request):
    return ways(1.5)[request.param]


def test_200(client, way):
    assert way.post(client).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b'{"a":' * 100_000, b"\xff"])
def test_400(client, way, content):
    if b"NaN" in content and way.path == "/invocations":
        content = content.replace(b"NaN", b"Infinity")  # NaN is null there
    refused(way.post(client, content), 400, "malformed")


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({}, 401, "unauthenticated"),
        ({"X-API-Key": "guess"}, 401, "unauthenticated"),
        ({"X-API-Key": "metrics"}, 403, "forbidden"),
    ],
)
def test_401_and_403(client_of, served, way, headers, status, kind):
    client = client_of(served, api_keys=KEYS)
    refused(way.post(client, headers=JSON | headers), status, kind)
    assert way.post(client, headers=JSON | {"X-API-Key": "score"}).status_code == 200


def test_404(client_of, served, scanner, way):
    """Of a model, and of a route."""
    two = client_of(served, scanner)
    if "fraud" not in way.path:
        refused(way.post(two), 404, "unknown-model")
    other = Way(way.path.replace("fraud", "nobody"), way.body)
    detail = refused(other.post(two), 404, "unknown-model")["detail"]
    assert way.path in detail or "fraud" not in way.path
    refused(Way(way.path + "/", way.body).post(two), 404, "not-found")


@pytest.mark.parametrize("path", ["/v2/", "/v2/models", "/v2/models/fraud/x", "/v2/repository"])
def test_errors_of_the_inference_protocol_are_its_own(client, path):
    """Wherever they come from; and they are problems like all others."""
    problem = refused(client.post(path, json={}), 404, "not-found")
    assert problem["error"] == problem["detail"]
    assert "error" not in refused(client.post("/v1", json={}), 404, "not-found")
    assert refused(client.post("/v2/models/fraud"), 405, "method-not-allowed")["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_405(client, way, method):
    response = client.request(method, way.path)
    refused(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_408_and_429(client_of, served, way):
    """Who sends nothing holds a place for so long, and then it is free again."""
    client = client_of(served, max_concurrency=2, retry_after_seconds=7, body_seconds=0.3)

    async def scenario():
        slow = [asyncio.create_task(asgi_post(client.app, nobody, way.path)) for _ in range(2)]
        await asyncio.sleep(0.1)
        return await asgi_post(client.app, nobody, way.path), [await task for task in slow]

    (status, headers, body), slow = asyncio.run(scenario())
    assert (status, headers[b"retry-after"]) == (429, b"7")
    assert json.loads(body)["type"] == "urn:anomaly-vae:overloaded"
    assert [status for status, _, _ in slow] == [408, 408]
    assert way.post(client).status_code == 200


def test_413(client_of, served, way):
    client = client_of(served, max_records=3, max_body_bytes=1024)
    (name,) = [name for name, one in ways(1.5).items() if one == way]
    assert ways(*range(3))[name].post(client).status_code == 200
    refused(ways(*range(4))[name].post(client), 413, "too-many-records")
    refused(way.post(client, b" " * 1025), 413, "too-large")


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/html"}, {**JSON, "Content-Encoding": "gzip"}]
)
def test_415(client, way, headers):
    refused(way.post(client, headers=headers), 415, "unsupported-media-type")


@pytest.mark.parametrize("name", WAYS)
def test_422(client, name):
    """Where no value of a number is one, its record and its field are named."""
    problem = refused(ways(1.5, "2", True)[name].post(client), 422, "invalid-record")
    assert [(bad["record"], bad["field"]) for bad in problem["errors"]] == [
        (1, "TX_AMOUNT"),
        (2, "TX_AMOUNT"),
    ]
    refused(ways()[name].post(client), 422, "invalid-request")


def test_500(client, way, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret amount 1234.56")

    for step in ("decide", "decide_alone"):
        monkeypatch.setattr(f"anomaly_vae.scoring.detector.Detector.{step}", broken)
    problem = refused(way.post(client), 500, "internal")
    assert "secret" not in json.dumps(problem)


def test_503(client_of, way):
    response = way.post(client_of())
    refused(response, 503, "not-ready")
    assert response.headers["retry-after"] == "1"


def test_every_way_counts_alike(client_of, served):
    def counted(way):
        client = client_of(served)
        way.post(client)
        way.post(client, b"{")
        lines = client.get("/metrics").text.splitlines()
        return [
            line.replace(way.path, "").replace(way.path.replace("fraud", "{name}"), "")
            for line in lines
            if line.startswith(("anomaly_vae_scored", "anomaly_vae_flagged", "anomaly_vae_reject"))
            and "_created" not in line
        ]

    first, *others = (counted(way) for way in ways(1.5, 99999.0).values())
    assert any(line.startswith("anomaly_vae_rejected") for line in first)
    assert all(other == first for other in others)


def test_every_way_says_the_same(client, served):
    amounts = [1.5, None, 99999.0, 0]
    answers = {name: way.post(client).json() for name, way in ways(*amounts).items()}
    results = answers["score"]["results"]
    assert answers["by name"]["results"] == answers["invocations"]["predictions"] == results
    columns = {one["name"]: one["data"] for one in answers["infer"]["outputs"]}
    rows = zip(*columns.values(), strict=True)
    tested = [{k: v for k, v in one.items() if k in columns} for one in results]
    assert [dict(zip(columns, row, strict=True)) for row in rows] == tested
    assert all(one["unusual_input"] is None for one in results)  # the model has no test for it
