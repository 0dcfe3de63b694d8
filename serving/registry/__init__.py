"""Fetch models from the MLflow registry and follow their aliases."""

__all__: list[str] = []
