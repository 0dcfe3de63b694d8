"""Webhooks about cases: signed, sent again a few times, and never followed elsewhere."""

import base64
import hashlib
import hmac
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import ValidationError

from anomaly_vae.review import Case, CaseReason, CaseRecord
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.review import webhook
from serving.review.webhook import Webhook
from serving.settings import Settings
from tests.support.ports import free_port

SECRET = "0123456789abcdef"


def record(row=12):
    reason = CaseReason("amount", 6.0, 950.0, 28.1, "amount 950, usually 5 to 80")
    case = Case.of(
        model="fraud", row=row, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01, at=1.7e9,
        entity_column="card", entity=7, reasons=[reason],
    )  # fmt: skip
    return CaseRecord(row, case, None)


@contextmanager
def receiver(*statuses):
    """Run a receiver that answers with these statuses, and then with 204; yield its requests."""
    seen, answers = [], iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, dict(self.headers), body))
            self.send_response(next(answers, 204))
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook?team=1", seen
        finally:
            server.shutdown()
            thread.join(10)


@contextmanager
def sender(url):
    """Yield a webhook, and a function that returns the counts once they add up to a number."""
    settings = Settings(webhook=url, webhook_secret=SECRET, cases="sqlite:///cases.db")
    metrics = Metrics(Store())
    hook = Webhook(settings, metrics)

    def counts(total):
        deadline = time.monotonic() + 10
        while True:
            found = {name: int(c._value.get()) for name, c in metrics.webhooks.items()}
            if sum(found.values()) >= total:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    yield hook, counts
    hook.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Make attempts follow each other sooner."""
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))


def test_a_case_is_announced_with_a_signature():
    with receiver() as (url, seen), sender(url) as (hook, counts):
        hook.announce(record())
        assert counts(1) == {"delivered": 1, "failed": 0, "dropped": 0}
    ((path, headers, body),) = seen
    assert path == "/hook?team=1"
    content = json.loads(body)
    assert content["type"] == "case.created"
    data = content["data"]
    assert (data["number"], data["id"], data["entity"]) == (12, "12", "7")
    assert (data["at"], data["reasons"]) == (
        "2023-11-14T22:13:20Z",
        ["amount 950, usually 5 to 80"],
    )
    headers = {name.lower(): value for name, value in headers.items()}
    identifier, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
    assert abs(int(timestamp) - time.time()) < 60
    signed = f"{identifier}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.digest(SECRET.encode(), signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


@pytest.mark.parametrize(
    ("statuses", "attempts", "outcome"),
    [((503, 429), 3, "delivered"), ((500, 500, 500), 3, "failed"), ((400,), 1, "failed"),
     ((302,), 1, "failed"), ((308,), 1, "failed")],
)  # fmt: skip
def test_an_answer_decides_whether_it_is_sent_again(statuses, attempts, outcome):
    with receiver(*statuses) as (url, seen), sender(url) as (hook, counts):
        hook.announce(record())
        assert counts(1)[outcome] == 1
        assert len(seen) == attempts
        assert {path for path, *_ in seen} == {"/hook?team=1"}
        assert len({headers["webhook-id"] for _, headers, _ in seen}) == 1


def test_a_receiver_that_is_away_fails_and_too_many_are_dropped(monkeypatch):
    monkeypatch.setattr(webhook, "MAX_WAITING", 1)
    with sender(f"http://127.0.0.1:{free_port()}") as (hook, counts):
        for row in range(5):
            hook.announce(record(row))
        found = counts(5)
        assert found["delivered"] == 0
        assert found["dropped"] >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"webhook": "http://example.com/hook"}, "expected an https address"),
        ({"webhook": "ftp://127.0.0.1/hook"}, "expected an https address"),
        ({"webhook": "https:///hook"}, "expected an https address"),
        ({"webhook_secret": None}, "ANOMALY_VAE_WEBHOOK_SECRET"),
        ({"cases": ""}, "ANOMALY_VAE_CASES"),
    ],
)
def test_an_unsafe_or_incomplete_webhook_is_refused(changes, message):
    good = {"webhook": "https://example.com/hook", "webhook_secret": SECRET, "cases": "sqlite:///c"}
    assert Settings(**good).webhook
    with pytest.raises(ValidationError, match=message):
        Settings(**{**good, **changes})
    assert Settings(**{**good, "webhook": "http://hook.local/x"}, webhook_insecure=True).webhook
