"""What surrounds every request: a client that sends everything first hears a refusal."""

import asyncio

import pytest

from serving.middleware import Linger

ANSWER = [
    {"type": "http.response.start", "status": 413, "headers": []},
    {"type": "http.response.body", "body": b"no"},
]
END = {"type": "http.response.body", "body": b""}
SENDS = ((b"content-length", b"99"),)


class Client:
    """Sends parts of a body and takes an answer; knows in which order."""

    def __init__(self, parts, then=None):
        self.parts, self.then = list(parts), then
        self.events = []

    async def receive(self):
        if not self.parts and self.then:
            return self.then
        if not self.parts:
            await asyncio.sleep(60)
        part = self.parts.pop(0)
        self.events.append(part)
        return {"type": "http.request", "body": part, "more_body": part != b"last"}

    async def send(self, message):
        self.events.append("end" if not message.get("more_body") and "body" in message else "go on")


def exchange(client, reads=0, headers=SENDS, most=1000, seconds=5.0, kind="http"):
    """Have an application read so many parts and answer; returns what happened in which order."""

    async def app(scope, receive, send):
        for _ in range(reads):
            await receive()
        for message in ANSWER:
            await send(message)

    linger = Linger(app, most, seconds)
    asyncio.run(linger({"type": kind, "headers": list(headers)}, client.receive, client.send))
    return client.events


def test_the_rest_of_a_body_is_read_before_the_answer_ends():
    events = exchange(Client([b"one", b"two", b"last"]), reads=1)
    assert events == [b"one", "go on", "go on", b"two", b"last", "end"]


def test_an_answer_to_a_whole_body_is_passed_on_as_it_is():
    assert exchange(Client([b"one", b"last"]), reads=2) == [b"one", b"last", "go on", "end"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"content-length", b"0"),),
        ((b"content-length", b"99"), (b"expect", b"100-continue")),
    ],
)
def test_nothing_is_awaited_of_a_client_that_sends_nothing(headers):
    assert exchange(Client([b"never"]), headers=headers) == ["go on", "end"]


def test_a_client_that_was_told_to_go_on_is_heard_out():
    headers = (*SENDS, (b"expect", b"100-continue"))
    events = exchange(Client([b"one", b"last"]), reads=1, headers=headers)
    assert events == [b"one", "go on", "go on", b"last", "end"]


def test_chunks_are_heard_out_too():
    events = exchange(Client([b"one", b"last"]), headers=((b"transfer-encoding", b"chunked"),))
    assert events == ["go on", "go on", b"one", b"last", "end"]


def test_only_so_much_is_read():
    events = exchange(Client([b"x" * 10] * 100), most=35)
    assert events == ["go on", "go on", *[b"x" * 10] * 4, "end"]


def test_only_so_long():
    assert exchange(Client([b"one"]), seconds=0.05) == ["go on", "go on", b"one", "end"]


def test_a_client_that_goes_away_is_let_go():
    client = Client([b"one"], then={"type": "http.disconnect"})
    assert exchange(client) == ["go on", "go on", b"one", "end"]


def test_an_application_that_fails_fails():
    async def app(scope, receive, send):
        raise RuntimeError("broken")

    client = Client([b"one"])
    linger = Linger(app, 10, 1.0)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(linger({"type": "http", "headers": SENDS}, client.receive, client.send))
    assert client.events == []


def test_what_is_not_http_is_passed_on():
    assert exchange(Client([b"one"]), kind="lifespan") == ["go on", "end"]
