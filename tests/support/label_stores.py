"""Provide empty label stores on SQLite and PostgreSQL, and one that is down."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from tests.support.ports import free_port
from tests.support.postgres import postgres

__all__ = ["down_store", "postgres_server", "sqlite_store", "store_address"]

FIRST_VERSION = """
CREATE TABLE anomaly_vae_labels (
    number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, row_id TEXT NOT NULL,
    label TEXT NOT NULL, who TEXT NOT NULL, at_us BIGINT NOT NULL, received_us BIGINT NOT NULL,
    note TEXT NOT NULL);
CREATE INDEX anomaly_vae_labels_newest
    ON anomaly_vae_labels (model, row_id, who, at_us, number);
CREATE TABLE anomaly_vae_review_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT anomaly_vae_review_version_pkc PRIMARY KEY (version_num));
INSERT INTO anomaly_vae_review_version VALUES ('0001');
INSERT INTO anomaly_vae_labels (model, row_id, label, who, at_us, received_us, note)
    VALUES ('fraud', '12', 'anomaly', 'alice', 1700000000000000, 1700000000000000, 'by phone');
"""
"""Statements that make a store as the first version of this project did, with one label."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Yield the address of a database of a PostgreSQL server."""
    with postgres() as address:
        yield address


@pytest.fixture
def sqlite_store(tmp_path: Path) -> str:
    """Return the address of a SQLite database that does not exist yet."""
    return f"sqlite:///{tmp_path}/labels.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_address(request: pytest.FixtureRequest, sqlite_store: str) -> Iterator[str]:
    """Yield the address of an empty database of each kind."""
    if request.param == "sqlite":
        yield sqlite_store
        return
    server = request.getfixturevalue("postgres_server")
    name = f"labels_{os.getpid()}_{uuid4().hex[:8]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.rpartition("/")[0] + f"/{name}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def down_store() -> str:
    """Return the address of a database that does not answer, with a password."""
    return f"postgresql://bob:hunter2@127.0.0.1:{free_port()}/labels"
