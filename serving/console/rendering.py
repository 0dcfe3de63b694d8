"""Render the pages of the console; every value is escaped."""

from __future__ import annotations

import datetime as dt
import re
import time
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from anomaly_vae.messages import plain_number
from serving.console import assets, charts
from serving.paths import CONSOLE

MINUTE, HOUR, DAY = 60, 3600, 86_400
"""Lengths in seconds."""
PARTS_AT_ONCE = 32
"""Number of parts of a page that are rendered before other threads may work."""
NEAR_ZERO = 1e-4
"""Absolute value below which six digits would take an exponent."""
LONG_WORD = 16
"""Number of characters from which on a word may be broken over lines."""
WORD_PARTS = re.compile(r"(?<=[_./-])(?=.)")
"""Pattern of the places where a long word may be broken."""
NO_VALUE = "–"
"""Sign for a value that is missing."""


@cache
def environment() -> Environment:
    """Return the templates, with autoescape; a name that a page lacks is an error."""
    made = Environment(
        loader=PackageLoader("serving.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "moment": moment,
        "day": day,
        "ago": ago,
        "value": value,
        "cell": cell,
        "brief": brief,
        "breakable": breakable,
    }
    made.globals |= {"asset": assets.address, "base": CONSOLE, "few_days": charts.FEW_DAYS}
    return made


def render(template: str, **values: Any) -> str:
    """Render a template, and let other threads work in between, as those that score must not wait.

    Python itself would let them wait for `serving.server.SWITCH_SECONDS` each time.
    """
    parts = []
    for number, part in enumerate(environment().get_template(template).generate(**values)):
        parts.append(part)
        if number % PARTS_AT_ONCE == 0:
            time.sleep(0)
    return "".join(parts)


def number(given: float | None) -> str:
    """Return a number with three significant digits.

    >>> number(0.000414), number(None)
    ('0.000414', '–')
    """
    return NO_VALUE if given is None else plain_number(given)


def count(given: float | None) -> str:
    """Return a whole number with thin spaces between thousands, which no country misreads.

    >>> count(1234567)
    '1\u202f234\u202f567'
    """
    return NO_VALUE if given is None else f"{round(given):,}".replace(",", "\u202f")


def percent(given: float | None) -> str:
    """Return a share as per cent.

    >>> percent(0.1234), percent(0.0007), percent(1.0)
    ('12.3%', '0.07%', '100%')
    """
    return NO_VALUE if given is None else f"{plain_number(100 * given)}%"


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def moment(seconds: float | None) -> str:
    """Return a time, given in seconds since 1970, in UTC.

    >>> moment(1.7e9)
    '2023-11-14 22:13'
    """
    return NO_VALUE if seconds is None else f"{_time(seconds):%Y-%m-%d %H:%M}"


def day(seconds: float | None) -> str:
    """Return the day of a time, given in seconds since 1970, in UTC.

    >>> day(1.7e9)
    '2023-11-14'
    """
    return NO_VALUE if seconds is None else f"{_time(seconds):%Y-%m-%d}"


def ago(seconds: float | None) -> str:
    """Return how long ago a time was, given in seconds since 1970.

    >>> ago(time.time() - 7200)
    '2 h ago'
    """
    if seconds is None:
        return "never"
    age = time.time() - seconds
    if age < MINUTE:
        return "just now"
    for unit, length in (("days", DAY), ("h", HOUR), ("min", MINUTE)):
        if age >= 2 * length or unit == "min":
            return f"{age // length:.0f} {unit} ago"
    raise AssertionError("a minute has passed")


def cell(given: Any) -> str:
    """Return a value of a table as text, with six digits, and three of those near zero.

    >>> cell(0.00042194092), cell(0.0000169736), cell(10814), cell("shop")
    ('0.000421941', '0.000017', '10814', 'shop')
    """
    if not isinstance(given, float):
        return value(given)
    return plain_number(given) if abs(given) < NEAR_ZERO else f"{given:.6g}"


def brief(given: Any) -> str:
    """Return a value as reasons show it: numbers with three digits.

    >>> brief(9.02353e-05), brief(3), brief("shop")
    ('0.0000902', '3', 'shop')
    """
    return plain_number(given) if isinstance(given, float) else value(given)


def value(given: Any) -> str:
    """Return a value of a record as text.

    >>> value(None), value(True), value(12.50), value("shop")
    ('–', 'true', '12.5', 'shop')
    """
    if given is None:
        return NO_VALUE
    if isinstance(given, bool):
        return str(given).lower()
    return f"{given:.10g}" if isinstance(given, float) else str(given)


def breakable(given: str) -> Markup:
    """Return a text, escaped, whose long words may be broken after the marks in them.

    >>> breakable("TERMINAL_ID_RISK 0.2 <b>")
    Markup('TERMINAL_<wbr>ID_<wbr>RISK 0.2 &lt;b&gt;')
    """
    words = (
        Markup("<wbr>").join(WORD_PARTS.split(word)) if len(word) >= LONG_WORD else word
        for word in given.split(" ")
    )
    return Markup(" ").join(words)
