"""Send one span per request to an OpenTelemetry collector.

OpenTelemetry's own environment variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) name the
collector; this module is imported only if one of them is set. A span has the same fields as the
access log (method, route, status, model, number of records), and never a path, header or value that
a client sent.
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
from serving.paths import QUIET_ROUTES, route_template

SPAN_ATTRIBUTES = {"model": "anomaly_vae.model", "records": "anomaly_vae.records"}
"""Name of the span attribute for each field of the access log."""


def make_provider() -> TracerProvider:
    """Create a provider that sends spans in batches on its own thread."""
    name = os.environ.get("OTEL_SERVICE_NAME", "anomaly-vae")
    service = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=service)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class TracingMiddleware:
    """An ASGI application with a span around each request, part of the client's trace if any."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app, self.provider = app, provider
        self.tracer = provider.get_tracer("anomaly-vae", __version__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and record its status in a span."""
        if scope["type"] != "http" or scope["path"].startswith(QUIET_ROUTES):
            await self.app(scope, receive, send)
            return
        status = 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        context = propagate.extract(_decoded_headers(scope))
        span = self.tracer.start_span(scope["method"], context, trace.SpanKind.SERVER)
        try:  # not `with span`, which would record the message of an exception
            await self.app(scope, receive, send_and_record)
        finally:
            _describe(span, scope, status)
            span.end()


def _decoded_headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}


def _describe(span: trace.Span, scope: Scope, status: int) -> None:
    """Set the name and the attributes of a span (semantic conventions for HTTP servers)."""
    route = route_template(scope)
    span.update_name(f"{scope['method']} {route}")
    request = {"http.request.method": scope["method"], "http.route": route}
    span.set_attributes({**request, "http.response.status_code": status})
    fields = scope.get(logs.LOG_FIELDS, {})
    attributes = {name: fields[key] for key, name in SPAN_ATTRIBUTES.items() if key in fields}
    span.set_attributes(attributes)
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
