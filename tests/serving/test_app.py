"""Every path of the application is answered, and missing packages are named."""

import json
import sys

import pytest

from anomaly_vae.errors import ConfigError
from serving.app import COLLECTOR_VARIABLES, create_app
from serving.models.store import Store
from serving.settings import Settings
from tests.support.http_requests import post, refused
from tests.support.metrics import MODEL, value


def test_unknown_models_and_routes(client):
    unknown = client.post("/models/nobody/score", json={"records": [{"TX_AMOUNT": 1}]})
    assert "/models/fraud/score" in refused(unknown, 404, "unknown-model")["detail"]
    for path in ("/", "/scores", "/score/", "/models/a/b/score", "/%00", "/models//score"):
        refused(client.post(path, json={}), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/score", "POST"),
        ("DELETE", "/models/fraud/score", "POST"),
        ("POST", "/models", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
def test_wrong_methods(client, method, path, allowed):
    response = client.request(method, path)
    refused(response, 405, "method-not-allowed")
    assert sorted(response.headers["allow"].split(", ")) == allowed.split(", ")


@pytest.mark.parametrize("explain", [0, 1])
def test_a_bug_says_nothing_of_the_inside(client, caplog, monkeypatch, records, explain):
    def broken(*_):
        raise RuntimeError("secret amount 1234.56")

    for step in ("decide", "decide_alone"):
        monkeypatch.setattr(f"anomaly_vae.scoring.detector.Detector.{step}", broken)
    body = {"records": records[:1], "explain": explain}
    problem = refused(post(client, body), 500, "internal")
    assert "secret" not in json.dumps(problem)


def test_two_applications_count_apart(client_of, served):
    one, other = client_of(served), client_of(served)
    one.post("/score", json={"records": [{"TX_AMOUNT": 1}]})
    assert value(other, "scored_records_total", **MODEL) == 0


def test_without_a_collector_nothing_is_loaded(client_of, served, monkeypatch):
    for variable in COLLECTOR_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, "serving.observability.tracing", None)  # importing it fails
    assert client_of(served).get("/models").status_code == 200


def test_tracing_without_its_library(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delitem(sys.modules, "serving.observability.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'anomaly-vae\[otel\]'"):
        create_app(Store(), Settings())


ISSUER = "http://127.0.0.1:1"


def test_tokens_without_their_library(monkeypatch):
    monkeypatch.delitem(sys.modules, "serving.http.oidc", raising=False)
    monkeypatch.setitem(sys.modules, "jwt", None)
    settings = Settings(oidc_issuer=ISSUER, oidc_audience="a", oidc_jwks_url=ISSUER)
    with pytest.raises(ConfigError, match=r"pip install 'anomaly-vae\[oidc\]'"):
        create_app(Store(), settings)
