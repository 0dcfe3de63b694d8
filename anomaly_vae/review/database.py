"""Connect to SQLite and PostgreSQL: addresses, locks, time limits and errors."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from anomaly_vae.errors import ConfigError, StoreError
from anomaly_vae.masking import masked, remember_address

FORMS = "expected sqlite:///labels.db or postgresql://…"
NOUN = "label store"
"""Usual name of a database in messages."""
DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
}
"""Database driver of an address that names none."""
KNOWN_DRIVERS = frozenset({*DRIVERS.values(), "postgresql+psycopg"})
CONNECT_SECONDS = 5
"""Maximum time to connect, and to wait for the lock of another writer, in seconds."""
WRITE_SECONDS = 30
"""Maximum time of one statement of a writer, in seconds."""
LOCK = 0x616E6F6D  # "anom"
"""Number of PostgreSQL's advisory lock that writers hold."""
WRITES = "anomaly_vae_writes"
"""Option of connections that hold SQLite's write lock from their beginning on."""


def parse_address(address: str, noun: str = NOUN) -> URL:
    """Return the address of a database with its driver.

    Raises:
        ConfigError: it is no address of SQLite or PostgreSQL, or names a database in memory.
    """
    remember_address(address)
    try:
        url = make_url(address)
    except ArgumentError:
        raise ConfigError(f"{noun} '{masked(address)}': {FORMS}") from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in KNOWN_DRIVERS:
        raise ConfigError(f"{noun} '{masked(address)}': {FORMS}")
    if _is_sqlite(url) and (url.database or ":memory:").startswith((":memory:", "file:")):
        raise ConfigError(
            f"{noun} '{masked(address)}': it names no file; write sqlite:///labels.db, or "
            "sqlite:////absolute/path/labels.db"
        )
    return url


def open_engine(url: URL) -> Engine:
    """Return an engine, which connects when it is first used.

    Raises:
        ConfigError: the driver is not installed.
    """
    try:
        engine = create_engine(url, hide_parameters=True, **_options(url))
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        reason = "a label store there needs: pip install 'anomaly-vae[review]'"
        raise ConfigError(f"{error}; {reason}") from None
    if _is_sqlite(url):
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _options(url: URL) -> dict[str, Any]:
    if _is_sqlite(url):  # a file is opened each time, since it may be moved away and replaced
        return {"connect_args": {"timeout": CONNECT_SECONDS}, "poolclass": NullPool}
    milliseconds = 1000 * CONNECT_SECONDS
    limits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": milliseconds}
    return {"connect_args": limits, "pool_pre_ping": True}


def is_absent(url: URL) -> bool:
    """Return whether the file of a SQLite database is not there."""
    return _is_sqlite(url) and not Path(str(url.database)).exists()


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    """Let readers and a writer work at once; transactions begin in `_begin_sqlite`."""
    connection.isolation_level = None
    end = time.monotonic() + CONNECT_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:  # another process changes it, and SQLite does not wait
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine, noun: str = NOUN) -> Iterator[Connection]:
    """Yield a connection that reads the state of one moment.

    Raises:
        StoreError: the database cannot be used.
    """
    with _reported(engine, noun), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine, noun: str = NOUN) -> Iterator[Connection]:
    """Yield a connection that is the only writer until the block ends, which commits.

    Raises:
        StoreError: the database cannot be used.
    """
    with _reported(engine, noun), engine.connect() as connection:
        connection.execution_options(**{WRITES: True})
        with connection.begin():
            if not _is_sqlite(engine.url):
                connection.execute(text(f"SET LOCAL lock_timeout = '{CONNECT_SECONDS}s'"))
                connection.execute(text(f"SET LOCAL statement_timeout = '{WRITE_SECONDS}s'"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            yield connection


@contextmanager
def _reported(engine: Engine, noun: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"{noun} {shown(engine.url)}: {_reason(error)}") from None


def shown(url: URL) -> str:
    """Return an address without its password, as messages quote it."""
    plain = url.set(drivername=url.get_backend_name())
    return masked(plain.render_as_string(hide_password=True))


def _reason(error: SQLAlchemyError) -> str:
    """Return the first line of the driver's message, which quotes no values."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return f"{lines[0][:300]}; check that the database runs and may be written to"
