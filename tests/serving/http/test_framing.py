"""Where each request begins and ends, by RFC 9110 and RFC 9112, over real sockets.

Each request is followed by another one in the same bytes. It must be answered if the connection
stays open and never be executed if it does not, however the bytes are split into packets.
"""

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.app import create_app
from serving.http.http11 import SECURE_HEADERS, LimitedProtocol
from serving.models.store import Store
from serving.settings import ApiKey, Settings
from tests.support.service_process import running

BODY = json.dumps({"records": [{"TX_AMOUNT": 12.5}]}).encode()
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
FOLLOWING = b"GET /models HTTP/1.1\r\nHost: x\r\nX-Request-Id: following\r\n\r\n"
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAA")
PAUSE = 0.01
"""Seconds after which the service has read a packet."""


def message(*headers, line=b"POST /score", version=b"1.1", host=b"Host: x", body=b""):
    """A request; `host` None leaves the header out."""
    fixed = [b"%b HTTP/%b" % (line, version), *([host] if host is not None else [])]
    if line.startswith(b"POST"):
        fixed.append(b"Content-Type: application/json")
    return b"\r\n".join([*fixed, *headers, b"", body])


def get(*headers, **options):
    return message(*headers, **{"line": b"GET /health/live", **options})


def chunked(body, *headers):
    return message(CHUNKED, *headers, body=body)


def sized(length):
    return message(b"Content-Length:" + length, body=BODY)


