"""Import, export and count the labels that people give to rows."""

__all__: list[str] = []
