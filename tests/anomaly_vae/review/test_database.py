"""Addresses of databases, their drivers and their errors."""

import sqlite3
import sys

import pytest

from anomaly_vae.errors import ConfigError, StoreError
from anomaly_vae.review.database import is_absent, open_engine, parse_address, reading, shown


@pytest.mark.parametrize(
    "address",
    ["", "labels.db", "mysql://bob:hunter2@db/x", "sqlite://", "sqlite:///", "sqlite:///:memory:",
     "sqlite:///file:labels?mode=memory&uri=true", "sqlite+aiosqlite:///labels.db"],
)  # fmt: skip
def test_other_addresses_are_refused(address):
    with pytest.raises(ConfigError, match=r"sqlite:///labels\.db") as caught:
        parse_address(address)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_the_driver_need_not_be_named(scheme):
    url = parse_address(f"{scheme}://bob:hunter2@db:5433/labels")
    assert url.drivername == "postgresql+psycopg2"
    assert shown(url) == "postgresql://db:5433/labels"


def test_a_driver_that_is_not_installed_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ConfigError, match=r"psycopg2.*pip install 'anomaly-vae\[review\]'"):
        open_engine(parse_address("postgresql://db/labels"))


def test_the_extra_is_named_where_sqlalchemy_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("anomaly_vae.review.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigError, match=r"sqlalchemy.*pip install 'anomaly-vae\[review\]'"):
        from anomaly_vae.review import LabelStore  # noqa: F401


def test_a_server_that_is_down_is_one_line_without_the_password(down_store):
    engine = open_engine(parse_address(down_store))
    with pytest.raises(StoreError, match="refused") as caught, reading(engine):
        pass
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "bob" not in str(caught.value)


def test_an_absent_file_is_not_created_by_a_look(tmp_path):
    url = parse_address(f"sqlite:///{tmp_path}/labels.db")
    assert is_absent(url)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "labels.db").write_text("id,label\n" * 100)
    engine = open_engine(parse_address(f"sqlite:///{tmp_path}/labels.db"))
    with pytest.raises(StoreError, match=r"labels\.db: file is not a database"), reading(engine):
        pass


def test_sqlite_lets_readers_and_a_writer_work_at_once(tmp_path):
    engine = open_engine(parse_address(f"sqlite:///{tmp_path}/labels.db"))
    with reading(engine):
        pass
    engine.dispose()
    other = sqlite3.connect(tmp_path / "labels.db")
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
