"""The page that shows the OpenAPI document, in a browser."""

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

from serving.paths import DOCS_ROUTES
from serving.routes import docs
from serving.settings import ApiKey
from tests.support.service_process import running


def test_only_what_the_page_needs_is_served(client_of, served):
    """To anybody, as the page asks for the key."""
    client = client_of(served, api_keys=(ApiKey("a", frozenset({"score"}), "0" * 64),))
    assert {route.path for route in docs.routes()} == DOCS_ROUTES
    linked = re.findall(r'(?:src|href)="(docs/[^"]*)"', client.get("/docs").text)
    assert {"/docs", *(f"/{path}" for path in linked)} == DOCS_ROUTES
    for path in DOCS_ROUTES:
        response = client.get(path)
        assert response.status_code == client.head(path).status_code == 200
        assert response.headers["content-type"].startswith(
            ("text/html", "text/javascript", "text/css")
        )
        assert "default-src 'none'" in response.headers["content-security-policy"]
    for path in ("swagger-ui.js", "%2e%2e/docs.py", "..%2fdocs.py", "index.html", ""):
        assert client.get(f"/docs/{path}").status_code == 401
        assert client_of(served).get(f"/docs/{path}").status_code == 404


def test_the_page_names_no_other_server():
    assert "//" not in docs.PAGE + docs.SCRIPT + docs.POLICY


def test_without_its_files_it_says_what_to_install(client, monkeypatch):
    monkeypatch.setattr(docs, "PACKAGE", "nowhere_to_be_found")
    docs._assets_folder.cache_clear()
    response = client.get("/docs/swagger-ui.css")
    docs._assets_folder.cache_clear()
    assert response.status_code == 404
    assert "pip install" in response.json()["detail"]


SCORE = """
const wait = async find => {
  for (let i = 0; i < 300; i++) {
    const found = find();
    if (found) return found;
    await new Promise(done => setTimeout(done, 50));
  }
  throw new Error("not there: " + find);
};
const click = async selector => (await wait(() => document.querySelector(selector))).click();
(async () => {
  await click("#operations-default-score .opblock-summary-control");
  await click("#operations-default-score .try-out__btn");
  await click("#operations-default-score .execute");
  const answer = await wait(() => document.querySelector(".live-responses-table .response"));
  return answer.innerText;
})()
"""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_scores_the_example_and_asks_no_other_server(tmp_path, folder):
    with running(tmp_path, [str(folder)]) as service, browser(tmp_path) as call:
        for domain in ("Page", "Runtime", "Log", "Network"):
            call(f"{domain}.enable")
        call("Page.navigate", url=f"{service.url}/docs")
        done = call("Runtime.evaluate", expression=SCORE, awaitPromise=True)
        shown = done["result"]["value"]
        events = call.events
    assert shown.startswith("200"), done
    assert '"is_anomaly"' in shown
    asked = [one["params"]["request"]["url"] for one in events if one["method"] == REQUEST]
    assert f"{service.url}/score" in asked
    assert all(url.startswith((service.url, "data:")) for url in asked)
    said = [one["params"] for one in events if one["method"] in PROBLEMS]
    assert not [one for one in said if "rror" in json.dumps(one) or "olicy" in json.dumps(one)]


REQUEST = "Network.requestWillBeSent"
PROBLEMS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}


class Page:
    """A page of the browser, driven by the DevTools protocol over a pipe."""

    def __init__(self, write, read):
        self.write, self.read, self.numbers = write, read, itertools.count(1)
        self.events, self.buffer, self.session = [], b"", None

    def __call__(self, method, **parameters):
        """Call a method; returns its result, and keeps the events that come before it."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.next_message()).get("id") != number:
            self.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def next_message(self):
        while b"\0" not in self.buffer:
            received = os.read(self.read, 1 << 20)
            assert received, "the browser ended"
            self.buffer += received
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(tmp_path):
    """Start chromium without a window; yields its page."""
    (to_read, write), (read, to_write) = os.pipe(), os.pipe()
    command = (
        "exec chromium --headless --no-sandbox --disable-gpu --disable-background-networking "
        f"--remote-debugging-pipe --user-data-dir={tmp_path}/profile about:blank "
        f"3<&{to_read} 4>&{to_write} 2>{tmp_path}/chromium.log"
    )
    process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_read, to_write))
    os.close(to_read)
    os.close(to_write)
    try:
        page = Page(write, read)
        targets = page("Target.getTargets")["targetInfos"]
        while not [one for one in targets if one["type"] == "page"]:
            time.sleep(0.1)
            targets = page("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        page.session = page("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(write)
        os.close(read)
