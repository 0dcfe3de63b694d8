"""Provide MLflow registries on SQLite, as copies of one migrated database."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.db import utils as db_utils
from mlflow.tracking._tracking_service import utils as tracking
from sqlalchemy import Engine, event

from anomaly_vae.config import Config, validate_config
from anomaly_vae.lifecycle.registry import Registry
from pipelines.registry.frozen_test import champions_test
from tests.support.paths import shared_folder

DATABASE = "mlflow.db"
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that contain absolute paths."""
CREATE_ENGINE = db_utils.create_sqlalchemy_engine
"""MLflow's function, which `migrated` replaces by `quick_engine`."""


@cache
def _first_engine() -> Engine:
    """Return an engine, connected once, whose dialect and compiled statements all others use."""
    engine: Engine = CREATE_ENGINE("sqlite://")
    engine.connect().close()
    return engine


def quick_engine(uri: str) -> Engine:
    """Create an engine of MLflow's; on SQLite it compiles no statement anew, nor waits for disks.

    A test with a database of its own would otherwise compile all of MLflow's statements.
    """
    engine: Engine = CREATE_ENGINE(uri)
    if engine.dialect.name != "sqlite":
        return engine
    first = _first_engine()
    engine.dialect = engine.pool._dialect = first.dialect
    engine._compiled_cache = first._compiled_cache
    event.listen(engine, "connect", _do_not_wait)
    return engine


def _do_not_wait(connection: sqlite3.Connection, _: object) -> None:
    """Go on before the disk has what was written; of a file that is no database MLflow tells."""
    with suppress(sqlite3.DatabaseError):
        connection.execute("PRAGMA synchronous = OFF").close()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database; parallel workers share one, as migrating takes seconds."""
    # Each store reads all of MLflow's migrations for the number of the last one.
    db_utils._get_latest_schema_revision = cache(db_utils._get_latest_schema_revision)
    db_utils.create_sqlalchemy_engine = quick_engine
    shared = shared_folder(tmp_path_factory)
    path = shared / "template.db"
    if not path.exists():
        mine = shared / f"{uuid.uuid4().hex}.db"
        Registry(f"sqlite:///{mine}").models()
        mine.rename(path)  # may replace an equal one of another worker
    return path


@pytest.fixture
def place(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a temporary working folder with an empty registry, and return it."""
    monkeypatch.chdir(tmp_path)
    use_registry(migrated, tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def registry(place: Path) -> Registry:
    """Return the empty registry of the working folder."""
    return Registry()


def use_registry(migrated: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the database into ``folder`` and set it as the tracking URI."""
    shutil.copy(migrated, folder / DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / DATABASE}")


def copy_registry(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy a folder with a registry, point the copy at its own artifacts, and change to it."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    tracking._artifact_repos_cache.clear()  # MLflow remembers where the artifacts of a run were
    with closing(sqlite3.connect(target / DATABASE)) as database, database:
        for table, column in PLACES:
            change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(change, (str(source), str(target)))
    monkeypatch.chdir(target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{target / DATABASE}")


def frozen_rows(registry: Registry, name: str) -> Any:
    """Return the rows of the frozen test split of a model; None before its first promotion."""
    test = champions_test(registry, name)
    return test.read(registry) if test else None


def changed(config: Config, **changes: Any) -> Config:
    """Return the configuration with some keys, given as ``section__key``, set to other values."""
    content = config.model_dump()
    for name, value in changes.items():
        *sections, key = name.split("__")
        at = content
        for section in sections:
            at = at[section]
        at[key] = value
    return validate_config(content)
