"""Support the scoring protocols of other model servers."""

__all__: list[str] = []
