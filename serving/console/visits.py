"""Answer requests for pages: check session, scope and form, call the page, and report errors.

Pages are plain functions. They run on a thread of their own, which reads the stores and renders, so
that neither delays a request to be scored. Pages that read files or score have another thread, so
that reviewers need not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from anomaly_vae.errors import ConfigError, StoreError
from serving.console import rendering
from serving.console.access import COOKIE, REVIEW, Access, Reviewer
from serving.console.forms import TOKEN, Form, read_form
from serving.console.sessions import Session
from serving.http.admission import AdmissionControl
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.paths import CONSOLE, HEADERS, Template
from serving.problems import (
    FORBIDDEN,
    INVALID_REQUEST,
    NOT_FOUND,
    NOT_READY,
    OVERLOADED,
    STORE_DOWN,
    UNAUTHENTICATED,
    ProblemError,
    to_problem,
)
from serving.scoring import requests
from serving.scoring.handlers import Resources
from serving.settings import Settings

MAX_WAITING = 32
"""Maximum number of requests per worker process that wait for pages."""
FRAGMENT = b"x-fragment"
"""Header of requests by the script of the console, which are answered with a part of a page."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content Security Policy of all pages; ``data:`` is for the pictures of scans that are tried."""
SECURE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of all pages."""
SIGN_IN = f"{CONSOLE}/sign-in"
TITLES = {
    NOT_FOUND.slug: "Not found",
    FORBIDDEN.slug: "Not allowed",
    UNAUTHENTICATED.slug: "Sign in first",
    INVALID_REQUEST.slug: "That cannot be done",
    STORE_DOWN.slug: "The store cannot be used now",
}
"""Titles of error pages where those of the interface would not be understood."""


@dataclass
class Visit:
    """A request for a page.

    ``reviewer`` is None only on pages without a scope. A page may set ``session`` to another one.
    """

    request: Request
    session: Session
    token: str
    """Token of the forms of the session."""
    counts: Callable[[], int | None]
    """Function that returns the number of open cases; None if the store is down."""
    reviewer: Reviewer | None = None
    form: Form = field(default_factory=Form)
    sets_cookie: bool = False

    @property
    def who(self) -> str:
        """Name of the reviewer."""
        return self.reviewer.name if self.reviewer else ""

    @property
    def is_fragment(self) -> bool:
        """Whether only a part of the page is wanted."""
        return FRAGMENT in self.request.scope[HEADERS]

    def may(self, scope: str) -> bool:
        """Return whether the reviewer has a scope."""
        return self.reviewer is not None and scope in self.reviewer.scopes

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page, or the part of it that is wanted."""
        shared = {"visit": self, "form_token": self.token, "token_name": TOKEN}
        text = rendering.render(template, **shared, **values)
        return Response(text, status, media_type="text/html")

    def redirect(self, path: str, **query: object) -> Response:
        """Return a redirection to a page of the console, which is read by GET."""
        text = urlencode({name: value for name, value in query.items() if value not in (None, "")})
        return RedirectResponse(f"{path}?{text}" if text else path, 303)


Page = Callable[[Visit], Response]


