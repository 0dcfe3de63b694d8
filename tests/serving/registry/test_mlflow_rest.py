"""The request to an MLflow server, and how each response is understood."""

import base64
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from anomaly_vae.artifacts.registry_names import DIGEST_TAG
from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.registry import Registry
from serving.registry import mlflow_rest
from tests.support.mlflow_registry import mlflow_server, registered, rival, versions, world
from tests.support.registries import migrated

__all__ = ["migrated", "registered", "rival", "versions", "world"]

OK = {"model_version": {"version": "7", "tags": [{"key": DIGEST_TAG, "value": "d"}]}}


@contextmanager
def answering(status=200, content=OK, headers=(), pause=0.0):
    """Run a server with this response to everything; yield the requests it received."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            for part in (body[:1], body[1:]):
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(pause)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    """Hide the credentials of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def ask(monkeypatch, uri, seconds=5.0):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_rest.is_server()
    return mlflow_rest.resolve_alias("fraud", "champion", seconds)


def test_the_question(monkeypatch):
    with answering() as (place, asked):
        found = ask(monkeypatch, f"http://{place}/base/")
    assert (found.version, found.digest) == ("7", "d")
    ((path, headers),) = asked
    assert path == f"/base{mlflow_rest.ENDPOINT}?name=fraud&alias=champion"
    assert "Authorization" not in headers


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("environment", "user", "sent"),
    [
        ({"TOKEN": "t"}, "", "Bearer t"),
        ({"USERNAME": "me", "PASSWORD": "p:w"}, "", basic("me", "p:w")),
        ({"USERNAME": "me", "PASSWORD": "pw", "TOKEN": "t"}, "", basic("me", "pw")),
        ({}, "you:p%40@", basic("you", "p@")),
    ],
)
def test_credentials_are_mlflows_own(monkeypatch, environment, user, sent):
    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with answering() as (place, asked):
        ask(monkeypatch, f"http://{user}{place}")
    assert asked[0][1]["Authorization"] == sent


def test_credentials_of_mlflows_file(monkeypatch, tmp_path):
    (tmp_path / ".mlflow").mkdir()
    content = "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = 100%\n"
    (tmp_path / ".mlflow" / "credentials").write_text(content)
    with answering() as (place, asked):
        ask(monkeypatch, f"http://{place}")
    assert asked[0][1]["Authorization"] == basic("me", "100%")


@pytest.mark.parametrize(
    ("answer", "said", "missing"),
    [
        ((404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}), "has no 'models:/fraud@champion'", True),
        ((400, {"message": "Registered model alias champion not found."}), "has no", True),
        ((404, b"not here"), "answered 404", False),
        ((401, b""), "answered 401 .* MLFLOW_TRACKING_USERNAME", False),
        ((403, b""), "answered 403 .* may not read it", False),
        ((500, b"\xff\n\n"), "answered 500", False),
        ((200, b"<html>"), "is not an MLflow server", False),
        ((200, {"model_version": {}}), "is not an MLflow server", False),
        ((200, b"x" * (mlflow_rest.MAX_RESPONSE_BYTES + 1)), "too long", False),
    ],
)
def test_any_other_answer_is_one_line(monkeypatch, answer, said, missing):
    with answering(*answer) as (place, _), pytest.raises(RegistryError, match=said) as caught:
        ask(monkeypatch, f"http://me:secret@{place}")
    assert caught.value.missing == missing
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_credentials_go_nowhere_else(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    refused = pytest.raises(RegistryError, match="answered 302")
    with answering() as (other, asked):
        elsewhere = [("Location", f"http://{other}/")]
        with answering(302, b"", elsewhere) as (place, _), refused:
            ask(monkeypatch, f"http://{place}")
    assert not asked


def test_it_does_not_wait_for_ever(monkeypatch):
    with answering(pause=1.0) as (place, _), pytest.raises(RegistryError, match=r"slow|timed out"):
        ask(monkeypatch, f"http://{place}", seconds=0.3)


def test_nobody_there(monkeypatch):
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1 cannot be reached: .*refused"):
        ask(monkeypatch, "http://127.0.0.1:1")


@pytest.mark.parametrize("name", mlflow_rest.SIGNING_VARIABLES)
def test_what_only_mlflow_can_sign_is_left_to_it(monkeypatch, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost")
    monkeypatch.setenv(name, "true")
    assert not mlflow_rest.is_server()


@pytest.mark.e2e
def test_a_real_server(world, versions, monkeypatch):
    """MLflow's responses for an existing version, a missing alias and a missing model."""
    with mlflow_server(world) as uri:
        found = ask(monkeypatch, uri)
        assert (found.version, found.digest) == ("1", versions["1"].digest)
        assert found.registered_at == Registry(uri).version("fraud", "1").registered_at
        for name, alias in (("fraud", "nobody"), ("nothing", "champion")):
            with pytest.raises(RegistryError, match="has no") as caught:
                mlflow_rest.resolve_alias(name, alias, 5.0)
            assert caught.value.missing


@pytest.mark.parametrize(
    "address", ["bob:s3cret/x@localhost:1", "bob:p@s3cret@localhost:1", "[::1"]
)
def test_an_address_that_cannot_be_read_is_one_line_without_its_password(monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    with pytest.raises(RegistryError) as caught:
        mlflow_rest.resolve_alias("fraud", "champion", 1)
    assert "s3cret" not in str(caught.value)
    assert "write / as %2F" in str(caught.value) or "localhost:1" in str(caught.value)
