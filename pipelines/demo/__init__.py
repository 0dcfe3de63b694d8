"""Run the whole pipeline on simulated data."""

__all__: list[str] = []