def coded(*codings):
    return message(*(b"Transfer-Encoding:" + coding for coding in codings), body=CHUNKS)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A connection to the service; keeps what was executed for it."""

    def __init__(self, reader, writer, executed):
        self.reader, self.writer, self.executed = reader, writer, executed

    async def send(self, *packets):
        for packet in packets:
            self.writer.write(packet)
            await asyncio.sleep(PAUSE if len(packets) < 5 else 0)

    async def answer(self, head=False):
        """The next response, or None at the end of the connection."""
        try:
            start = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None
        first, *lines = start.decode("latin-1").split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = 0 if head else int(headers.get("content-length", 0))
        return Answer(int(first.split()[1]), headers, await self.reader.readexactly(size))

    async def answers(self, head=False):
        """All responses until the end of the connection, or until the one to `FOLLOWING`."""
        found = []
        while answer := await self.answer(head and not found):
            found.append(answer)
            if answer.headers.get("x-request-id") == "following":
                break
        return found


@asynccontextmanager
async def listening(model, draining=False, **settings):
    """Serve a model; yields a function that connects to it."""
    app, executed = create_app(Store([model]), Settings(**settings)), []
    app.state.store.draining, inner = draining, app.outermost

    async def outermost(scope, receive, send):
        executed.append(f"{scope['method']} {scope['path']}")
        await inner(scope, receive, send)

    app.outermost = outermost
    config = uvicorn.Config(
        app, interface="asgi3", ws="none", proxy_headers=False, log_config=None,
        headers=[*SECURE_HEADERS],
    )  # fmt: skip
    config.load()
    state = ServerState()
    state.default_headers = config.encoded_headers
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: LimitedProtocol(config, state, {}), "127.0.0.1", 0)

    @asynccontextmanager
    async def connected():
        executed.clear()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield Client(reader, writer, executed)
        finally:
            writer.close()

    async with server, asyncio.timeout(20):
        yield connected


def packets(content):
    """The ways in which a request arrives: at once, the body after the head, byte by byte."""
    end = content.find(b"\r\n\r\n") + 4
    whole = content + FOLLOWING
    return [[whole], [content[:end], whole[end:]], [bytes([byte]) for byte in whole]]


def exchange(model, content, **options):
    """Send a request in each way; returns what was answered, and what was executed."""

    async def run():
        seen = []
        async with listening(model, **options) as connected:
            for parts in packets(content):
                async with connected() as client:
                    await client.send(*parts)
                    answers = await client.answers(content.startswith(b"HEAD"))
                    seen.append((answers, [*client.executed]))
        return seen

    return asyncio.run(run())


def keeps(model, content, status, **options):
    """Check that a request is answered, and then the one after it."""
    for answers, executed in exchange(model, content, **options):
        final = [answer for answer in answers if answer.status != 100]
        assert [answer.status for answer in final] == [status, 200]
        assert len(executed) == 2


def closes(model, content, status, **options):
    """Check that a request is answered with a problem unless it is fine, and nothing after it."""
    for answers, executed in exchange(model, content, **options):
        assert [answer.status for answer in answers] == [status]
        assert "GET /models" not in executed
        assert answers[0].headers["connection"] == "close"
        assert answers[0].headers["x-content-type-options"] == "nosniff"
        if status >= 400:
            assert answers[0].headers["content-type"] == "application/problem+json"
            assert json.loads(answers[0].body)["status"] == status


FINE = {
    "a length": message(LENGTH, body=BODY),
    "spaces around a length": sized(b" \t %d \t " % len(BODY)),
    "zeros before a length": sized(b"000%d" % len(BODY)),
    "one chunk": chunked(CHUNKS),
    "many chunks": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    "zeros before the size of a chunk": chunked(b"00000" + CHUNKS),
    "capital letters": message(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS),
    "extensions of a chunk": chunked(CHUNKS.replace(b"\r\n", b';a=b;c="d"\r\n', 1)),
    "trailer fields": chunked(CHUNKS[:-2] + b"X-API-Key: a\r\nX: y\r\n\r\n"),
    "an expectation": message(LENGTH, b"Expect: 100-continue", body=BODY),
    "an expectation of chunks": message(CHUNKED, b"Expect: 100-Continue", body=CHUNKS),
    "an unknown expectation": message(LENGTH, b"Expect: tea", body=BODY),
    "h2c": message(*H2C, LENGTH, body=BODY),
    "h2c with chunks": message(*H2C, CHUNKED, body=CHUNKS),
    "h2c with an expectation": message(*H2C, LENGTH, b"Expect: 100-continue", body=BODY),
    "websocket": message(b"Connection: upgrade", b"Upgrade: websocket", LENGTH, body=BODY),
    "tls": message(b"Connection: Upgrade", b"Upgrade: TLS/1.2, HTTP/1.1", LENGTH, body=BODY),
    "two upgrades": message(*H2C, b"Upgrade: foo", LENGTH, body=BODY),
    "only a connection": message(b"Connection: Upgrade", LENGTH, body=BODY),
    "only an upgrade": message(b"Upgrade: h2c", LENGTH, body=BODY),
    "a whole url": message(LENGTH, line=b"POST http://a.b:80/score?x=1", body=BODY),
    "empty lines before": b"\r\n\r\n" + get(),
    "a body of a get": get(b"Content-Length: %d" % len(FOLLOWING), body=FOLLOWING),
    "an upgrade of a get": get(*H2C),
    "a websocket": get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    "no name in host": get(host=b"Host: "),
    "an address": get(host=b"Host: [::1]:80"),
    "a port": get(host=b"Host: a-b_c.d:8000"),
    "letters beyond ascii": get(b"X: \xe4"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_sound_is_answered_and_so_is_what_follows(served, name):
    keeps(served, FINE[name], 200)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (message(b"Content-Length: %d" % len(FOLLOWING), body=FOLLOWING), 400),
        (message(*H2C, b"Content-Length: %d" % len(FOLLOWING), body=FOLLOWING), 400),
        (message(LENGTH, line=b"POST /nowhere", body=BODY), 404),
        (message(LENGTH, line=b"PUT /score", body=BODY), 405),
        (message(LENGTH, line=b"OPTIONS *", body=BODY), 404),
        (message(LENGTH, b"Content-Type: text/plain", body=BODY), 415),
        (message(*H2C, CHUNKED, line=b"POST /nowhere", body=CHUNKS), 404),
        (get(line=b"HEAD /health/live"), 200),
        (get(line=b"HEAD /metrics"), 200),
        (get(line=b"HEAD /score"), 405),
        (get(line=b"HEAD /nowhere"), 404),
        (get(line=b"GET http://x"), 404),
    ],
)
def test_what_is_refused_early_is_read_to_its_end(served, content, status):
    keeps(served, content, status)


def test_a_body_that_is_too_large_is_read_or_the_connection_ends(served):
    """Up to four times the limit is read."""
    body = FOLLOWING * 40
    content = message(b"Content-Length: %d" % len(body), body=body)
    keeps(served, content, 413, max_body_bytes=1024)
    keeps(served, chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)), 413, max_body_bytes=1024)
    endless = message(b"Content-Length: 1000000", body=FOLLOWING * 150)
    for answers, executed in exchange(served, endless, max_body_bytes=1024):
        assert [answer.status for answer in answers] == [413]
        assert executed == ["POST /score"]


@pytest.mark.parametrize("method", ["POST /score", "HEAD /models", "GET /models"])
def test_what_needs_a_key_is_read_to_its_end(served, method):
    keys = (ApiKey("a", frozenset({"score"}), "0" * 64),)
    body = FOLLOWING * 2
    content = message(*H2C, b"Content-Length: %d" % len(body), line=method.encode(), body=body)
    for answers, executed in exchange(served, content, api_keys=keys):
        assert [answer.status for answer in answers] == [401, 401]
        assert executed == [method, "GET /models"]


def test_what_comes_while_the_service_drains_is_the_last_request(served):
    async def run():
        async with listening(served, draining=True) as connected:
            for line, status in ((b"HEAD /health/ready", 503), (b"HEAD /ping", 503)):
                async with connected() as client:
                    await client.send(get(line=line) + FOLLOWING)
                    (answer,) = await client.answers(head=True)
                    assert (answer.status, answer.headers["connection"]) == (status, "close")

    asyncio.run(run())


BROKEN = {
    "no size of a chunk": chunked(b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "0x": chunked(b"0x" + CHUNKS),
    "a negative size": chunked(b"-" + CHUNKS),
    "a signed size": chunked(b"+" + CHUNKS),
    "a size beyond 64 bits": chunked(b"fffffffffffffffff\r\n"),
    "a space after a size": chunked(CHUNKS.replace(b"\r\n", b" \r\n", 1)),
    "a chunk longer than its size": chunked(b"3\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "line feeds in chunks": chunked(CHUNKS.replace(b"\r\n", b"\n")),
    "a carriage return in an extension": chunked(CHUNKS.replace(b"\r\n", b";\rx\r\n", 1)),
    "a trailer that is none": chunked(CHUNKS[:-2] + b"no field\r\n\r\n"),
    "a length as trailer": chunked(CHUNKS[:-2] + b"Content-Length: 3\r\n\r\n"),
    "a folded header": message(b"X: a\r\n b", LENGTH, body=BODY),
    "a length twice": message(LENGTH, LENGTH, body=BODY),
    "two lengths": message(LENGTH, b"Content-Length: 3", body=BODY),
    "a list of lengths": sized(b"%d,%d" % (len(BODY), len(BODY))),
    "a signed length": sized(b"+%d" % len(BODY)),
    "a negative length": sized(b"-1"),
    "a hexadecimal length": sized(b"0x10"),
    "a space in a length": sized(b"1 0"),
    "no length": sized(b""),
    "a fraction": sized(b"10.0"),
    "a length beyond 64 bits": sized(b"9" * 30),
    "length and chunks": message(LENGTH, CHUNKED, body=CHUNKS),
    "chunks and length": message(CHUNKED, LENGTH, body=CHUNKS),
    "length and chunks and h2c": message(LENGTH, *H2C, CHUNKED, body=CHUNKS),
    "chunked is not the last": coded(b"chunked, gzip"),
    "gzip": coded(b"gzip"),
    "gzip and h2c": message(*H2C, b"Transfer-Encoding: gzip", body=CHUNKS),
    "gzip and chunked": coded(b"gzip, chunked"),
    "chunked twice": coded(b"chunked, chunked"),
    "chunked in two headers": coded(b"chunked", b"chunked"),
    "identity": coded(b"identity"),
    "chunked and identity": coded(b"chunked", b"identity"),
    "nearly chunked": coded(b"xchunked"),
    "a vertical tab": coded(b"\x0bchunked"),
    "an empty coding": coded(b""),
    "an empty member": coded(b",chunked"),
    "quotes": coded(b'"chunked"'),
    "chunks in 1.0": message(CHUNKED, version=b"1.0", body=CHUNKS),
    "line feeds": get().replace(b"\r\n", b"\n"),
    "a line feed": get(b"X: a\nY: b"),
    "a carriage return": get(b"X: a\rY: b"),
    "a null": get(b"X: a\0b"),
    "a null in a name": get(b"X\0: a"),
    "a control character": get(b"X: a\x01"),
    "a space before a colon": message(b"Content-Length : 10", body=BODY),
    "no colon": get(b"X"),
    "no name": get(b": x"),
    "a space before a header": b"GET /health/live HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n",
    "no host": get(host=None),
    "no host but h2c": get(*H2C, host=None),
    "two hosts": get(b"Host: y"),
    "the same host twice": get(b"Host: x"),
    "a space in host": get(host=b"Host: a b"),
    "a path in host": get(host=b"Host: a/b"),
    "a user in host": get(host=b"Host: a@b"),
    "no number as port": get(host=b"Host: a:b"),
    "authority": get(line=b"GET x:80"),
    "no slash": get(line=b"GET health/live"),
    "no method": get(line=b"FOO /health/live"),
    "small letters": get(line=b"get /health/live"),
    "a control character in the path": get(line=b"GET /\x01"),
    "a letter beyond ascii in the path": get(line=b"GET /\xe4"),
    "1.2": get(version=b"1.2"),
    "2.0": get(version=b"2.0"),
    "2": get(version=b"2"),
    "0.9": get(version=b"0.9"),
    "no version": b"GET /health/live\r\n\r\n",
    "the preface of http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls instead": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_ambiguous_is_a_400_and_nothing_after_it_is_executed(served, name):
    closes(served, BROKEN[name], 400)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (message(LENGTH, b"Connection: close", body=BODY), 200),
        (message(*H2C, LENGTH, b"Connection: close", body=BODY), 200),
        (message(LENGTH, version=b"1.0", host=None, body=BODY), 200),
        (get(b"Connection: close", line=b"HEAD /models"), 200),
        (get(line=b"HEAD /models", version=b"1.0"), 200),
        (get(line=b"CONNECT x:80"), 405),
        (get(line=b"CONNECT /score"), 405),
        (get(b"Content-Length: 40", *H2C, line=b"CONNECT x:80"), 405),
        (get(b"X: " + b"y" * 70_000), 431),
        (chunked(CHUNKS.replace(b"\r\n", b";" + b"y" * 1_000_000 + b"\r\n", 1)), 431),
        (chunked(b"0" * 1_000_000 + CHUNKS), 431),
        (chunked(CHUNKS[:-2] + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"), 431),
    ],
)
def test_a_last_request(served, content, status):
    async def run():
        async with listening(served) as connected:
            for parts in packets(content)[:2]:
                async with connected() as client:
                    await client.send(*parts)
                    (answer,) = await client.answers(content.startswith(b"HEAD"))
                    assert (answer.status, answer.headers["connection"]) == (status, "close")
                    assert "GET /models" not in client.executed

    asyncio.run(run())


def test_a_chunked_body_may_be_split_anywhere(served):
    body = b"".join(b"%x;a\r\n%b\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:]))
    content = chunked(body + b"0\r\nX: y\r\n\r\n", *H2C)
    start = content.find(b"\r\n\r\n")

    async def run():
        async with listening(served) as connected:
            for split in range(start, len(content)):
                async with connected() as client:
                    client.writer.write(content[:split])
                    await asyncio.sleep(0.001)
                    client.writer.write(content[split:] + FOLLOWING)
                    assert [answer.status for answer in await client.answers()] == [200, 200]

    asyncio.run(run())


@pytest.mark.parametrize("content", [chunked(b"zz\r\n"), b"nonsense\r\n\r\n", get(host=None)])
def test_a_refusal_is_counted_once(served, content):
    async def run():
        async with listening(served) as connected:
            async with connected() as client:
                await client.send(content)
                assert [answer.status for answer in await client.answers()] == [400]
            async with connected() as client:
                await client.send(get(line=b"GET /metrics"))
                text = (await client.answer()).body
            assert b'rejected_requests_total{reason="malformed"} 1.0' in text

    asyncio.run(run())


def test_requests_before_a_broken_one_are_answered(served):
    """As if they had come alone; the broken one is answered last."""
    score = message(LENGTH, body=BODY)
    for broken in (b"nonsense\r\n\r\n", chunked(b"zz\r\n"), message(*H2C, b"Content-Length: x")):

        async def run(broken=broken):
            async with listening(served) as connected, connected() as client:
                await client.send(score + get() + broken + FOLLOWING)
                answers = await client.answers()
                assert [answer.status for answer in answers] == [200, 200, 400]
                assert "GET /models" not in client.executed

        asyncio.run(run())


def test_pipelined_requests_are_answered_in_order(served):
    content = message(*H2C, LENGTH, body=BODY)

    async def run():
        async with listening(served) as connected, connected() as client:
            await client.send(content * 20 + get(line=b"HEAD /health/live") + FOLLOWING)
            for _ in range(20):
                assert b"results" in (await client.answer()).body
            assert [answer.status for answer in await client.answers(head=True)] == [200, 200]

    asyncio.run(run())


GETS = [
    "/health/live", "/health/ready", "/metrics", "/models", "/openapi.json", "/docs", "/ping",
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/fraud", "/v2/models/fraud/ready",
]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(served, path):
    async def run():
        async with listening(served) as connected, connected() as client:
            answers = []
            for method in ("GET", "HEAD", "GET"):
                await client.send(get(line=f"{method} {path}".encode()))
                answers.append(await client.answer(head=method == "HEAD"))
            first, head, _ = answers
            assert first.status == head.status == 200
            assert int(head.headers["content-length"]) > 0
            changing = {"date", "x-request-id", *(["content-length"] if "metrics" in path else [])}
            first, head = ({*a.headers.items()} for a in (first, head))
            assert {name for name, _ in first ^ head} <= changing

    asyncio.run(run())


def test_an_invitation_is_sent_only_if_the_body_is_wanted(served):
    head = message(LENGTH, b"Expect: 100-continue")
    nowhere = message(LENGTH, b"Expect: 100-continue", line=b"POST /nowhere")

    async def statuses(connected, *parts, old=False):
        async with connected() as client:
            await client.send(*parts)
            return [answer.status for answer in await client.answers()]

    async def run():
        async with listening(served) as connected:
            assert await statuses(connected, head, BODY + FOLLOWING) == [100, 200, 200]
            assert await statuses(connected, head + BODY + FOLLOWING) == [200, 200]
            assert await statuses(connected, nowhere, BODY + FOLLOWING) == [404]
            old = head.replace(b"1.1", b"1.0", 1)
            assert await statuses(connected, old, BODY + FOLLOWING) == [200]
            assert await statuses(connected, get(b"Expect: 100-continue") + FOLLOWING) == [200, 200]

    asyncio.run(run())


def test_a_refusal_arrives_although_the_client_keeps_sending(served):
    """Closing at once would reset the connection, and the answer would be lost."""

    async def run():
        async with listening(served) as connected, connected() as client:
            await client.send(chunked(b"zz\r\n") + b"x" * 100_000, *[b"x" * 100_000] * 3)
            assert (await client.answer()).status == 400
            assert await client.answer() is None

    asyncio.run(run())


# ---------------------------------------------------------------- other people's clients


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Score {
  public static void main(String[] arguments) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (int i = 0; i < 2; i++) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/score"))
          .header("content-type", "application/json")
          .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
      HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
      System.out.println(response.statusCode() + " " + response.body());
    }
  }
}
"""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("java"), reason="needs java (Debian: apt-get install default-jdk-headless)"
)
def test_the_http_client_of_java_scores(tmp_path, folder):
    """It asks for an upgrade to h2c unless told otherwise."""
    source = tmp_path / "Score.java"
    source.write_text(JAVA)
    with running(tmp_path, [str(folder)]) as service:
        scored = outputs(["java", str(source), service.url, BODY.decode()]).splitlines()
        assert (
            'scored_records_total{model="fraud",version=""} 2.0' in service.ask("/metrics").decode()
        )
    assert [line[:14] for line in scored] == ['200 {"model":{', '200 {"model":{']


@pytest.mark.e2e
@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_scores(tmp_path, folder):
    with running(tmp_path, [str(folder)]) as service:
        address = f"{service.url}/score"
        sent = ["--data", BODY.decode(), "--header", "Content-Type: application/json"]
        for options in (["--http2"], ["-H", "Expect: 100-continue"], ["--http1.0"]):
            scored = outputs(["curl", "--silent", "--fail", *options, *sent, address, address])
            probed = outputs(["curl", "--silent", "--head", *options, f"{service.url}/health/live"])
            assert scored.count('"score"') == 2, options
            assert probed.startswith("HTTP/1.1 200 "), options


def outputs(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout
