"""Review cases in the console as a browser without scripts does."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

TOKEN = re.compile(r'name="form_token" value="(\w+)"')


class Reviewer:
    """A browser of one reviewer.

    Args:
        port: port of the service on this machine.
        pause: time between two pages, in seconds.
        pages: number of pages opened so far, of all reviewers.
    """

    def __init__(self, port: int, pause: float, pages: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._pause, self._pages, self._cookie = pause, pages, ""

    def ask(self, path: str, form: dict[str, str] | None = None) -> str:
        """Open a page, or send a form, and return the answer."""
        headers, body = {"Cookie": self._cookie, "Host": "localhost"}, None
        if form:
            body = urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self._connection.request("POST" if form else "GET", path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if sent := answer.headers.get("Set-Cookie"):
            self._cookie = sent.partition(";")[0]
        assert answer.status < 400, text
        with self._pages.get_lock():
            self._pages.value += 1
        time.sleep(self._pause)
        return text


def review(port: int, pause: float, pages: Any, cases: Sequence[int]) -> None:
    """Open the queue, then a case, and give a verdict on it, for each of these cases in turn."""
    reviewer = Reviewer(port, pause, pages)
    for number in cases:
        case = f"/console/cases/{number + 1}"
        token = TOKEN.search(reviewer.ask("/console") + reviewer.ask(case))
        assert token, "each page has forms"
        form = {"form_token": token[1], "verdict": "unsure", "seen": "0", "query": ""}
        reviewer.ask(f"{case}/verdict", form)
