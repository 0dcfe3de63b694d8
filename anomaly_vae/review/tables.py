"""Define the tables of labels and cases, and bring a database to their present version."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import BigInteger, Column, Connection, Double, Integer, MetaData, Table, Text

from anomaly_vae.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
"""Folder of the migrations, in the form of alembic."""
VERSION_TABLE = "anomaly_vae_review_version"
"""Table with the version of the others; MLflow keeps its own in the same database."""

MIGRATING = threading.Lock()
"""Lock of alembic's operations, which belong to the whole process."""

METADATA = MetaData()
"""Description of all tables."""


def _number() -> Column[int]:
    return Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


LABELS = Table(
    "anomaly_vae_labels",
    METADATA,
    _number(),
    Column("model", Text, nullable=False),
    Column("row_id", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
)
"""Labels in the order of their arrival; times are in microseconds since 1970. Rows never change."""

CASES = Table(
    "anomaly_vae_cases",
    METADATA,
    _number(),
    Column("key", Text, nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("row_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("recorded_us", BigInteger, nullable=False),
    Column("score", Double, nullable=False),
    Column("p_value", Double, nullable=False),
    Column("threshold", Double, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("unit", Text, nullable=False),
    Column("entity_column", Text),
    Column("entity", Text),
    Column("amount_column", Text),
    Column("amount", Double),
    Column("fields", Text, nullable=False),
    Column("reasons", Text, nullable=False),
    Column("unusual_input", Text),
    Column("image", Text),
    Column("snooze", BigInteger),
)
"""Cases in the order of their arrival; only `snooze` ever changes, and old rows are deleted."""

SNOOZES = Table(
    "anomaly_vae_snoozes",
    METADATA,
    _number(),
    Column("entity_column", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
"""Snoozes in the order of their arrival; the newest of an entity counts. Rows never change."""

P_VALUES = Table(
    "anomaly_vae_p_values",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("upper", Double, primary_key=True),
    Column("rows", BigInteger, nullable=False),
)
"""Numbers of scored rows by day (days since 1970) and by the upper end of a bin of p-values."""

COUNTED = Table(
    "anomaly_vae_counted",
    METADATA,
    Column("source", Text, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
)
"""Names of batches of p-values that are counted already."""

GUARANTEES = Table(
    "anomaly_vae_guarantees",
    METADATA,
    _number(),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
)
"""States of guarantees in the order of their beginning. Rows never change."""

logging.getLogger("alembic.runtime").setLevel(logging.WARNING)  # else some lines per use


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
