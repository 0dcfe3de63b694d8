"""Create the table of labels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of the number of a row; SQLite counts only plain integers up."""


def upgrade() -> None:
    """Create the table and the index by which the newest labels are found."""
    op.create_table(
        "anomaly_vae_labels",
        sa.Column("number", NUMBER, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("row_id", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("received_us", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    columns = ["model", "row_id", "who", "at_us", "number"]
    op.create_index("anomaly_vae_labels_newest", "anomaly_vae_labels", columns)
