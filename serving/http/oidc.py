"""Bearer tokens of an OpenID Connect issuer, beside API keys; needs PyJWT.

A token is a client like a key is: its scopes are what the issuer says. The issuer's keys are
fetched when the service starts and then from time to time on a thread of its own; no request waits
for it, and while the issuer is away the keys known last are good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import jwt

from serving.settings import SCOPES, ApiKey, Settings

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
)  # fmt: skip
"""Signatures that only the issuer can make; never one with a shared secret, never none."""
CLAIMS = ("exp", "iss", "aud")
LEEWAY = 30
"""Seconds by which clocks may differ."""
FETCH_SECONDS = 5.0
LEAST_SECONDS = 10.0
"""Between two fetches at the least, however many tokens name unknown keys."""
MAX_BYTES = 16 * 1024
NAMES = ("azp", "client_id", "sub")
"""Claims that say who asks, the first that there is."""

_log = logging.getLogger(__name__)


class Tokens:
    """Knows the issuer's keys, and whom a token speaks for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client = jwt.PyJWKClient(
            settings.oidc_jwks_url, cache_jwk_set=False, timeout=FETCH_SECONDS
        )
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetching = threading.Lock()
        self._fetched = -float("inf")
        self._fetch()

    def find(self, secret: bytes) -> ApiKey | None:
        """The client that a token speaks for; None where it is no token, or not a good one."""
        if secret.count(b".") != 2 or len(secret) > MAX_BYTES:
            return None
        try:
            key = self._key_of(jwt.get_unverified_header(secret).get("kid"))
            return self._client_of(self._verified(secret, key)) if key else None
        except jwt.PyJWTError:
            return None

    def _verified(self, token: bytes, key: jwt.PyJWK) -> dict[str, Any]:
        settings = self.settings
        return jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=settings.oidc_audience,
            issuer=settings.oidc_issuer,
            leeway=LEEWAY,
            options={"require": list(CLAIMS)},
        )

    def _client_of(self, claims: dict[str, Any]) -> ApiKey:
        name = next((str(claims[claim]) for claim in NAMES if claims.get(claim)), "")
        granted = _words(claims.get(self.settings.oidc_scope_claim))
        prefix = self.settings.oidc_scope_prefix
        named = {word.removeprefix(prefix) for word in granted if word.startswith(prefix)}
        return ApiKey(f"token:{name[:100]}", SCOPES & named, digest="")

    def _key_of(self, number: Any) -> jwt.PyJWK | None:
        key = self._keys.get(number) if isinstance(number, str | None) else None
        age = time.monotonic() - self._fetched
        due = age > (self.settings.oidc_refresh_seconds if key else LEAST_SECONDS)
        if due and not self._fetching.locked():
            threading.Thread(target=self._fetch, name="oidc", daemon=True).start()
        return key

    def _fetch(self) -> None:
        """Learn the keys anew; those known stay where the issuer does not answer."""
        if not self._fetching.acquire(blocking=False):
            return
        try:
            keys = self._client.get_jwk_set(refresh=True)
            self._keys = {key.key_id: key for key in keys if key.algorithm_name in ALGORITHMS}
        except (jwt.PyJWTError, ValueError) as error:
            _log.warning("the keys of the token issuer were not fetched: %s", error)
        finally:
            self._fetched = time.monotonic()
            self._fetching.release()


def _words(claim: Any) -> Iterable[str]:
    """A claim of words: one text, as OAuth has it, or a list."""
    if isinstance(claim, str):
        return claim.split()
    return [word for word in claim if isinstance(word, str)] if isinstance(claim, list) else []
