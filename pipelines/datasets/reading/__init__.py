"""Read tables from files of each format."""

__all__: list[str] = []
