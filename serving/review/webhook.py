"""Tell another service of new cases, apart from scoring.

The headers and the signature are those of Standard Webhooks (https://www.standardwebhooks.com), so
that a receiver can check them with a library. A redirect is not followed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import logging
import time
from collections import deque
from threading import Condition, Thread
from urllib.parse import urlsplit

import msgspec

from anomaly_vae.review.cases import CaseRecord
from serving.http.outbound import send
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.settings import Settings

log = logging.getLogger("serving.review.webhook")

MAX_WAITING = 1_000
"""Maximum number of webhooks that wait; further ones are dropped and counted."""
PAUSES = (1.0, 4.0, 15.0)
"""Times between attempts, in seconds."""
TIMEOUT = 10.0
"""Maximum time to connect, and to wait for an answer, in seconds."""
CLOSING_SECONDS = 2.0
"""Maximum time to wait for the thread on shutdown, in seconds."""
LATER = frozenset({408, 425, 429, *range(500, 600)})
"""Statuses after which a webhook is sent again."""
EVENT = "case.created"


def event_of(record: CaseRecord, now: float) -> bytes:
    """Return the body about a case."""
    case = record.case
    data = {
        "number": record.number, "model": case.model, "version": case.version, "id": case.row_id,
        "at": _iso(case.at), "score": case.score, "p_value": case.p_value, "alpha": case.alpha,
        "threshold": case.threshold, "unit": case.unit, "entity_column": case.entity_column,
        "entity": case.entity, "amount_column": case.amount_column, "amount": case.amount,
        "reasons": [reason.text for reason in case.reasons],
    }  # fmt: skip
    return msgspec.json.encode({"type": EVENT, "timestamp": _iso(now), "data": data})


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def sign(secret: bytes, identifier: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a body.

    >>> sign(b"secret", "case_1", 0, b"{}")
    'v1,ZWUalukyV2zH9WNgIWjNvOMVWlQIpU6APiFuHUPWtgU='
    """
    signed = b".".join([identifier.encode(), str(timestamp).encode(), body])
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


class Webhook:
    """The webhooks that wait, and the thread that sends them."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._url = urlsplit(settings.webhook)
        self._secret = (settings.webhook_secret or "").encode()
        self._outcomes = metrics.webhooks
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._changed, self._closed = Condition(), False
        self._thread: Thread | None = None

    def announce(self, record: CaseRecord) -> None:
        """Queue a webhook about a case."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._outcomes["dropped"].inc()
                return
            self._waiting.append((f"case_{record.case.key}", event_of(record, time.time())))
            self._changed.notify()
            if self._thread is None:
                self._thread = Thread(target=self._run, name="webhook", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Drop the waiting webhooks and stop the thread."""
        with self._changed:
            self._closed = True
            self._outcomes["dropped"].inc(len(self._waiting))
            self._waiting.clear()
            self._changed.notify()
        if self._thread:
            self._thread.join(CLOSING_SECONDS)

    def _run(self) -> None:
        while task := self._next():
            delivered = self._deliver(*task)
            self._outcomes["delivered" if delivered else "failed"].inc()

    def _next(self) -> tuple[str, bytes] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None

    def _deliver(self, identifier: str, body: bytes) -> bool:
        """Send a webhook until the receiver accepts it, a few times at most."""
        for pause in (*PAUSES, None):
            reason, again = self._send(identifier, body)
            if not reason:
                return True
            if not again or pause is None or self._wait(pause):
                break
        fields = {logs.LOG_FIELDS: {"host": self._url.hostname, "reason": reason}}
        log.warning("a webhook about a case failed", extra=fields)
        return False

    def _wait(self, seconds: float) -> bool:
        """Wait; return whether the service ends."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def _send(self, identifier: str, body: bytes) -> tuple[str, bool]:
        """Send a webhook; return why it failed (empty if not), and whether to send it again."""
        now = int(time.time())
        headers = {
            "Content-Type": "application/json", "webhook-id": identifier,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._secret, identifier, now, body),
        }  # fmt: skip
        try:
            status, _ = send(self._url, "POST", body, headers, TIMEOUT)
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}", True
        return ("", False) if 200 <= status < 300 else (f"status {status}", status in LATER)
