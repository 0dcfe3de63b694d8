"""Define what every configuration section shares."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


TimeInterval = tuple[dt.datetime, dt.datetime]


def utc(moment: dt.datetime) -> dt.datetime:
    """The moment with a zone; one without is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


Probability = Annotated[float, Field(ge=0, le=1)]
