"""Describe the window features of entities: counts, sums and habits over the recent past."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from anomaly_vae.config.base import UNIT_SECONDS, Section

Statistic = Literal["sum", "mean", "max", "std"]
"""Statistic of a numeric column over the events in a window."""


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as 90s, 30m, 12h, 7d or 4w.

    Raises:
        ValueError: the text is no duration, or it is zero.

    >>> seconds("1h"), seconds("7d")
    (3600, 604800)
    """
    parsed = re.fullmatch(r"(\d{1,6})([smhdw])", duration)
    if not parsed or not int(parsed[1]):
        raise ValueError(f"{duration!r} is no duration above zero; write 30m, 12h, 7d or 4w")
    return int(parsed[1]) * UNIT_SECONDS[parsed[2]]


def _check_duration(duration: str) -> str:
    seconds(duration)
    return duration


Duration = Annotated[str, AfterValidator(_check_duration)]
"""A whole number with its unit: s, m, h, d or w."""


class Risk(Section):
    """Share of known anomalies among the past events of an entity."""

    label: str
    """Column that marks known anomalies, as in `data.label`; its value `data.positive` means
    anomaly."""
    delay: Duration = Field(examples=["7d"])
    """Time after which the label of an event is known; younger events are left out."""


class EntityWindows(Section):
    """Features of the past events that share the value of one column, such as a card.

    Example:
        >>> EntityWindows(over=("1h", "7d"), count=True).of
        {}
    """

    over: tuple[Duration, ...] = Field(min_length=1, examples=["[1h, 7d]"])
    """Lengths of the windows, each ending before the row, such as [1h, 7d]."""
    count: bool = False
    """Whether to count the events in each window."""
    of: dict[str, tuple[Statistic, ...]] = Field(
        default_factory=dict, examples=["{COLUMN: [sum, mean]}"]
    )
    """Numeric columns, each with its statistics over a window: sum, mean, max, std."""
    distinct: tuple[str, ...] = Field((), examples=["[COLUMN]"])
    """Columns of which to count the different values in each window."""
    since_last: bool = False
    """Whether to measure the seconds since the last event within the longest window."""
    risk: Risk | None = Field(None, examples=["{label: COLUMN, delay: 7d}"])
    """Share of known anomalies in each window, shifted into the past by the delay of the labels."""

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Columns that the features are computed of, besides the entity, each after its key."""
        return (
            *(("of", name) for name in self.of),
            *(("distinct", name) for name in self.distinct),
            *((("risk.label", self.risk.label),) if self.risk else ()),
        )

    @model_validator(mode="after")
    def _check_features(self) -> EntityWindows:
        if len({seconds(span) for span in self.over}) < len(self.over):
            raise ValueError(f"over names a length twice: {', '.join(self.over)}")
        if not (self.count or self.of or self.distinct or self.since_last or self.risk):
            raise ValueError("asks for no feature; add count: true")
        for key, names in (*self.of.items(), ("distinct", self.distinct)):
            if len(set(names)) < len(names) or (not names and key != "distinct"):
                raise ValueError(f"{key}: name at least one, and each only once")
        return self
