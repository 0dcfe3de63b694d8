"""Create the tables of cases, snoozes and p-values."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of the number of a row; SQLite counts only plain integers up."""


def upgrade() -> None:
    """Create the tables, and the indexes of the orders and filters of the queue."""
    _create_cases()
    _create_snoozes()
    _create_p_values()


def _create_cases() -> None:
    op.create_table(
        "anomaly_vae_cases",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("row_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("recorded_us", sa.BigInteger, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("p_value", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double, nullable=False),
        sa.Column("alpha", sa.Double, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("entity_column", sa.Text),
        sa.Column("entity", sa.Text),
        sa.Column("amount_column", sa.Text),
        sa.Column("amount", sa.Double),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("unusual_input", sa.Text),
        sa.Column("image", sa.Text),
        sa.Column("snooze", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    for name, columns in {
        "row": ["model", "row_id"],
        "p_value": ["p_value", "number"],
        "entity": ["entity_column", "entity", "at_us"],
        "at": ["at_us"],
        "recorded": ["recorded_us"],
    }.items():
        op.create_index(f"anomaly_vae_cases_{name}", "anomaly_vae_cases", columns)


def _create_snoozes() -> None:
    op.create_table(
        "anomaly_vae_snoozes",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("entity_column", sa.Text, nullable=False),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    columns = ["entity_column", "entity", "number"]
    op.create_index("anomaly_vae_snoozes_newest", "anomaly_vae_snoozes", columns)


def _create_p_values() -> None:
    op.create_table(
        "anomaly_vae_p_values",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("version", sa.Text, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("upper", sa.Double, primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "anomaly_vae_counted",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
    )
