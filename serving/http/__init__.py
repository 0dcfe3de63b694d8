"""Parse HTTP, limit requests and check tokens."""

__all__: list[str] = []
