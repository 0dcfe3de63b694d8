"""The service as a process: its output, its imports and its end."""

import base64
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.config import STARTUP_FAILURE

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.errors import BundleError, ConfigError
from serving.registry.board import Board, FollowedModel, FollowState
from serving.server import app_factory, serve
from tests.support.paths import ROOT
from tests.support.service_process import HEAVY, IMAGING, running

pytestmark = pytest.mark.e2e


def test_from_start_to_a_graceful_end(tmp_path, folder, records):
    """Readiness goes first, requests are still taken, then it ends with 0; nothing heavy is loaded,
    and no value, key or path of a client is in the log."""
    environment = {"ANOMALY_VAE_DRAIN_SECONDS": "1.5"}
    with running(tmp_path, [str(folder)], environment=environment) as service:
        body = {"records": [{**records[0], "TX_CHANNEL": "mallory"}]}
        before = json.loads(service.ask("/score", body))
        assert service.status("/mallory") == 404
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("/health/ready", 503, seconds=1.4)
        assert json.loads(service.ask("/score", body)) == before
        assert service.process.wait(20) == 0
        service.reader.join(5)
    head, *log, last = service.lines
    assert head.startswith("serving fraud on http://127.0.0.1:")
    assert "without API keys, so on loopback only" in head
    lines = [json.loads(line) for line in log]
    assert [line["status"] for line in lines if line.get("route") == "/score"] == [200, 200]
    assert not any("mallory" in line for line in log)
    assert last.startswith("loaded: ")
    assert not (HEAVY | IMAGING) & set(last.split())


def test_images_from_start_to_end(tmp_path, scan_folder, pngs):
    """Uploaded as clients do; what reads images is loaded and what trains is not, and no name of a
    file is in the log."""
    with running(tmp_path, [str(scan_folder)]) as service:
        form = [("files", ("mallory.png", content, "image/png")) for content in pngs[-3:]]
        with httpx2.Client(base_url=service.url) as client:
            answer = client.post("/score?heatmap=png&explain=2", files=form)
            raw = client.post("/score", content=pngs[-1], headers={"Content-Type": "image/png"})
            bad = client.post("/score", files=[("files", ("mallory.png", b"x", "image/png"))])
            text = client.get("/metrics").text
        assert service.stop() == 0
    results = answer.json()["results"]
    assert [(r["file"], r["frame"]) for r in results] == [(0, 0), (1, 0), (2, 0)]
    assert all(base64.b64decode(r["heatmap"]).startswith(b"\x89PNG") for r in results)
    assert raw.json()["results"][0]["score"] == pytest.approx(results[-1]["score"], rel=1e-6)
    assert bad.json()["results"][0]["error"]["field"] == "image"
    assert not [line for line in [*service.lines, text] if "mallory" in line]
    loaded = set(service.lines[-1].split())
    assert not HEAVY & loaded
    assert "PIL" in loaded


