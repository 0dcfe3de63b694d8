"""Format names and values for error messages."""

from __future__ import annotations

import os
from collections.abc import Sequence


def shown(value: object) -> str:
    """Return a value as error messages quote it, cut to 40 characters.

    >>> shown("neg_elbow"), shown(True), shown([1, 2])
    ("'neg_elbow'", 'true', '[1, 2]')
    """
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 40 else text[:37] + "..."


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text, with escapes for bytes that are not UTF-8.

    >>> printable(os.fsdecode(b"caf\xe9.csv"))
    'caf\\xe9.csv'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names as error messages list them: the first few, and how many more.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    >>> listed([])
    'nothing'
    """
    shown = ", ".join(f"'{name}'" for name in list(names)[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
