"""Define what every configuration section shares."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
"""A number between 0 and 1, both excluded."""

Probability = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1, both included."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of a random number generator."""

TimeInterval = tuple[dt.datetime, dt.datetime]
"""A half-open interval of time, ``[from, to)``."""

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
"""Seconds per unit of time."""
SPAN_EXAMPLES = "a span such as 28d, 12h or 4w"
_SPAN = re.compile(r"(?:last\s+)?(\d{1,4})\s*([hdw])", re.IGNORECASE)


def canonical_span(text: str) -> str:
    """Return a span of time as a number and its unit, without ``last``.

    Raises:
        ValueError: the text is no span.

    >>> canonical_span("last 28 D"), canonical_span("4w")
    ('28d', '4w')
    """
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected {SPAN_EXAMPLES}, got '{text}'")
    return f"{int(found[1])}{found[2].lower()}"


def span_seconds(span: str) -> float:
    """Return the length in seconds of a span in its canonical form.

    >>> span_seconds("2d")
    172800.0
    """
    return float(int(span[:-1]) * UNIT_SECONDS[span[-1]])


Span = Annotated[str, AfterValidator(canonical_span)]
"""A span of time: a number of hours (h), days (d) or weeks (w), such as ``28d``."""


class Section(BaseModel):
    """A frozen section of the configuration that refuses unknown keys.

    The string literal under a field is its description in the reference, docs/configuration.md.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def check_zone(name: str | None) -> str | None:
    """Return the name of a time zone, or None.

    Raises:
        ValueError: there is no such time zone.
    """
    try:
        if name is not None:
            ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            "there is no such time zone; give a name such as Europe/Berlin or America/New_York"
        ) from None
    return name


def utc(moment: dt.datetime) -> dt.datetime:
    """Return a moment with its time zone; a moment without one is taken to be UTC.

    >>> utc(dt.datetime(2024, 1, 31))
    datetime.datetime(2024, 1, 31, 0, 0, tzinfo=datetime.timezone.utc)
    """
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
