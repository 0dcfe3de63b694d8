"""Register models, compare them and decide on promotions."""

__all__: list[str] = []
