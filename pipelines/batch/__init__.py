"""Score files into a folder of results."""

__all__: list[str] = []
