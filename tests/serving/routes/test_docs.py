"""The page that shows the OpenAPI document, in a browser."""

import json
import re

import pytest

from serving.paths import DOCS_ROUTES
from serving.routes import docs
from serving.settings import ApiKey
from tests.support.browser import PROBLEMS, REQUEST, browser, needs_chromium
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
@needs_chromium
def test_a_browser_scores_the_example_and_asks_no_other_server(tmp_path, folder):
    with running(tmp_path, [str(folder)]) as service, browser(tmp_path) as call:
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
