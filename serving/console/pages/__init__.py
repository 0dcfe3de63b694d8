"""Pages of the console, each with its requests and templates."""

__all__: list[str] = []
