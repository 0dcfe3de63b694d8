"""Sign the sessions of reviewers, and the tokens of their forms.

A session is a cookie that only a holder of the secret can write. Nothing about it is stored, so all
worker processes know all sessions. What a key may do is looked up at each request, so that a
session ends with its key.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import msgspec

from anomaly_vae.errors import ConfigError

SECRET_BYTES = 32
"""Length of a generated secret in bytes."""
KEY_FILE = "anomaly-vae/console.key"
"""File of a generated secret, in the state folder of the user."""
FINGERPRINT = 16
"""Length of the fingerprint of a key in hexadecimal digits."""


class Session(msgspec.Struct, frozen=True):
    """A session; before the reviewer signs in, ``name`` is empty.

    ``key`` is the fingerprint of the API key, and empty for a token of an issuer, whose ``scopes``
    are those that it had when the reviewer signed in. ``ends_at`` is in seconds since 1970.
    """

    id: str
    ends_at: float
    name: str = ""
    key: str = ""
    scopes: tuple[str, ...] = ()

    @classmethod
    def new(
        cls, ends_at: float, name: str = "", key: str = "", scopes: tuple[str, ...] = ()
    ) -> Session:
        """Return a session with an id that nobody can guess."""
        return cls(secrets.token_urlsafe(16), ends_at, name, key, scopes)


def fingerprint(digest: str) -> str:
    """Return what a session keeps of the digest of an API key."""
    return sha256(digest.encode()).hexdigest()[:FINGERPRINT] if digest else ""


class Signer:
    """A signer of sessions and of the tokens of forms."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def dump(self, session: Session) -> str:
        """Return a session as the value of a cookie."""
        payload = urlsafe_b64encode(msgspec.json.encode(session)).decode()
        return f"{payload}.{self._sign('session', payload)}"

    def load(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if it is altered, incomplete or has ended."""
        payload, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", payload).encode()):
            return None
        session = msgspec.json.decode(urlsafe_b64decode(payload), type=Session)
        return session if session.ends_at > time.time() else None

    def form_token(self, session: Session) -> str:
        """Return the token that each form of a session contains."""
        return self._sign("form", session.id)

    def is_form_token(self, token: str, session: Session) -> bool:
        """Return whether a token is that of the forms of a session."""
        return hmac.compare_digest(token.encode(), self.form_token(session).encode())

    def seal(self, session: Session, text: str) -> str:
        """Return a text that only this session can send back."""
        payload = urlsafe_b64encode(text.encode()).decode()
        return f"{payload}.{self._sign('state', f'{session.id}:{payload}')}"

    def unseal(self, session: Session, sealed: str) -> str | None:
        """Return the text that was sealed for this session; None if it was not."""
        payload, _, signature = sealed.partition(".")
        expected = self._sign("state", f"{session.id}:{payload}")
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        return urlsafe_b64decode(payload).decode()

    def derive(self, purpose: str, text: str) -> str:
        """Return a secret that belongs to a text, in hexadecimal digits."""
        return self._sign(purpose, text)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), sha256).hexdigest()


def read_secret(secret: str | None) -> bytes:
    """Return the secret of the settings, or else the one in the state folder, which it creates.

    Raises:
        ConfigError: the file cannot be read or created.
    """
    if secret:
        return secret.encode()
    path = _state_folder() / KEY_FILE
    try:
        return _read_or_create(path)
    except OSError as error:
        reason = f"'{path}': {error.strerror or error}; set ANOMALY_VAE_CONSOLE_SECRET"
        raise ConfigError(reason, key="ANOMALY_VAE_CONSOLE_SECRET") from None


def _state_folder() -> Path:
    root = os.environ.get("XDG_STATE_HOME")
    return Path(root) if root else Path.home() / ".local" / "state"


def _read_or_create(path: Path) -> bytes:
    """Read a secret; the first of several processes creates it for all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    if not path.exists():
        try:
            draft.touch(0o600)
            draft.write_bytes(secrets.token_bytes(SECRET_BYTES))
            os.link(draft, path)
        except FileExistsError:  # another process was faster
            pass
        finally:
            draft.unlink(missing_ok=True)
    content = path.read_bytes()
    if len(content) < SECRET_BYTES:
        raise OSError("the file is damaged; remove it")
    return content
