"""Spans received by a collector on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector(monkeypatch):
    """Run a collector that the environment names; yield a queue of what it receives."""
    received = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        place = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", place)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


def next_spans(received, count):
    """Return this many spans, and the bytes they arrived in."""
    spans, content = [], b""
    while len(spans) < count:
        path, body = received.get(timeout=20)
        assert path == "/v1/traces"
        content += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            assert names["service.name"] == "anomaly-vae"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    return spans, content


def said(span):
    values = {one.key: one.value for one in span.attributes}
    return {name: value.string_value or value.int_value for name, value in values.items()}


def test_a_request_is_a_span_of_the_trace_it_belongs_to(collector, client_of, served):
    client = client_of(served)
    body = {"records": [{"TX_CHANNEL": "mallory"}, {"TX_CHANNEL": None}]}
    client.post("/score?mallory", json=body, headers={"traceparent": PARENT, "x-mallory": "1"})
    (span,), content = next_spans(collector, 1)
    assert (span.name, span.kind) == ("POST /score", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert said(span) == {
        "http.request.method": "POST", "http.route": "/score", "http.response.status_code": 200,
        "anomaly_vae.model": "fraud", "anomaly_vae.records": 2,
    }  # fmt: skip
    assert b"mallory" not in content


def test_refusals_and_failures(collector, client_of, served, monkeypatch):
    client = client_of(served)
    client.get("/mallory")
    client.post("/v2/models/fraud/infer", json={})
    for step in ("decide", "decide_alone"):
        monkeypatch.setattr(f"anomaly_vae.scoring.detector.Detector.{step}", None)
    client.post("/score", json={"records": [{"TX_AMOUNT": 1}]})
    spans, content = next_spans(collector, 3)
    assert [(span.name, said(span)["http.response.status_code"]) for span in spans] == [
        ("GET unmatched", 404),
        ("POST /v2/models/{name}/infer", 422),
        ("POST /score", 500),
    ]
    codes = [span.status.code for span in spans]
    assert codes == [Status.STATUS_CODE_UNSET] * 2 + [Status.STATUS_CODE_ERROR]
    assert b"mallory" not in content


def test_probes_are_none(collector, client_of, served):
    client = client_of(served)
    for path in ("/health/live", "/health/ready", "/ping", "/metrics", "/models"):
        client.get(path)
    (span,), _ = next_spans(collector, 1)
    assert span.name == "GET /models"
