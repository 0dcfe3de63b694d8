"""The attributes of uvicorn that the service relies on, and a connection in memory."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.http.http11 import SECURE_HEADERS, CoalescingTransport, LimitedProtocol
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.paths import REQUESTS
from serving.settings import Settings

METHODS = {
    "connection_made", "connection_lost", "data_received", "on_body", "on_header",
    "on_headers_complete", "on_message_complete", "on_response_complete", "shutdown",
}  # fmt: skip
"""Methods of uvicorn's protocol that are overridden."""
CALLED = {"_unset_keepalive_if_required"}
"""Methods of uvicorn's protocol that are called."""
ATTRIBUTES = {
    "app", "connections", "cycle", "expect_100_continue", "headers", "loop", "parser", "pipeline",
    "scope", "tasks", "transport", "url",
}  # fmt: skip
"""Attributes of uvicorn's protocol that are read or set."""
CYCLE = {
    "disconnected", "message_event", "response_complete", "response_started",
    "waiting_for_100_continue",
}  # fmt: skip
"""Attributes of uvicorn's request and response that are read or set."""
CHANGED = "uvicorn has changed; adapt serving/http/http11.py to it"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps each write, and whether the server closed the connection before it was lost."""

    def __init__(self):
        super().__init__()
        self.writes, self.closed, self.lost = [], False, False

    def write(self, data):
        self.writes.append(bytes(data))

    def write_eof(self):
        self.closed = True

    def close(self):
        self.closed = self.closed or not self.lost

    def is_closing(self):
        return self.closed

    def get_extra_info(self, name, default=None):
        return default

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class App:
    """Answers every request, and keeps the scopes."""

    def __init__(self, **settings):
        self.state = SimpleNamespace(settings=Settings(**settings), metrics=Metrics(Store()))
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


def connected(app):
    config = uvicorn.Config(
        app, http=LimitedProtocol, ws="none", interface="asgi3", proxy_headers=False,
        log_config=None, server_header=False, headers=[*SECURE_HEADERS],
    )  # fmt: skip
    config.load()
    state = ServerState()
    state.default_headers = config.encoded_headers
    protocol = LimitedProtocol(config, state, {}, _loop=asyncio.get_running_loop())
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


def talk(*parts, **settings):
    """Feed parts of requests to a connection; return its transport and the application."""
    app = App(**settings)

    async def run():
        protocol, transport = connected(app)
        for part in parts:
            protocol.data_received(part)
            await asyncio.sleep(0.01)
        transport.lost = True
        protocol.connection_lost(None)
        return transport

    return asyncio.run(run()), app


def test_uvicorn_has_what_the_connection_relies_on():
    missing = {
        name for name in METHODS | CALLED if not callable(getattr(HttpToolsProtocol, name, None))
    }
    assert not missing, CHANGED
    parameters = list(inspect.signature(HttpToolsProtocol).parameters)
    assert parameters == ["config", "server_state", "app_state", "_loop"], CHANGED
    protocols = []

    async def run():
        protocol, _ = connected(App())
        protocol.data_received(GET)
        protocols.append(protocol)
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert vars(protocols[0]).keys() >= ATTRIBUTES, CHANGED
    assert vars(protocols[0].cycle).keys() >= CYCLE, CHANGED
    assert protocols[0].cycle.response_complete is True, CHANGED


def test_a_request_knows_the_requests_in_progress():
    counts = []

    class Counting(App):
        async def __call__(self, scope, receive, send):
            counts.append(len(scope[REQUESTS]))
            await super().__call__(scope, receive, send)

    async def run():
        app = Counting()
        first, second = connected(app)[0], connected(app)[0]
        second.tasks = first.tasks  # both belong to one server
        first.data_received(GET)
        second.data_received(GET)
        await asyncio.sleep(0.01)
        first.data_received(GET)
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert counts == [2, 2, 1]


def test_head_and_body_of_a_response_are_one_write():
    transport, _ = talk(GET, GET)
    assert len(transport.writes) == 2, CHANGED
    for written in transport.writes:
        head, _, body = written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"x-content-type-options: nosniff" in head
        assert body == b"ok"
    assert not transport.closed


def test_a_write_alone_is_sent_in_the_next_turn_and_before_the_end():
    async def run():
        transport = Transport()
        joined = CoalescingTransport(transport, asyncio.get_running_loop())
        joined.write(b"one")
        assert not transport.writes
        await asyncio.sleep(0)
        assert transport.writes == [b"one"]
        joined.write(b"two")
        joined.close()
        await asyncio.sleep(0)
        assert (transport.writes, transport.closed) == ([b"one", b"two"], True)

    asyncio.run(run())


def test_trailer_fields_are_dropped():
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    transport, app = talk(head + b"X-More: y\r\n\r\n", GET)
    assert [len(scope["headers"]) for scope in app.scopes] == [2, 1], CHANGED
    assert len(transport.writes) == 2


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"nonsense\r\n\r\n"], b"400"),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * 2000], b"431"),
        ([b"GET / HTTP/1.1\r\nX: " + b"a" * 2000 + b"\r\n\r\n"], b"431"),
        ([GET, b"nonsense\r\n\r\n"], b"400"),
    ],
)
def test_refusals_are_problem_details_and_close(parts, status):
    transport, _ = talk(*parts, max_head_bytes=1024)
    head, _, body = transport.writes[-1].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status), CHANGED
    assert b"application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head
    assert body.startswith(b'{"type":"urn:anomaly-vae:')
    assert transport.closed


def test_a_large_body_in_the_packet_of_its_head_is_no_large_head():
    body = b"x" * 5000
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    transport, app = talk(head + body, max_head_bytes=1024)
    assert len(app.scopes) == 1
    assert transport.writes[-1].startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("parts", "status"), [([], None), ([b"GET / HT"], b"HTTP/1.1 408 "), ([GET], b"HTTP/1.1 200 ")]
)
def test_a_head_has_a_deadline(parts, status):
    """A silent connection is closed, a started request gets a 408, an answered one stays open."""
    app = App(head_seconds=0.05)

    async def run():
        protocol, transport = connected(app)
        for part in parts:
            protocol.data_received(part)
        await asyncio.sleep(0.2)
        transport.lost = True
        protocol.connection_lost(None)
        return transport

    transport = asyncio.run(run())
    assert transport.closed == (status != b"HTTP/1.1 200 ")
    assert [one[: len(status)] for one in transport.writes] == [status] if status else True
