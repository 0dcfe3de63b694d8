"""Register models, compare them and decide on promotion."""

__all__: list[str] = []
