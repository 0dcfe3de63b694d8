"""A span for each request, sent to a collector by the OpenTelemetry protocol.

Where to is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and the rest);
without one of them nothing of this is loaded. A span says what the log says: method, route, status,
model, how many records; never a path that a client made up, a header, or a value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anomaly_vae import __version__
from serving.observability import logs
from serving.paths import QUIET, template_of

FACTS = {"model": "anomaly_vae.model", "records": "anomaly_vae.records"}
"""Facts of a request that its span tells, and as what."""


def provider() -> TracerProvider:
    """Spans on their way to the collector, some at a time, on a thread of their own."""
    name = os.environ.get("OTEL_SERVICE_NAME", "anomaly-vae")
    service = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    made = TracerProvider(resource=service)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


class Trace:
    """A span around each request, within the trace that the client says it belongs to."""

    def __init__(self, app: ASGIApp, spans: TracerProvider) -> None:
        self.app, self.spans = app, spans
        self.tracer = spans.get_tracer("anomaly-vae", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and look at its answer."""
        if scope["type"] != "http" or scope["path"].startswith(QUIET):
            await self.app(scope, receive, send)
            return
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        context = propagate.extract(_texts(scope))
        span = self.tracer.start_span(scope["method"], context, trace.SpanKind.SERVER)
        try:  # no message of an error enters a span, as it would by its own context manager
            await self.app(scope, receive, observed)
        finally:
            _describe(span, scope, status)
            span.end()


def _texts(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}


def _describe(span: trace.Span, scope: Scope, status: int) -> None:
    """What a span says of a request (semantic conventions for HTTP servers)."""
    route = template_of(scope)
    span.update_name(f"{scope['method']} {route}")
    said = {"http.request.method": scope["method"], "http.route": route}
    span.set_attributes({**said, "http.response.status_code": status})
    facts = scope.get(logs.FACTS, {})
    span.set_attributes({name: facts[fact] for fact, name in FACTS.items() if fact in facts})
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
