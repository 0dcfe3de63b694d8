"""Write names and values for error messages."""

from __future__ import annotations

from collections.abc import Sequence


def shown(value: object) -> str:
    """A value as an error message quotes it, cut to a length that is safe to print."""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 40 else text[:37] + "..."


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for an error message: the first few, and how many more."""
    shown = ", ".join(f"'{name}'" for name in list(names)[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
