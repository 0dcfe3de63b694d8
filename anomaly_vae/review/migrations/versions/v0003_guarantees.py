"""Create the table of the states of guarantees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of the number of a row; SQLite counts only plain integers up."""


def upgrade() -> None:
    """Create the table and the index by which the states of a model are found."""
    op.create_table(
        "anomaly_vae_guarantees",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    columns = ["model", "number"]
    op.create_index("anomaly_vae_guarantees_model", "anomaly_vae_guarantees", columns)
