"""Define all routes except scoring: models, health, metrics and administration."""

__all__: list[str] = []
