"""Classify routes by the API key, port and log level that they need."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope

from serving.problems import NOT_FOUND, ProblemError

HEADERS = "anomaly_vae.headers"
"""Key of an ASGI scope under which its headers are kept as a mapping."""
REQUESTS = "anomaly_vae.requests"
"""Key of an ASGI scope with the tasks of all requests in progress, from `LimitedProtocol`."""
PROBES = frozenset(
    {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/ping", "/health"}
)
"""Routes of health checks."""
DOCS_ROUTES = frozenset(
    {"/docs", "/docs/page.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
)
"""Routes of the page that shows the OpenAPI document, and of its files."""
PUBLIC_ROUTES = PROBES | DOCS_ROUTES | {"/openapi.json", "/-/webhook"}
"""Routes that need no key; webhooks are signed instead."""
ADMIN_PREFIXES = ("/metrics", "/docs", "/openapi.json", "/-/")
"""Prefixes of the routes that move to the administrative port if there is one."""
QUIET_ROUTES = (*PROBES, "/metrics")
"""Routes whose successful requests are logged only at level debug."""
UNMATCHED = "unmatched"
"""Template of all paths without a route."""
FEEDBACK = "/feedback"
"""Route of labels."""
CONSOLE = "/console"
"""Prefix of the pages for reviewers, which sign in by a session of their own."""
SCORING_ROUTES = ("/score", "/models/{name}/score")
"""Templates of the project's own scoring routes."""


def route_template(scope: Scope) -> str:
    """Return the template of the matched route, or `UNMATCHED` for a path of the client's."""
    if "route" in scope:
        return str(scope["route"].path)
    return scope["path"] if scope["path"] in PUBLIC_ROUTES else UNMATCHED


def check_port(scope: Scope, admin_port: int) -> None:
    """Reject a request for a route of the other port; both ports answer health checks."""
    path, is_admin_port = scope["path"], scope["server"][1] == admin_port
    if path not in PROBES and path.startswith(ADMIN_PREFIXES) != is_admin_port:
        raise ProblemError(NOT_FOUND, f"{NOT_FOUND.title}; it may be on the other port")


def required_scope(path: str) -> str:
    """Return the scope that a key needs for a path."""
    if path.startswith("/-/"):
        return "admin"
    return {"/metrics": "metrics", FEEDBACK: "feedback"}.get(path, "score")


def is_console(path: str) -> bool:
    """Return whether a path belongs to the pages for reviewers."""
    return path == CONSOLE or path.startswith(f"{CONSOLE}/")


class Template(Route):
    """A route that records itself in the ASGI scope."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether the route matches, and the additions to the scope."""
        match, additions = super().matches(scope)
        return match, {**additions, "route": self} if additions else additions
