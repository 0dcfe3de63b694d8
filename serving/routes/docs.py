"""Serve the page that shows the OpenAPI document, with the files of Swagger UI.

The page works without access to the internet, and its policy forbids the browser to load anything
from elsewhere. Only the two files that it needs are served, each by a route of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from serving.paths import Template
from serving.problems import NOT_FOUND, ProblemError

DOCS = "/docs"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>anomaly-vae</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
SCRIPT = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  validatorUrl: null,
});
"""
"""Script of the page; without a validator, Swagger UI asks no other server about the document."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content Security Policy of the page: everything comes from the service."""
PACKAGE = "swagger_ui_bundle"
"""Package with the files of Swagger UI, which is never imported."""
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
"""Media types of the files that are served, by name."""


def routes() -> list[Template]:
    """Create the routes of the page, its script and the files of Swagger UI."""
    return [
        _route(DOCS, "text/html", PAGE.encode),
        _route(f"{DOCS}/page.js", "text/javascript", SCRIPT.encode),
        *(_asset_route(name, media_type) for name, media_type in ASSETS.items()),
    ]


def _asset_route(name: str, media_type: str) -> Template:
    def read() -> bytes:
        return (_assets_folder() / name).read_bytes()

    return _route(f"{DOCS}/{name}", media_type, read)


def _route(path: str, media_type: str, read: Callable[[], bytes]) -> Template:
    async def serve(_: Request) -> Response:
        policy = {"Content-Security-Policy": POLICY}
        return Response(read(), media_type=media_type, headers=policy)

    return Template(path, serve)


@cache
def _assets_folder() -> Path:
    """Find the files of Swagger UI 5, the first version that shows OpenAPI 3.1."""
    package = find_spec(PACKAGE)
    if package is None or not package.origin:
        detail = "Swagger UI is not installed; run: pip install 'anomaly-vae[serve]'"
        raise ProblemError(NOT_FOUND, detail)
    return next((Path(package.origin).parent / "vendor").glob("swagger-ui-5*"))
