"""Hold one module for each version of the tables, which names the version before it."""

__all__: list[str] = []
