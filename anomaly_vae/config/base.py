"""Define what every configuration section shares."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
"""A number between 0 and 1, both excluded."""

Probability = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1, both included."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed of a random number generator."""

TimeInterval = tuple[dt.datetime, dt.datetime]
"""A half-open interval of time, ``[from, to)``."""


class Section(BaseModel):
    """A frozen section of the configuration that refuses unknown keys.

    The string literal under a field is its description in the reference, docs/configuration.md.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def utc(moment: dt.datetime) -> dt.datetime:
    """Return a moment with its time zone; a moment without one is taken to be UTC.

    >>> utc(dt.datetime(2024, 1, 31))
    datetime.datetime(2024, 1, 31, 0, 0, tzinfo=datetime.timezone.utc)
    """
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
