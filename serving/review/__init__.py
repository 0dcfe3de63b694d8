"""Write labels to the store, apart from scoring."""

__all__: list[str] = []
