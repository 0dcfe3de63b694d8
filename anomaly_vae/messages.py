"""Format names and values for error messages and for the people who read results."""

from __future__ import annotations

import difflib
import math
import os
import time
from collections.abc import Iterable, Sequence

LONGEST_NAME = 100
"""Maximum length of a name that is compared or quoted, in characters."""
MOST_SUGGESTED = 4
"""Maximum number of names for which a message suggests another, which is slow."""
SIMILAR = 0.7
"""Least similarity of two names, from 0 to 1, for one to be suggested for the other."""
NOUNS = {"tabular": "rows", "image": "images"}
"""Noun for what a model scores, by kind of data."""
REPORT_SECONDS = 60.0
"""Time between two lines about the progress of work that does not write to a terminal."""
SMALLEST_PLAIN, LARGEST_PLAIN = 1e-9, 1e15
"""Range of the numbers that `plain_number` writes without an exponent."""


class Pace:
    """Decides when work whose progress goes to a file is worth another line.

    A line is due when another of ``lines`` equal parts of the work is done, and `REPORT_SECONDS`
    after the last line.

    >>> pace = Pace(lines=4)
    >>> [done for done in range(1, 11) if pace.due(done, 10)]
    [3, 5, 8, 10]
    """

    def __init__(self, lines: int = 0) -> None:
        self._lines, self._part, self._reported = lines, 0, time.monotonic()

    def due(self, done: float, total: float | None) -> bool:
        """Return whether to write a line, given the amount of work done and in all."""
        part = int(done * self._lines / total) if total else 0
        late = time.monotonic() - self._reported >= REPORT_SECONDS
        if part == self._part and not late:
            return False
        self._part, self._reported = part, time.monotonic()
        return True


def shown(value: object) -> str:
    """Return a value as error messages quote it, cut to 40 characters.

    >>> shown("neg_elbow"), shown(True), shown([1, 2])
    ("'neg_elbow'", 'true', '[1, 2]')
    """
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    text = text or (repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 40 else text[:37] + "..."


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, whose plural ends with an s.

    >>> counted(1, "rows"), counted(1200, "rows")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {noun.removesuffix('s') if count == 1 else noun}"


def plain_number(value: float) -> str:
    """Return a number with three significant digits, more before the point, and no exponent.

    There is no separator between thousands, which differs between countries. Only numbers far
    beyond any amount of money have an exponent.

    >>> [plain_number(value) for value in (0.0000123456, 3.70, 80.04, 1045.82, 12345678, -0.0)]
    ['0.0000123', '3.7', '80', '1046', '12345678', '0']
    """
    if not value:
        return "0"
    if not math.isfinite(value) or not SMALLEST_PLAIN <= abs(value) < LARGEST_PLAIN:
        return f"{value:.3g}"
    text = f"{value:.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


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


def explain_foreign(found: Iterable[str], expected: Sequence[str]) -> str:
    """Explain that none of the expected columns was found, and suggest what was meant.

    >>> explain_foreign(["Size"], ["size"])
    "none of the model's columns found; expected 'size', found 'Size'; 'Size' may mean 'size'"
    """
    quoted = [name[:LONGEST_NAME] for name in found]
    text = f"none of the model's columns found; expected {listed(expected)}, found {listed(quoted)}"
    pairs = ((name, nearest(name, expected)) for name in quoted[:MOST_SUGGESTED])
    return text + "".join(f"; '{name}' may mean '{near}'" for name, near in pairs if near)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of these names regardless of case; None if none is similar.

    >>> nearest("amount", ["TX_AMOUNT", "AMOUNT", "channel"]), nearest("city", ["amount"])
    ('AMOUNT', None)
    """
    by_key = {_simplified(known): known for known in names}
    key = _simplified(name[:LONGEST_NAME])
    close = difflib.get_close_matches(key, by_key, n=1, cutoff=SIMILAR)
    return by_key[close[0]] if close else None


def _simplified(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
