"""Compare a challenger with the champion and promote it."""

__all__: list[str] = []
