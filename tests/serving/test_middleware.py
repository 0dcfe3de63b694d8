"""The middleware: request ids, headers, and early responses that reach the client."""

import asyncio
import logging
import re

import pytest

from serving.middleware import RequestChannel

ANSWER = [
    {"type": "http.response.start", "status": 413, "headers": []},
    {"type": "http.response.body", "body": b"no"},
]
SENDS = ((b"content-length", b"99"),)


class Client:
    """Sends parts of a body and receives a response; records the order of events."""

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


async def run(app, client, headers=SENDS, most=1000, seconds=5.0):
    channel = RequestChannel(dict(headers), client.receive, client.send)
    await app({"type": "http"}, channel.receive, channel.send)
    if channel.end_is_held:
        await channel.drain_and_end(most, seconds)


def exchange(client, reads=0, **options):
    """Let an application read some parts and answer; return the events in order."""

    async def app(scope, receive, send):
        for _ in range(reads):
            await receive()
        for message in ANSWER:
            await send(dict(message))

    asyncio.run(run(app, client, **options))
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


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/score"), ("GET", "/health/live"), ("GET", "/nowhere")]
)
def test_every_answer_has_an_id(client, method, path):
    answers = [client.request(method, path, json={"records": [{"TX_AMOUNT": 1}]}) for _ in range(2)]
    for answer in answers:
        assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", answer.headers["x-request-id"])
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2
    assert not [name for name in answers[0].headers if name.startswith("access-control")]


def test_an_id_that_is_sent_comes_back_and_is_logged(client, caplog):
    with caplog.at_level(logging.INFO, logger="serving.access"):
        answer = client.post(
            "/score", json={"records": [{"TX_AMOUNT": 1}]}, headers={"X-Request-ID": "a-1.b_2"}
        )
    assert answer.headers["x-request-id"] == "a-1.b_2"
    (line,) = [record.facts for record in caplog.records if record.name == "serving.access"]
    assert line["request_id"] == "a-1.b_2"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "a\x7f", "é"])
def test_an_id_that_is_not_sound_is_replaced(client, given):
    answer = client.get("/health/live", headers={b"X-Request-ID": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"records": [{"TX_AMOUNT": 1}]}),
        ("/invocations", {"dataframe_records": [{"TX_AMOUNT": 1}]}),
    ],
)
def test_the_log_has_a_failure_once_and_by_its_id(client, monkeypatch, caplog, path, body):
    for step in ("detect_encoded", "decide_alone"):
        monkeypatch.setattr(f"anomaly_vae.scoring.detector.Detector.{step}", lambda *_: 1 / 0)
    answer = client.post(path, json=body)
    assert answer.status_code == 500
    (line,) = [record for record in caplog.records if record.exc_info]
    assert line.exc_info[0] is ZeroDivisionError
    assert line.facts == {"request_id": answer.headers["x-request-id"]}
    assert client.post(path, json=[]).status_code in {400, 422}, "it goes on"
