"""Send requests and check error responses."""

import asyncio
import json

import pytest

from serving.problems import ProblemError

JSON = {"Content-Type": "application/json"}
HEADERS = ((b"content-type", b"application/json"),)


def post(client, body, headers=JSON):
    """Send ``body`` to `/score`: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/score", content=content, headers=headers)


def score(client, records, **more):
    """Return the answer of `/score` to these records, after checking that they were scored."""
    response = client.post("/score", json={"records": records, **more})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(call, *args):
    """Return the problem that a call raises."""
    with pytest.raises(ProblemError) as caught:
        call(*args)
    return caught.value


def refused(response, status, slug):
    """Check the status and format of a problem response (RFC 9457), and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:anomaly-vae:{slug}"
    assert problem["title"]
    assert problem["detail"]
    return problem


async def asgi_post(app, receive, path="/score", headers=HEADERS):
    """Send a POST request whose body comes from ``receive``; return status, headers and body."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": list(headers), "scheme": "http", "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


async def nobody():
    """Act as a client that sends no body for a minute."""
    await asyncio.sleep(60)
