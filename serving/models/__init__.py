"""Load detectors and hold those that are served."""

__all__: list[str] = []
