"""Hold the migrations of label stores, in the form of alembic."""

__all__: list[str] = []
