"""Sign reviewers in and out."""

from __future__ import annotations

import time

from starlette.responses import RedirectResponse, Response

from serving.console.access import ADMIN, REVIEW, Access
from serving.console.issuer import CALLBACK, Issuer
from serving.console.sessions import Session
from serving.console.visits import SIGN_IN, Gate, Visit
from serving.observability import logs
from serving.paths import CONSOLE, Template
from serving.problems import NOT_FOUND, ProblemError

UNKNOWN = "This key or token is unknown, or has expired."
NO_REVIEWER = "'{name}' may not review: the key or token lacks the scope 'review'."
NOT_SIGNED_IN = "The issuer did not sign you in; try again."


class SignIn:
    """The pages on which reviewers sign in.

    Args:
        access: the sessions.
        issuer: the issuer at which they can sign in, if the settings name its client.
    """

    def __init__(self, access: Access, issuer: Issuer) -> None:
        self._access, self._issuer = access, issuer

    def routes(self, gate: Gate) -> list[Template]:
        """Create the routes of the pages."""
        return [
            gate.route("/sign-in", self.show, scope=None),
            gate.route("/sign-in", self.sign_in, "POST", scope=None),
            gate.route("/sign-in/issuer", self.leave, scope=None, is_slow=True),
            gate.route(CALLBACK, self.come_back, scope=None, is_slow=True),
            gate.route("/sign-out", _sign_out, "POST", scope=None),
        ]

    def show(self, visit: Visit) -> Response:
        """Show the form."""
        return self._form(visit, own_path(visit.request.query_params.get("next", "")))

    def _form(self, visit: Visit, following: str, fault: str = "") -> Response:
        has_issuer, status = self._issuer.is_offered, 401 if fault else 200
        return visit.page(
            "sign_in.html", status, next=following, fault=fault, has_issuer=has_issuer
        )

    def sign_in(self, visit: Visit) -> Response:
        """Sign in by a key or a token."""
        following = own_path(visit.form["next"])
        session = self._access.sign_in(visit.form["key"].strip().encode())
        if session is None:
            return self._form(visit, following, UNKNOWN)
        return self._begin(visit, session, following)

    def leave(self, visit: Visit) -> Response:
        """Send the browser to the issuer."""
        if not self._issuer.is_offered:
            raise ProblemError(NOT_FOUND, "sign in by a key; no client of an issuer is configured")
        following = own_path(visit.request.query_params.get("next", ""))
        address = self._issuer.address(self._access.signer, visit.session, following)
        return RedirectResponse(address, 303)

    def come_back(self, visit: Visit) -> Response:
        """Sign in by what the issuer sent along with the browser."""
        given = visit.request.query_params
        state, code = given.get("state", ""), given.get("code", "")
        text = self._access.signer.unseal(visit.session, state)
        if text is None or not code:
            return self._form(visit, CONSOLE, NOT_SIGNED_IN)
        following = own_path(text.partition(" ")[2])
        tokens = self._issuer.tokens(self._access.signer, state, code)
        for token in filter(None, (tokens.access_token, tokens.id_token)):
            if session := self._access.sign_in(token.encode()):
                return self._begin(visit, session, following)
        return self._form(visit, following, UNKNOWN)

    def _begin(self, visit: Visit, session: Session, following: str) -> Response:
        """Begin another session, with tokens of its own, if its scopes are of any use here."""
        if not {REVIEW, ADMIN} & {*session.scopes}:
            return self._form(visit, following, NO_REVIEWER.format(name=session.name))
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
