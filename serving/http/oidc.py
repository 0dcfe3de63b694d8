"""Verify bearer tokens of an OpenID Connect issuer, which are accepted in addition to API keys.

This module needs PyJWT. The issuer's keys are fetched at start-up and refreshed on a thread, so
that no request waits for them. While the issuer is unreachable, the last known keys stay valid.
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
"""Accepted signature algorithms: only asymmetric ones, for which only the issuer has the key."""
REQUIRED_CLAIMS = ("exp", "iss", "aud")
"""Claims that every token must have."""
LEEWAY_SECONDS = 30
"""Tolerated difference between clocks, in seconds."""
FETCH_SECONDS = 5.0
"""Timeout of one fetch, in seconds."""
MIN_FETCH_INTERVAL_SECONDS = 10.0
"""Minimum time between two fetches in seconds, even if many tokens name unknown keys."""
MAX_TOKEN_BYTES = 16 * 1024
"""Maximum size of a token in bytes."""
NAME_CLAIMS = ("azp", "client_id", "sub")
"""Claims with the name of the client, the most specific first."""

_log = logging.getLogger(__name__)


class TokenVerifier:
    """A verifier of tokens, with the issuer's public keys."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client = jwt.PyJWKClient(
            settings.oidc_jwks_url, cache_jwk_set=False, timeout=FETCH_SECONDS
        )
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetching = threading.Lock()
        self._fetched_at = -float("inf")
        self._fetch()

    def find_client(self, secret: bytes) -> ApiKey | None:
        """Return the client of a token, or None if it is not a valid token."""
        if secret.count(b".") != 2 or len(secret) > MAX_TOKEN_BYTES:
            return None
        try:
            key = self._find_key(jwt.get_unverified_header(secret).get("kid"))
            return self._client_of(self._verified_claims(secret, key)) if key else None
        except jwt.PyJWTError:
            return None

    def _verified_claims(self, token: bytes, key: jwt.PyJWK) -> dict[str, Any]:
        settings = self.settings
        return jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=settings.oidc_audience,
            issuer=settings.oidc_issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": list(REQUIRED_CLAIMS)},
        )

    def _client_of(self, claims: dict[str, Any]) -> ApiKey:
        name = next((str(claims[claim]) for claim in NAME_CLAIMS if claims.get(claim)), "")
        granted = _split_scopes(claims.get(self.settings.oidc_scope_claim))
        prefix = self.settings.oidc_scope_prefix
        scopes = {scope.removeprefix(prefix) for scope in granted if scope.startswith(prefix)}
        return ApiKey(f"token:{name[:100]}", SCOPES & scopes, digest="")

    def _find_key(self, key_id: Any) -> jwt.PyJWK | None:
        """Return the key if it is known; start a fetch if it is not, or if the keys are old."""
        key = self._keys.get(key_id) if isinstance(key_id, str | None) else None
        age = time.monotonic() - self._fetched_at
        is_due = age > (self.settings.oidc_refresh_seconds if key else MIN_FETCH_INTERVAL_SECONDS)
        if is_due and not self._fetching.locked():
            threading.Thread(target=self._fetch, name="oidc", daemon=True).start()
        return key

    def _fetch(self) -> None:
        """Replace the keys by the issuer's current ones, unless the issuer is unreachable."""
        if not self._fetching.acquire(blocking=False):
            return
        try:
            keys = self._client.get_jwk_set(refresh=True)
            self._keys = {key.key_id: key for key in keys if key.algorithm_name in ALGORITHMS}
        except (jwt.PyJWTError, ValueError) as error:
            _log.warning("the keys of the token issuer were not fetched: %s", error)
        finally:
            self._fetched_at = time.monotonic()
            self._fetching.release()


def _split_scopes(claim: Any) -> Iterable[str]:
    """Return the scopes in a claim: a space-separated string, as in OAuth, or a list."""
    if isinstance(claim, str):
        return claim.split()
    return [scope for scope in claim if isinstance(scope, str)] if isinstance(claim, list) else []
