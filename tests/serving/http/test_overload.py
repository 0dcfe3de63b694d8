"""A real server under overload: it refuses quickly, stays bounded and recovers."""

import hashlib
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ports import free_port
from tests.support.service_process import running

pytestmark = pytest.mark.e2e

JSON = {"Content-Type": "application/json"}


def address(service):
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


def request(service, method, path, body=None, headers=JSON):
    """Return status, headers and body of a response, over a connection of its own."""
    with closing(HTTPConnection(*address(service), timeout=20)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def post(service, records):
    return request(service, "POST", "/score", json.dumps({"records": records}))


def metric(service, name, **labels):
    text = service.ask("/metrics").decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"anomaly_vae_{name}" and labels.items() <= sample.labels.items()
    )


def resident_mb(service):
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def head(path="/score", length=2, more=""):
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


def heard(connection, seconds=20):
    """Return everything that a raw connection receives until it is closed."""
    connection.settimeout(seconds)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.fixture(scope="module")
def usual(tmp_path_factory, folder):
    """A service with the usual limits, for tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("usual"), [str(folder)]) as service:
        yield service


def test_more_than_there_are_places_for(tmp_path, folder, records):
    """Clients that send no body take ten times the allowed requests: further ones get a 429, health
    checks are answered throughout, and scoring works again once they are gone."""
    environment = {"ANOMALY_VAE_MAX_CONCURRENCY": "8", "ANOMALY_VAE_BODY_SECONDS": "600"}
    with running(tmp_path, [str(folder)], environment=environment) as service, ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(address(service), timeout=20))
            for _ in range(80)
        ]
        for connection in slow:
            connection.sendall(head(length=10_000))
        deadline = time.monotonic() + 20
        while metric(service, "rejected_requests_total", reason="overloaded") < 72:
            assert time.monotonic() < deadline
        status, headers, body = post(service, records[:1])
        assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["type"] == "urn:anomaly-vae:overloaded"
        assert request(service, "GET", "/health/live")[0] == 200
        held.close()
        while post(service, records[:1])[0] != 200:
            assert time.monotonic() < deadline


def test_large_requests_wait_in_a_bounded_queue_beside_small_ones(tmp_path, folder, records):
    """Of many at once, some are answered and the others refused immediately; small requests pass,
    and memory is bounded."""
    environment = {"ANOMALY_VAE_THREADS": "1", "ANOMALY_VAE_MAX_QUEUED": "2"}
    large = json.dumps({"records": records * 25})
    with running(tmp_path, [str(folder)], environment=environment) as service:
        before, done = resident_mb(service), threading.Event()
        small = []

        def trickle():
            while not done.is_set():
                small.append(post(service, records[:1])[0])

        with ThreadPoolExecutor(21) as pool:
            trickling = pool.submit(trickle)
            answers = list(pool.map(lambda _: request(service, "POST", "/score", large), range(20)))
            done.set()
            trickling.result()
        counts = dict.fromkeys((200, 429), 0)
        for status, headers, body in answers:
            counts[status] += 1
            if status == 200:
                assert len(json.loads(body)["results"]) == len(records) * 25
            else:
                assert headers["retry-after"] == "1"
        assert counts[200] >= 3
        assert set(small) == {200}
        assert metric(service, "queue_depth") == 0
        assert resident_mb(service) < before + 400
        assert request(service, "POST", "/score", large)[0] == 200


def test_a_head_that_comes_byte_by_byte_is_cut_off(tmp_path, folder):
    environment = {"ANOMALY_VAE_HEAD_SECONDS": "0.5"}
    with running(tmp_path, [str(folder)], environment=environment) as service:
        with socket.create_connection(address(service), timeout=20) as slow:
            silent = socket.create_connection(address(service), timeout=20)
            try:
                for byte in head() * 20:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.05)
            except OSError:
                pass
            else:
                pytest.fail("it was never cut off")
        with silent:
            assert heard(silent) == b"", "a silent client gets no response"
        with socket.create_connection(address(service), timeout=20) as idle:
            idle.sendall(head()[:30])
            said = heard(idle)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"urn:anomaly-vae:timeout" in said
        assert metric(service, "rejected_requests_total", reason="timeout") >= 2


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_head_that_is_too_large(usual, pieces):
    long = head(more="X-Long: " + "a" * 100_000 + "\r\n")
    many = head(more="".join(f"X-{n}: {n}\r\n" for n in range(20_000)))
    before = metric(usual, "rejected_requests_total", reason="head-too-large")
    for content in (long, many):
        with socket.create_connection(address(usual), timeout=20) as connection:
            size = -(-len(content) // pieces)
            try:
                for start in range(0, len(content), size):
                    connection.sendall(content[start : start + size])
                    time.sleep(0.001)
            except OSError:
                pass
            said = heard(connection)
        assert not said or said.startswith(b"HTTP/1.1 431 ")
    assert metric(usual, "rejected_requests_total", reason="head-too-large") == before + 2
    assert request(usual, "GET", "/health/live")[0] == 200


@pytest.mark.parametrize(
    "content", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"nonsense\r\n\r\n", b"\0" * 99]
)
def test_what_is_no_http_is_a_problem_too(usual, content):
    with socket.create_connection(address(usual), timeout=20) as connection:
        connection.sendall(content)
        said = heard(connection)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"urn:anomaly-vae:malformed" in said


def test_connections_are_so_many_at_the_most(tmp_path, folder):
    environment = {"ANOMALY_VAE_MAX_CONNECTIONS": "5"}
    with running(tmp_path, [str(folder)], environment=environment) as service, ExitStack() as held:
        for _ in range(5):
            held.enter_context(socket.create_connection(address(service), timeout=20))
        with socket.create_connection(address(service), timeout=20) as late:
            assert heard(late).startswith(b"HTTP/1.1 429 ")
        held.close()
        service.wait_for("/health/live", 200)


def test_clients_that_go_away_leave_their_places(tmp_path, folder, records):
    """They leave in the middle of a body, or while their request waits for a thread."""
    environment = {"ANOMALY_VAE_MAX_CONCURRENCY": "4", "ANOMALY_VAE_THREADS": "1"}
    large = json.dumps({"records": records * 25}).encode()
    with running(tmp_path, [str(folder)], environment=environment) as service:
        for content in (head(length=10_000) + b"{", head(length=len(large)) + large):
            for _ in range(12):
                with socket.create_connection(address(service), timeout=20) as connection:
                    connection.sendall(content)
            deadline = time.monotonic() + 20
            while post(service, records[:1])[0] != 200:
                assert time.monotonic() < deadline


def test_an_endless_trailer_takes_no_memory(usual):
    """Trailer fields are discarded, however many arrive."""
    start = b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    before = resident_mb(usual)
    with socket.create_connection(address(usual), timeout=20) as connection:
        connection.sendall(start)
        try:
            for _ in range(200):
                connection.sendall(b"X-More: " + b"a" * 1000 + b"\r\n" + b"X: y\r\n" * 10_000)
        except OSError:
            pass
    assert resident_mb(usual) < before + 50
    assert request(usual, "GET", "/health/live")[0] == 200


def test_every_answer_has_secure_headers(usual, records):
    answers = [
        post(usual, records[:1]), post(usual, []), request(usual, "GET", "/docs"),
        request(usual, "GET", "/nowhere"), request(usual, "GET", "/metrics"),
    ]  # fmt: skip
    assert [status for status, _, _ in answers] == [200, 422, 200, 404, 200]
    for _, headers, _ in answers:
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-request-id"]


def test_no_request_is_lost_when_one_process_takes_over_from_another(tmp_path, folder, records):
    """New requests go to the process that is ready, as a load balancer does it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        running(tmp_path / "a", [str(folder)]) as old,
        running(tmp_path / "b", [str(folder)]) as new,
    ):
        current, statuses, done = [old], [], threading.Event()

        def ask():
            while not done.is_set():
                statuses.append(post(current[0], records[:2])[0])
                time.sleep(0.01)  # leaves the processor to those that start and end

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            time.sleep(0.3)
            old.process.send_signal(signal.SIGTERM)
            old.wait_for("/health/ready", 503, seconds=5)
            current[0] = new
            assert old.process.wait(20) == 0
            done.set()
            for one in asking:
                one.result()
    assert len(statuses) > 10
    assert set(statuses) == {200}


