"""Hold the models that are served."""

__all__: list[str] = []
