"""Define the table of labels, and bring a database to the present version of it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, Text

from anomaly_vae.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
"""Folder of the migrations, in the form of alembic."""
VERSION_TABLE = "anomaly_vae_review_version"
"""Table with the version of the others; MLflow keeps its own in the same database."""

MIGRATING = threading.Lock()
"""Lock of alembic's operations, which belong to the whole process."""

LABELS = Table(
    "anomaly_vae_labels",
    MetaData(),
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("model", Text, nullable=False),
    Column("row_id", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)
"""Labels in the order of their arrival; times are in microseconds since 1970. Rows never change."""

logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)  # else a line per use


def is_current(connection: Connection, folder: Path = MIGRATIONS) -> bool | None:
    """Return whether a database has the present version of its tables; None if it has none.

    Raises:
        StoreError: a newer version of this project wrote it.
    """
    scripts, found = ScriptDirectory(str(folder)), _context(connection).get_current_revision()
    if found is None:
        return None
    try:
        return bool(scripts.get_revision(found).is_head)
    except CommandError:
        reason = f"a newer version of anomaly-vae wrote the label store (its version is '{found}')"
        raise StoreError(f"{reason}; update this one") from None


def migrate(connection: Connection, folder: Path = MIGRATIONS) -> None:
    """Run the migrations that a database lacks; the caller holds a lock and ends the transaction.

    Raises:
        StoreError: a newer version of this project wrote it.
    """
    if is_current(connection, folder):
        return
    context, scripts = _context(connection), ScriptDirectory(str(folder))
    pending = list(scripts.iterate_revisions("head", context.get_current_revision() or "base"))
    for script in reversed(pending):
        with MIGRATING, Operations.context(context):
            script.module.upgrade()
        context.stamp(scripts, script.revision)


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
