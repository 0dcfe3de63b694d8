"""Find out who a visitor of the console is: by session, by key or token, or on this machine."""

from __future__ import annotations

import getpass
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.console.sessions import Session, Signer, fingerprint, read_secret
from serving.middleware import read_key
from serving.paths import CONSOLE, HEADERS
from serving.problems import FORBIDDEN, ProblemError
from serving.settings import SCOPES, ApiKey, Settings, is_loopback

COOKIE = "anomaly_vae_console"
"""Name of the cookie of sessions."""
REVIEW, ADMIN = "review", "admin"
"""Scopes of the console."""
ANONYMOUS = "anonymous"
"""Name of a reviewer on another machine if the service needs no keys."""
PERSON_CLAIMS = ("preferred_username", "email", "sub")
"""Claims with the name of a person, the most readable first."""
RENEWED_FRACTION = 0.5
"""Fraction of a session's time after which it is renewed, if its reviewer still works."""
OWN_SITE = frozenset({b"same-origin", b"none"})
"""Values of Sec-Fetch-Site of requests that no other site made."""


@dataclass(frozen=True, slots=True)
class Reviewer:
    """A person who is signed in: the name that labels have, and the scopes of the key."""

    name: str
    scopes: frozenset[str]


class Access:
    """The sessions of one service.

    Args:
        settings: the keys, and for how long sessions last.
        find_client: returns the client of a key or token, or None if it is unknown.
    """

    def __init__(self, settings: Settings, find_client: Callable[[bytes], ApiKey | None]) -> None:
        self._settings, self._find_client = settings, find_client
        self._keys = {key.name: key for key in settings.api_keys}
        self._seconds = settings.console_hours * 3600

    # ------------------------------------------------------------ sessions

    @cached_property
    def signer(self) -> Signer:
        """The signer of sessions; a service that cannot keep its secret scores nevertheless.

        Raises:
            ConfigError: there is no secret to sign sessions with.
        """
        return Signer(read_secret(self._settings.console_secret))

    def session(self, request: Request) -> Session:
        """Return the session of a request; a new one without a name if it has none."""
        cookie = request.cookies.get(COOKIE, "")
        return (cookie and self.signer.load(cookie)) or Session.new(time.time() + self._seconds)

    def sign_in(self, secret: bytes) -> Session | None:
        """Return a session of the holder of a key or token; None if it is unknown."""
        client = self._find_client(secret)
        if client is None:
            return None
        ends_at, scopes = time.time() + self._seconds, tuple(sorted(client.scopes))
        if client.digest:
            return Session.new(ends_at, client.name, fingerprint(client.digest), scopes)
        claims = _claims(secret)
        name = _name_of_person(claims) or client.name
        return Session.new(min(ends_at, float(claims["exp"])), name, "", scopes)

    def renewed(self, session: Session) -> Session | None:
        """Return a session of a key with a later end; None if it need not be renewed yet."""
        left = session.ends_at - time.time()
        if not session.key or left > RENEWED_FRACTION * self._seconds:
            return None
        return msgspec.structs.replace(session, ends_at=time.time() + self._seconds)

    def set_cookie(self, response: Response, session: Session, request: Request) -> None:
        """Send a session to the browser."""
        response.set_cookie(
            COOKIE,
            self.signer.dump(session),
            max_age=max(int(session.ends_at - time.time()), 0),
            path=CONSOLE,
            secure=self._is_https(request),
            httponly=True,
            samesite="lax",
        )

    def _is_https(self, request: Request) -> bool:
        forwarded = request.scope[HEADERS].get(b"x-forwarded-proto", b"").lower()
        own = self._settings.console_url.startswith("https:")
        return own or forwarded == b"https" or request.url.scheme == "https"

    # ------------------------------------------------------------ reviewers

    def reviewer(self, request: Request, session: Session) -> Reviewer | None:
        """Return who sends a request; None if they have to sign in.

        Raises:
            ProblemError: without keys, the request came through another name of this machine, as
                those of other sites may.
        """
        if not self._settings.requires_auth:
            return self._reviewer_without_keys(request)
        if secret := read_key(request.scope[HEADERS]):
            session = self.sign_in(secret) or session
            return Reviewer(session.name, frozenset(session.scopes)) if session.name else None
        if not session.key:
            return Reviewer(session.name, frozenset(session.scopes)) if session.name else None
        key = self._keys.get(session.name)
        if key is None or fingerprint(key.digest) != session.key:
            return None
        return Reviewer(key.name, key.scopes)

    def _reviewer_without_keys(self, request: Request) -> Reviewer:
        if not (request.client and is_loopback(request.client.host)):
            return Reviewer(ANONYMOUS, SCOPES)
        host = request.url.hostname or ""
        if not (is_loopback(host) or host == urlsplit(self._settings.console_url).hostname):
            detail = f"the console is not called '{host[:100]}'; open it as localhost, or set "
            raise ProblemError(FORBIDDEN, detail + "ANOMALY_VAE_CONSOLE_URL to its address")
        return Reviewer(local_user(), SCOPES)

    def check_form(self, request: Request, session: Session, token: str) -> None:
        """Check that a form was sent by a page of this session.

        Raises:
            ProblemError: it was not.
        """
        site = request.scope[HEADERS].get(b"sec-fetch-site", b"none")
        if site not in OWN_SITE or not self.signer.is_form_token(token, session):
            detail = "the form belongs to another session, or to none; reload the page and send it"
            raise ProblemError(FORBIDDEN, f"{detail} again")


def local_user() -> str:
    """Return the name of the user who runs the service."""
    try:
        return getpass.getuser()[:100] or "local"
    except (KeyError, OSError):  # a user without a name, as in containers
        return "local"


def _claims(token: bytes) -> Mapping[str, Any]:
    """Return the claims of a token that has been verified."""
    payload = token.split(b".")[1]
    content: Mapping[str, Any] = msgspec.json.decode(
        urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))
    )
    return content


def _name_of_person(claims: Mapping[str, Any]) -> str:
    """Return the name of the person whom a token is about; empty if it names none."""
    names = (str(claims[claim]) for claim in PERSON_CLAIMS if claims.get(claim))
    name = next(names, "")
    return f"token:{name[:100]}" if name else ""
