"""Open a window store by its URL."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from anomaly_vae.config.windows import seconds
from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import ConfigError
from anomaly_vae.features.definition import MICROSECONDS
from anomaly_vae.features.inputs import WindowInputs, entity_text
from anomaly_vae.features.store.records import Backend, Hasher
from anomaly_vae.features.store.sqlite import SqliteBackend
from anomaly_vae.features.store.store import MAX_EVENTS, WindowStore
from anomaly_vae.masking import masked, remember_address

VARIABLE, SALT_VARIABLE = "ANOMALY_VAE_WINDOWS", "ANOMALY_VAE_WINDOWS_SALT"
FORMS = "sqlite:///FILE or redis://HOST:PORT/0"
SECONDS = 2.0
"""Maximum time to wait for the database, in seconds, unless configured otherwise."""


@dataclass(frozen=True)
class StoreOptions:
    """How a window store is opened.

    Example:
        >>> StoreOptions("redis://:secret@db:6379/0")
        StoreOptions(url='redis://db:6379/0')
    """

    url: str = ""
    """URL of the store; empty: a file in the state folder of the user."""
    salt: str = ""
    """Secret that is hashed with every entity, id and value."""
    max_events: int = MAX_EVENTS
    """Maximum number of events kept of one entity."""
    seconds: float = SECONDS
    """Maximum time to wait for the database."""

    def __repr__(self) -> str:
        return f"StoreOptions(url={masked(self.url)!r})"

    @classmethod
    def from_environment(cls, url: str | None = None) -> StoreOptions:
        """Return the options of a command: its URL, or else that of the environment."""
        return cls(url or os.environ.get(VARIABLE, ""), os.environ.get(SALT_VARIABLE, ""))


def required_time(text: str, now: int) -> int:
    """Return the time up to which a store is to be filled, in microseconds since 1970.

    Args:
        text: a time, such as 2024-01-31T09:05, or an age, such as 2h.
        now: the present time in microseconds.

    Raises:
        ValueError: the text is neither.

    >>> required_time("1970-01-02", 0), required_time("1h", 7_200_000_000)
    (86400000000, 3600000000)
    """
    try:
        return now - seconds(text) * MICROSECONDS
    except ValueError:
        return round(parse_time(text) * MICROSECONDS)


def default_url() -> str:
    """Return the URL of the file in the state folder of the user."""
    root = os.environ.get("XDG_STATE_HOME")
    folder = Path(root) if root else Path.home() / ".local" / "state"
    return f"sqlite:///{folder / 'anomaly-vae' / 'windows.db'}"


def open_backend(options: StoreOptions, create: bool = True) -> Backend:
    """Open the database of a URL; connections are made when needed.

    Args:
        options: the URL and how long to wait.
        create: whether to create a file that does not exist.

    Raises:
        ConfigError: the URL has another form, or its library is not installed.
    """
    url = options.url or default_url()
    if match := re.fullmatch(r"sqlite:///([^?#\s][^?#]*)", url):
        return SqliteBackend(Path(match[1]), options.seconds, create)
    remember_address(url)
    if not re.match(r"(rediss?|valkeys?)://[^/]", url):
        raise ConfigError(f"window store '{masked(url)}': expected {FORMS}", key=VARIABLE)
    try:
        from anomaly_vae.features.store.redis import RedisBackend
    except ImportError as error:
        reason = "window stores of redis:// need: pip install 'anomaly-vae[redis]'"
        raise ConfigError(f"{error}; {reason}", key=VARIABLE) from None
    try:
        return RedisBackend(url, options.seconds)
    except ValueError as error:
        reason = f"window store '{masked(url)}': {error}; expected {FORMS}"
        raise ConfigError(reason, key=VARIABLE) from None


def forget_entity(options: StoreOptions, entity: str, value: object) -> int:
    """Delete the events of an entity for all models; return for how many layouts it had any.

    Raises:
        ConfigError: see `open_backend`.
        WindowStoreError: the store cannot be used, does not exist or has another salt.
    """
    text, backend = entity_text(value), open_backend(options, create=False)
    spaces = backend.spaces(Hasher(options.salt, "").check)
    keys = [Hasher(options.salt, space).key(entity, text or "") for space in spaces]
    return backend.forget(keys) if keys else 0


def open_store(options: StoreOptions, inputs: WindowInputs) -> WindowStore:
    """Open the store of a model's windows.

    Raises:
        ConfigError: the URL has another form, or its library is not installed.
        WindowStoreError: the store cannot be used.

    >>> import tempfile
    >>> from anomaly_vae.config.windows import EntityWindows
    >>> from anomaly_vae.features import WindowDefinition
    >>> card = EntityWindows(over=("1h",), count=True)
    >>> inputs = WindowInputs(WindowDefinition({"card": card}), time="at")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = open_store(StoreOptions(f"sqlite:///{folder}/windows.db"), inputs)
    ...     newest = store.state().newest
    ...     store.backend.close()
    >>> print(newest)
    None
    """
    return WindowStore(open_backend(options), inputs, options.salt, options.max_events)
