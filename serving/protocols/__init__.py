"""Answer the scoring requests of other servers' clients."""

__all__: list[str] = []
