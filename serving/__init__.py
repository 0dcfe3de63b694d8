"""Serve detectors over HTTP."""

__all__: list[str] = []
