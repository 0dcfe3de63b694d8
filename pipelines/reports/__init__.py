"""Evaluate models and write reports and model cards."""

__all__: list[str] = []
