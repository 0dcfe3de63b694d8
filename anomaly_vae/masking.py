"""Remove passwords and tokens from text that leaves the process: errors, log lines, results."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
"""Replacement of a secret value."""
USER_INFO = re.compile(
    r"//(?:"
    r"[^/?#\s'\"<>]{0,500}@"  # the authority of a URL ends at the first slash
    r"|[^/?#\s'\"<>:\[\]@]{0,200}:(?!\d{0,5}[/?#])[^\s'\"<>]{0,500}@"  # or / is in the password
    r")"
)
"""User name and password in a URL. The second alternative reaches to the last @ of the word."""
QUOTED_USER_INFO = re.compile(
    r"(%(?:25)*2F%(?:25)*2F)(?:(?!%(?:25)*2F)[^\s/'\"<>&]){0,500}%(?:25)*40", re.IGNORECASE
)
"""User name and password in a percent-encoded URL."""
SECRET_VALUE = re.compile(
    r"((?:passw|pwd|passphrase|token|secret|api_?key|access_?key|credential|signature)\w{0,20}="
    r"|[?&;](?:key|sig|auth|code|odbc_connect)=)[^&;,\s'\"<>)]+",
    re.IGNORECASE,
)
"""Value of a secret parameter in a URL or in a connection string."""
AUTHORIZATION = re.compile(
    r"(authorization['\"]?\s*[:=]\s*b?['\"]?(?:basic|bearer|token)\s+)[^\s'\"]+", re.IGNORECASE
)
"""Credentials in a header ``Authorization``."""
SECRET_VARIABLE = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|SECRET_ACCESS_KEY)$")
"""Pattern of the names of environment variables whose values are secret."""
ADDRESS = re.compile(
    r"(?P<before>(?:[A-Za-z][\w+.-]*:)?(?://)?(?P<user>[^\s:/@]*)):(?P<password>.+)@(?P<after>[^@]+)",
    re.DOTALL,
)
"""Pattern of an address with a user and a password."""
MIN_LENGTH = 4
"""Minimum length of a secret that is replaced wherever it appears, in characters."""

_addresses: set[str] = set()
"""Addresses that this process uses."""


def remember_address(address: str) -> None:
    """Hide the password of an address in all later text, however a message quotes it."""
    _addresses.add(address)


def masked(text: str) -> str:
    """Return text without user names and passwords in addresses, and without tokens.

    Addresses keep their scheme, host and port. Passwords of `remember_address` and of the
    environment are also replaced where they appear without their address.

    >>> masked("cannot reach http://bob:s3cret@db.example:5000/api?token=abcd")
    'cannot reach http://db.example:5000/api?token=***'
    """
    for secret in sorted(set(_known_secrets()), key=len, reverse=True):
        text = text.replace(secret, "" if secret.endswith("@") else HIDDEN)
    text = AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = QUOTED_USER_INFO.sub(r"\1", USER_INFO.sub("//", text))
    return SECRET_VALUE.sub(rf"\1{HIDDEN}", text)


def _known_secrets() -> Iterator[str]:
    """Yield the secrets in the environment and in `remember_address`, and ways to spell them."""
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= MIN_LENGTH:
            yield value
        elif name == "MLFLOW_TRACKING_URI" or "//" in value:
            yield from _passwords(value)
    for address in _addresses:
        yield from _passwords(address)


def _passwords(address: str) -> Iterator[str]:
    """Yield the user with the password of an address, and the spellings and parts of the password.

    Parts are what a parser may take for a host or a port. A word that the rest of the address
    contains, too, is no secret.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        return
    user, password = match["user"], match["password"]
    yield f"{user}:{password}@"
    quoted = (quote(password), quote(password, safe=""), quote_plus(password))
    spellings = {password, unquote(password), *quoted}
    parts = {part for spelling in spellings for part in re.split(r"[/@:?#]", spelling)}
    public = match["before"] + match["after"]
    yield from (p for p in spellings | parts if len(p) >= MIN_LENGTH and p not in public)