def test_tables_are_served_where_nothing_that_reads_images_is_installed(folder):
    code = f"""
import sys
sys.modules |= dict.fromkeys({sorted(IMAGING)!r})  # importing them fails
from starlette.testclient import TestClient
from serving.app import create_app
from serving.settings import Settings
from anomaly_vae.artifacts.registry_names import BundleRef
from serving.models.store import Store
from serving.scoring.loading import load_model
with TestClient(create_app(Store([load_model(BundleRef({str(folder)!r}))]), Settings())) as client:
    for path in ("/models", "/openapi.json", "/metrics", "/health/ready"):
        assert client.get(path).status_code == 200, path
    body = {{"records": [{{"TX_AMOUNT": 1}}], "explain": 1}}
    assert client.post("/score", json=body).status_code == 200
    assert client.post("/score", files={{"files": b"x"}}).status_code == 415
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_under_way_finishes(tmp_path, folder, records):
    environment = {"ANOMALY_VAE_DRAIN_SECONDS": "0"}
    many = {"records": records * 8, "explain": "all"}
    with running(tmp_path, [str(folder)], environment=environment) as service:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(service.ask, "/score", many)
            time.sleep(0.15)
            code = service.stop()
            assert len(json.loads(answer.result())["results"]) == len(many["records"])
        assert code == 0


def test_a_large_upload_hears_the_refusal(tmp_path, folder):
    """The response arrives although the body is never read."""
    with running(tmp_path, [str(folder)]) as service:
        connection = HTTPConnection(service.url.removeprefix("http://"), timeout=10)
        with closing(connection):
            headers = {"Content-Type": "application/json"}
            for _ in range(2):
                connection.request("POST", "/score", b"x" * 20_000_000, headers)
                response = connection.getresponse()
                assert response.status == 413
                assert json.loads(response.read())["type"] == "urn:anomaly-vae:too-large"
        assert service.stop(signal.SIGINT) in (0, -signal.SIGINT)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_everything_first_hears_the_refusal(tmp_path, folder, chunked):
    """urllib asks for the connection to be closed, writes its whole body, and only then reads."""
    environment = {"ANOMALY_VAE_MAX_BODY_BYTES": "4000000"}
    body = iter([b"x" * 1_000_000] * 15) if chunked else b"x" * 15_000_000
    with running(tmp_path, [str(folder)], environment=environment) as service:
        request = Request(service.url + "/score", body, {"Content-Type": "application/json"})
        with pytest.raises(HTTPError) as caught:
            urlopen(request, timeout=10)
        with caught.value as response:
            assert response.code == 413
            assert json.loads(response.read())["type"] == "urn:anomaly-vae:too-large"


def test_workers_count_together(tmp_path, folder, records):
    with running(tmp_path, [str(folder)], workers=2) as service:
        for record in records[:20]:
            service.ask("/score", {"records": [record]})
        for _ in range(3):
            text = service.ask("/metrics").decode()
            values = {
                (s.name, s.labels.get("model")): s.value
                for family in text_string_to_metric_families(text)
                for s in family.samples
            }
            assert values["anomaly_vae_scored_records_total", "fraud"] == 20
            assert values["anomaly_vae_p_value_count", "fraud"] == 20
            assert values["anomaly_vae_model_info", "fraud"] == 1
        assert service.stop() == 0


def test_beyond_loopback_only_with_keys_or_without_fear(monkeypatch):
    with pytest.raises(ConfigError, match="ANOMALY_VAE_API_KEYS, or pass --no-auth"):
        serve(["nowhere"], host="0.0.0.0", port=0)
    with pytest.raises(BundleError):
        serve(["nowhere"], host="0.0.0.0", port=0, no_auth=True)
    monkeypatch.setenv("ANOMALY_VAE_API_KEYS", f"a:score:{'0' * 64}")
    with pytest.raises(BundleError):
        serve(["nowhere"], host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="contradicts"):
        serve(["nowhere"], port=0, no_auth=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_keys(host):
    with pytest.raises(BundleError, match="not a bundle"):
        serve(["nowhere"], host=host, port=0)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_used(host, port):
    with pytest.raises(ConfigError, match="cannot listen"):
        serve(["nowhere"], host=host, port=port, no_auth=True)


def test_a_worker_that_cannot_load_ends_them_all(monkeypatch, capsys, tmp_path):
    one = FollowedModel("nowhere", source=BundleRef("nowhere"))
    Board.shared(tmp_path / "board.json", FollowState((one,)))
    monkeypatch.setenv("ANOMALY_VAE_BOARD", str(tmp_path / "board.json"))
    with pytest.raises(SystemExit) as caught:
        app_factory()
    assert caught.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err == "'nowhere' is not a bundle: it has no SHA256SUMS\n"


def test_the_same_name_twice(folder):
    with pytest.raises(ConfigError, match="two models are called 'fraud'"):
        serve([str(folder), str(folder)], port=0)
