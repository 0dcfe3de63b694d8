"""Say how to switch the console on, without loading any of its pages."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serving.paths import CONSOLE, Template
from serving.problems import NO_CASE_STORE, ProblemError


def hint_routes() -> list[Template]:
    """Create routes that say how to switch the console on."""

    async def refuse(_: Request) -> Response:
        detail = "the console is off, as there is no case store; set ANOMALY_VAE_CASES to one"
        raise ProblemError(NO_CASE_STORE, detail)

    return [Template(CONSOLE, refuse), Template(f"{CONSOLE}/{{path:path}}", refuse)]
