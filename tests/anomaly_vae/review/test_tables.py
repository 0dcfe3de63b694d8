"""Migrations: old stores stay readable, and newer ones are refused."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import inspect

from anomaly_vae.errors import StoreError
from anomaly_vae.review.database import open_engine, parse_address, reading, writing
from anomaly_vae.review.store import LabelStore
from anomaly_vae.review.tables import METADATA, MIGRATIONS, VERSION_TABLE, is_current, migrate
from tests.support.label_stores import FIRST_VERSION

NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "next", "0003"


def upgrade():
    op.add_column("anomaly_vae_labels", sa.Column("source", sa.Text))
"""


@pytest.fixture
def engine(store_address):
    engine = open_engine(parse_address(store_address))
    yield engine
    engine.dispose()


@pytest.fixture
def old_store(sqlite_store):
    with closing(sqlite3.connect(sqlite_store.removeprefix("sqlite:///"))) as connection:
        connection.executescript(FIRST_VERSION)
    return sqlite_store


def test_the_tables_are_those_that_the_migrations_make(engine):
    with writing(engine) as connection:
        migrate(connection)
        migrate(connection)  # does nothing more
        assert is_current(connection)
    with reading(engine) as connection:
        found = inspect(connection)
        assert set(found.get_table_names()) == {*METADATA.tables, VERSION_TABLE}
        for name, table in METADATA.tables.items():
            columns = {one["name"]: one["nullable"] for one in found.get_columns(name)}
            assert columns == {column.name: bool(column.nullable) for column in table.columns}


def test_a_migration_that_fails_leaves_nothing_behind(engine, tmp_path):
    broken = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, broken)
    text = NEXT.replace("anomaly_vae_labels", "no_such_table")
    (broken / "versions/v9999_next.py").write_text(text)
    with pytest.raises(StoreError, match="no_such_table"), writing(engine) as connection:
        migrate(connection, broken)
    with reading(engine) as connection:
        assert inspect(connection).get_table_names() == []


def test_a_store_of_the_first_version_is_read_and_written(old_store):
    with LabelStore(old_store) as store:
        (label,) = store.newest()
    assert (label.id, label.label, label.who, label.note) == ("12", "anomaly", "alice", "by phone")
    assert label.at == 1.7e9


def test_an_old_store_is_brought_up_to_date_and_keeps_its_labels(old_store, tmp_path):
    newer = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, newer)
    (newer / "versions/v9999_next.py").write_text(NEXT)
    engine = open_engine(parse_address(old_store))
    with writing(engine) as connection:
        assert is_current(connection, newer) is False
        migrate(connection, newer)
        assert is_current(connection, newer)
        rows = connection.exec_driver_sql("SELECT row_id, source FROM anomaly_vae_labels").all()
    assert [tuple(row) for row in rows] == [("12", None)]
    engine.dispose()
    with LabelStore(old_store) as store, pytest.raises(StoreError, match=r"newer .* update this"):
        store.add([])
    with LabelStore(old_store) as store, pytest.raises(StoreError, match=r"newer .* update this"):
        store.stats()
