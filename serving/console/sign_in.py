"""Sign reviewers in and out."""

from __future__ import annotations

import time

from starlette.responses import Response

from serving.console.access import Access
from serving.console.sessions import Session
from serving.console.visits import SIGN_IN, Gate, Visit
from serving.observability import logs
from serving.paths import CONSOLE, Template

UNKNOWN = "This key or token is unknown, or has expired."


def routes(gate: Gate) -> list[Template]:
    """Create the routes of the sign-in page."""
    return [
        gate.route("/sign-in", lambda visit: _form(visit, visit.request.query_params.get("next")),
                   scope=None),
        gate.route("/sign-in", lambda visit: _sign_in(visit, gate.access), "POST", scope=None),
        gate.route("/sign-out", _sign_out, "POST", scope=None),
    ]  # fmt: skip


def _form(visit: Visit, following: str | None, fault: str = "") -> Response:
    status = 401 if fault else 200
    return visit.page("sign_in.html", status, next=own_path(following or ""), fault=fault)


def _sign_in(visit: Visit, access: Access) -> Response:
    following = own_path(visit.form["next"])
    session = access.sign_in(visit.form["key"].strip().encode())
    if session is None:
        return _form(visit, following, UNKNOWN)
    visit.session, visit.sets_cookie = session, True
    visit.request.scope[logs.LOG_FIELDS]["client"] = session.name
    return visit.redirect(following)


def _sign_out(visit: Visit) -> Response:
    visit.session, visit.sets_cookie = Session.new(time.time()), True
    return visit.redirect(SIGN_IN)


def own_path(path: str) -> str:
    r"""Return a path if it belongs to the console, else the path of the console.

    >>> own_path("/console/cases/7?by=day"), own_path("//evil.example"), own_path("/console/\\a")
    ('/console/cases/7?by=day', '/console', '/console')
    """
    is_own = path == CONSOLE or path.startswith((f"{CONSOLE}/", f"{CONSOLE}?"))
    return path if is_own and path.isprintable() and "\\" not in path else CONSOLE
