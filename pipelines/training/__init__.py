"""Train and calibrate a model from a configuration."""

__all__: list[str] = []
