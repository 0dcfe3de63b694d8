"""Drive chromium without a window, by its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
"""Mark of the tests that need the browser."""
REQUEST = "Network.requestWillBeSent"
"""Event of a request that a page makes."""
PROBLEMS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
"""Events about which a page complains."""
DOMAINS = ("Page", "Runtime", "Log", "Network")
SECONDS = 20.0
"""Maximum time to wait for a page, in seconds."""
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
"""Codes of the keys that write no letter."""


class Page:
    """A page of the browser; `events` are those that came before the answers to calls."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self.session = browser, session
        self.events: list[dict[str, Any]] = []
        for domain in DOMAINS:
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> Any:
        """Call a method and return its result."""
        return self._browser.call(method, self, **parameters)

    def run(self, script: str) -> Any:
        """Return the value of an expression, which may be a promise."""
        done = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true, on whichever page."""
        deadline = time.monotonic() + SECONDS
        while True:
            ready = f"document.readyState === 'complete' && Boolean({condition})"
            done = self("Runtime.evaluate", expression=ready, returnByValue=True)
            if done["result"].get("value"):
                return
            assert time.monotonic() < deadline, (condition, self.text()[:2000])
            time.sleep(0.01)

    def open(self, address: str) -> None:
        """Open a page and wait until it is loaded."""
        self.run("window.isOld = true")
        self("Page.navigate", url=address)
        self.wait("!window.isOld")

    def press(self, *keys: str) -> None:
        """Press and release keys."""
        for key in keys:
            text = {"Enter": "\r"}.get(key, "" if key in KEYS else key)
            code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
            shared = {"key": key, "windowsVirtualKeyCode": code}
            self("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
            self("Input.dispatchKeyEvent", type="keyUp", **shared)

    def write(self, text: str) -> None:
        """Write into the field that has the focus."""
        self("Input.insertText", text=text)

    def text(self) -> str:
        """Return the text that is shown."""
        return str(self.run("document.body.innerText"))

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Set the size of the window, in pixels of the page."""
        self(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip

    def use_scheme(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark`` pages."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is shown, or the whole page, to a PNG file."""
        done = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(done["data"]))

    def problems(self) -> list[dict[str, Any]]:
        """Return the errors that pages complained about, without failed requests."""
        said = [one["params"] for one in self.events if one["method"] in PROBLEMS]
        return [one for one in said if one.get("entry", {}).get("source") != "network"]

    def requested(self) -> list[str]:
        """Return the addresses of all requests."""
        return [one["params"]["request"]["url"] for one in self.events if one["method"] == REQUEST]


class Browser:
    """A browser, and the pipe by which it is driven."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._numbers = write, read, itertools.count(1)
        self._buffer = b""
        self._pages: dict[str, Page] = {}

    def call(self, method: str, page: Page | None = None, **parameters: Any) -> Any:
        """Call a method; keep the events that come before its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": page.session} if page else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next_message()).get("id") != number:
            if owner := self._pages.get(answer.get("sessionId", ""), page):
                owner.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            received = os.read(self._read, 1 << 20)
            assert received, "the browser ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def page(self) -> Page:
        """Open a page with cookies of its own, as another person's browser would."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", flatten=True, **target)["sessionId"]
        page = self._pages[attached] = Page(self, attached)
        return page


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start chromium without a window; yields its page."""
    with started_browser(folder) as started:
        yield started.page()


@contextmanager
def started_browser(folder: Path) -> Iterator[Browser]:
    """Start chromium without a window."""
    (to_read, write), (read, to_write) = os.pipe(), os.pipe()
    command = (
        "exec chromium --headless --no-sandbox --disable-gpu --disable-background-networking "
        f"--remote-debugging-pipe --user-data-dir={folder}/profile about:blank "
        f"3<&{to_read} 4>&{to_write} 2>{folder}/chromium.log"
    )
    process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_read, to_write))
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(write, read)
    finally:
        process.kill()
        process.wait()
        os.close(write)
        os.close(read)
