"""Sign reviewers in at the issuer of tokens: OpenID Connect's code flow with PKCE (RFC 7636).

Nothing about a sign-in is stored. The state that returns with the browser is signed for its
session, and the verifier of the code is derived from it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import secrets
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from serving.console.sessions import Session, Signer
from serving.http.outbound import send
from serving.problems import UNAUTHENTICATED, ProblemError
from serving.settings import Settings, is_loopback

T = TypeVar("T")

CALLBACK = "/sign-in/callback"
"""Path below the console to which the issuer sends the browser back."""
DISCOVERY = "/.well-known/openid-configuration"
SECONDS = 5.0
"""Maximum time to wait for the issuer, in seconds."""
MAX_BYTES = 256 * 1024
"""Maximum size of an answer of the issuer, in bytes."""


class Endpoints(msgspec.Struct, frozen=True):
    """The addresses of an issuer that sign-in needs, as it publishes them."""

    authorization_endpoint: str
    token_endpoint: str


class Tokens(msgspec.Struct, frozen=True):
    """The answer to a code."""

    access_token: str = ""
    id_token: str = ""


class Issuer:
    """The issuer of the settings.

    Args:
        settings: the issuer, and the console as its client.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._found: Endpoints | None = None

    @property
    def is_offered(self) -> bool:
        """Whether the settings name a client."""
        return bool(self._settings.oidc_client_id and self._settings.console_url)

    def address(self, signer: Signer, session: Session, following: str) -> str:
        """Return the address at which a visitor signs in.

        Args:
            signer: signs the state.
            session: the session of the visitor.
            following: path to show afterwards.

        Raises:
            ProblemError: the issuer cannot be reached.
        """
        state = signer.seal(session, f"{secrets.token_hex(8)} {following}")
        verifier = signer.derive("verifier", state).encode()
        digest = hashlib.sha256(verifier).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._callback,
            "scope": f"openid {self._settings.oidc_scope_prefix}review",
            "state": state,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        address = self._endpoints().authorization_endpoint
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    def tokens(self, signer: Signer, state: str, code: str) -> Tokens:
        """Exchange a code, which came with a state, for tokens.

        Raises:
            ProblemError: the issuer cannot be reached, or refuses the code.
        """
        settings = self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "client_id": settings.oidc_client_id,
            "code_verifier": signer.derive("verifier", state),
        }
        if settings.oidc_client_secret:
            form["client_secret"] = settings.oidc_client_secret
        answer = _ask(self._endpoints().token_endpoint, form)
        return _decode(answer, Tokens)

    @property
    def _callback(self) -> str:
        return self._settings.console_url.rstrip("/") + CALLBACK

    def _endpoints(self) -> Endpoints:
        if self._found is None:
            address = self._settings.oidc_issuer.rstrip("/") + DISCOVERY
            self._found = _decode(_ask(address), Endpoints)
        return self._found


def _decode(answer: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=shape)
    except msgspec.DecodeError:
        raise _refused("its answer cannot be read") from None


def _ask(address: str, form: Mapping[str, str] | None = None) -> bytes:
    """Send a request to the issuer: a form if there is one; redirects are not followed."""
    url = urlsplit(address)
    if url.scheme != "https" and not is_loopback(url.hostname or ""):
        raise _refused("its addresses must begin with https")
    body, headers = None, {"Accept": "application/json"}
    if form is not None:
        body, headers["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
    try:
        status, content = send(url, "POST" if form else "GET", body, headers, SECONDS, MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _refused(f"it cannot be reached ({type(error).__name__})") from None
    if status != 200:
        raise _refused(f"it answered {status}")
    return content


def _refused(reason: str) -> ProblemError:
    return ProblemError(UNAUTHENTICATED, f"the issuer did not sign you in: {reason}")
