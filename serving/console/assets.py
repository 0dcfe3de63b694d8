"""Serve the style sheet, the script and the icon of the console.

Their addresses contain a digest of their content, so that browsers may keep them for ever.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from serving.paths import CONSOLE, Template
from serving.problems import NOT_FOUND, ProblemError

MEDIA_TYPES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""Media types of the files, by name."""
FOREVER = "public, max-age=31536000, immutable"
"""Cache-Control of a file whose address changes with its content."""


@cache
def content(name: str) -> bytes:
    """Return the content of a file."""
    return files("serving.console").joinpath("static", name).read_bytes()


@cache
def address(name: str) -> str:
    """Return the path of a file, which contains the digest of its content."""
    return f"{CONSOLE}/static/{sha256(content(name)).hexdigest()[:16]}/{name}"


async def _serve(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in MEDIA_TYPES or request.url.path != address(name):
        raise ProblemError(NOT_FOUND, "no such file; reload the page")
    return Response(content(name), media_type=MEDIA_TYPES[name], headers={"Cache-Control": FOREVER})


def route() -> Template:
    """Create the route of the files, which need no session."""
    return Template(f"{CONSOLE}/static/{{digest}}/{{name}}", _serve, name="static")
