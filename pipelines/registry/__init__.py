"""Open models by URI and list what is registered."""

__all__: list[str] = []
