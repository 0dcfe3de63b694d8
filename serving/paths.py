"""Name the routes and say what each needs."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope

from serving.problems import NOT_FOUND, ProblemError

HEADERS = "anomaly_vae.headers"
"""Where a scope keeps its headers as a mapping."""


PROBES = frozenset(
    {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/ping"}
)


OPEN = PROBES | {"/openapi.json", "/docs", "/-/webhook"}
"""What needs no key; webhooks are signed."""


ADMINISTRATIVE = ("/metrics", "/docs", "/openapi.json", "/-/")
"""What moves to the administrative port where there is one."""


QUIET = (*PROBES, "/metrics")
"""Routes that are logged only when they fail or at level debug."""

SCORING = ("/score", "/models/{name}/score")


def template_of(scope: Scope) -> str:
    """The template of the route that matched, never a path that a client made up."""
    if "route" in scope:
        return str(scope["route"].path)
    return scope["path"] if scope["path"] in OPEN else "unmatched"


def check_port(scope: Scope, admin_port: int) -> None:
    """Refuse what the other port has; health is on both."""
    path, here = scope["path"], scope["server"][1] == admin_port
    if path not in PROBES and path.startswith(ADMINISTRATIVE) != here:
        raise ProblemError(NOT_FOUND, f"{NOT_FOUND.title}; it may be on the other port")


def scope_of(path: str) -> str:
    """The scope that a path needs."""
    if path.startswith("/-/"):
        return "admin"
    return "metrics" if path == "/metrics" else "score"


class Template(Route):
    """A route that leaves its template behind, as FastAPI's own do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route is meant."""
        match, found = super().matches(scope)
        return match, {**found, "route": self} if found else found
