"""Requests to other servers, against a real one."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest

from serving.http.outbound import send
from tests.support.ports import free_port


class Echo(BaseHTTPRequestHandler):
    """Answers with what was asked for, and redirects to itself from /away."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(f"{self.path} {self.headers['X-Note']} ".encode() + body)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture(scope="module")
def server():
    running = HTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def post(address, **more):
    return send(urlsplit(address), "POST", b"body", {"X-Note": "hi"}, 5, **more)


def test_path_and_query_are_asked_for_and_the_beginning_of_the_answer_is_read(server):
    assert post(f"{server}/in?x=1", max_bytes=100) == (200, b"/in?x=1 hi body")
    assert post(server, max_bytes=4) == (200, b"/ hi")
    assert post(server) == (200, b"")


def test_redirects_are_not_followed(server):
    assert post(f"{server}/away", max_bytes=100) == (302, b"/away hi body")


def test_a_server_that_is_not_there():
    with pytest.raises(OSError, match="refused"):
        post(f"http://127.0.0.1:{free_port()}/")


def test_a_server_that_does_not_speak_tls(server):
    with pytest.raises(OSError, match=r"(?i)ssl"):
        post(server.replace("http:", "https:"))