def children(pid):
    return {int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def workers_of(service):
    """Return the worker processes, without the resource tracker of multiprocessing."""
    found = set()
    for pid in children(service.process.pid):
        with suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


@pytest.mark.slow
def test_no_request_is_lost_when_workers_are_replaced(tmp_path, folder, records):
    statuses, done = [], threading.Event()
    with running(tmp_path, [str(folder)], workers=2) as service, ThreadPoolExecutor(4) as pool:

        def ask():
            while not done.is_set():
                statuses.append(post(service, records[:2])[0])
                time.sleep(0.01)  # leaves the processor to the new workers

        asking = [pool.submit(ask) for _ in range(4)]
        try:
            before = workers_of(service)
            assert len(before) == 2
            service.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 90
            while before & workers_of(service) or len(workers_of(service)) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            asked = len(statuses)
            while len(statuses) < asked + 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            done.set()
        for one in asking:
            one.result()
        assert service.stop() == 0
    assert set(statuses) == {200}


def test_workers_count_the_requests_of_a_key_together(tmp_path, folder):
    keys = f"shop:score:{hashlib.sha256(b'k').hexdigest()}"
    environment = {
        "ANOMALY_VAE_API_KEYS": keys,
        "ANOMALY_VAE_RATE_PER_SECOND": "0.001",
        "ANOMALY_VAE_RATE_BURST": "10",
    }
    with running(tmp_path, [str(folder)], environment=environment, workers=2) as service:
        headers = {"X-API-Key": "k"}
        found = [request(service, "GET", "/models", headers=headers)[0] for _ in range(40)]
    assert found == [200] * 10 + [429] * 30


def test_administration_on_a_port_of_its_own(tmp_path, folder, records):
    port = free_port()
    environment = {"ANOMALY_VAE_ADMIN_PORT": str(port)}
    with running(tmp_path, [str(folder)], environment=environment, workers=2) as service:
        assert post(service, records[:1])[0] == 200
        assert request(service, "GET", "/metrics")[0] == 404
        main, service.url = service.url, f"http://127.0.0.1:{port}"
        assert metric(service, "scored_records_total") == 1
        assert post(service, records[:1])[0] == 404
        service.url = main
        assert service.stop() == 0
