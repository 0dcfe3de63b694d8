"""Answer everything but scoring: models, health, metrics and administration."""

__all__: list[str] = []
