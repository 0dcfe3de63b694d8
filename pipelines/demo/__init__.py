"""Run the whole path on simulated data."""

__all__: list[str] = []