class Gate:
    """Share sessions, threads and error pages among all pages."""

    def __init__(
        self,
        access: Access,
        resources: Resources,
        settings: Settings,
        metrics: Metrics,
        counts: Callable[[], int | None],
    ) -> None:
        self.access, self._resources = access, resources
        self._admission = AdmissionControl(settings, metrics)
        self._settings, self._metrics, self._counts = settings, metrics, counts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="console")
        self._slow_thread = ThreadPoolExecutor(1, thread_name_prefix="console-slow")
        self._waiting = 0

    def close(self) -> None:
        """Wait for the pages in progress."""
        self._thread.shutdown()
        self._slow_thread.shutdown()

    def route(
        self,
        path: str,
        page: Page,
        *methods: str,
        scope: str | None = REVIEW,
        is_slow: bool = False,
    ) -> Template:
        """Create the route of a page.

        Args:
            path: path below the console.
            page: function that returns the page.
            methods: its methods; none for GET.
            scope: scope that its visitors need; None for a page that is open to all.
            is_slow: whether the page reads files, scores, or asks another server.
        """

        async def serve(request: Request) -> Response:
            return await self._serve(request, page, scope, is_slow)

        return Template(CONSOLE + path, serve, methods=list(methods or ("GET",)), name="console")

    def unknown(self) -> Template:
        """Create the route of all other paths, which are errors."""
        return self.route("/{path:path}", _unknown)

    async def _serve(
        self, request: Request, page: Page, scope: str | None, is_slow: bool
    ) -> Response:
        try:
            session = self.access.session(request)
            token = self.access.signer.form_token(session)
        except ConfigError as error:
            raise ProblemError(NOT_READY, str(error)) from None
        visit = Visit(request, session, token, self._counts)
        try:
            await self._admit(visit, scope)
            response = await self._run(page, visit, is_slow)
        except Exception as error:  # noqa: BLE001  # every exception is answered with a page
            response = self._error_page(visit, error)
        response.headers.update(SECURE_HEADERS)
        self._update_cookie(response, visit)
        return response

    async def _admit(self, visit: Visit, scope: str | None) -> None:
        """Find the reviewer, check the scope, and read the form.

        Raises:
            ProblemError: the visitor may not see the page, or sent no form of it.
        """
        visit.reviewer = self.access.reviewer(visit.request, visit.session)
        if visit.reviewer:
            visit.request.scope[logs.LOG_FIELDS]["client"] = visit.who
        if scope and visit.reviewer is None:
            raise ProblemError(UNAUTHENTICATED, "your session has ended; sign in and send it again")
        if scope and not visit.may(scope):
            raise ProblemError(FORBIDDEN, f"'{visit.who}' lacks the scope '{scope}'")
        if visit.request.method == "POST":
            visit.form = await self._read_form(visit)

    async def _read_form(self, visit: Visit) -> Form:
        headers, limit = visit.request.scope[HEADERS], self._settings.max_body_bytes
        size = requests.declared_size(headers, limit)
        self._admission.admit(size)
        try:
            body = await self._resources.read_body(visit.request.receive)
            form = await read_form(visit.request, body)
        finally:
            self._admission.release(size)
        self.access.check_form(visit.request, visit.session, form[TOKEN])
        return form

    def _run(self, page: Page, visit: Visit, is_slow: bool) -> Awaitable[Response]:
        """Make a page on a thread.

        Raises:
            ProblemError: too many requests wait for a thread.
        """
        if self._waiting >= MAX_WAITING:
            detail = "many pages are being made; try again in a moment"
            raise ProblemError(OVERLOADED, detail, headers=self._settings.retry_headers)
        self._waiting += 1
        thread = self._slow_thread if is_slow else self._thread
        job = asyncio.wrap_future(thread.submit(page, visit))
        job.add_done_callback(self._finish)
        return job

    def _finish(self, _: object) -> None:
        self._waiting -= 1

    def _update_cookie(self, response: Response, visit: Visit) -> None:
        renewed = self.access.renewed(visit.session)
        is_new = COOKIE not in visit.request.cookies
        if visit.sets_cookie or renewed or is_new:
            self.access.set_cookie(response, renewed or visit.session, visit.request)

    def _error_page(self, visit: Visit, error: Exception) -> Response:
        problem = _problem(error)
        if problem.kind is UNAUTHENTICATED and _is_read(visit):
            return _ask_to_sign_in(visit)
        self._metrics.rejected.labels(problem.kind.slug).inc()
        if problem.kind.status == 500:
            logs.failures.error("a page failed", exc_info=error)
        template = "error_fragment.html" if visit.is_fragment else "error.html"
        response = visit.page(
            template,
            problem.kind.status,
            title=TITLES.get(problem.kind.slug, problem.kind.title),
            detail=problem.detail,
        )
        response.headers.update(problem.headers or {})
        return response


def _unknown(visit: Visit) -> Response:
    if visit.request.url.path == f"{CONSOLE}/":
        return visit.redirect(CONSOLE)
    raise ProblemError(NOT_FOUND, "the console has no such page; the links above lead to all pages")


def _problem(error: Exception) -> ProblemError:
    if isinstance(error, StoreError):
        return ProblemError(STORE_DOWN, f"{error}. Nothing is lost; try again in a moment.")
    return to_problem(error)


def _is_read(visit: Visit) -> bool:
    """Return whether a whole page is read by somebody who has to sign in."""
    is_page = visit.request.method == "GET" and not visit.is_fragment
    return is_page and not visit.request.url.path.startswith(SIGN_IN)


def _ask_to_sign_in(visit: Visit) -> Response:
    """Send the browser to the sign-in page, which sends it back afterwards."""
    url = visit.request.url
    query = f"?{url.query}" if url.query else ""
    return visit.redirect(SIGN_IN, next=url.path + query)
