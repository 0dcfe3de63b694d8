"""Name the window features that a configuration asks for, and the columns they are computed of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from anomaly_vae.config.windows import EntityWindows, Statistic, seconds

Kind = Literal["count", "distinct", "since_last", "risk"] | Statistic
"""What a feature says of the events in its window."""

MICROSECONDS = 1_000_000
"""Microseconds per second."""
LARGEST = 1e150
"""Largest size of a number whose square, and sums of such squares, are finite."""


@dataclass(frozen=True)
class WindowFeature:
    """One feature of the past events of an entity.

    Example:
        >>> WindowFeature("card_count_1h", "card", "count", None, 3_600_000_000).delay
        0
    """

    name: str
    """Name of the feature's column."""
    entity: str
    """Column whose value the events share."""
    kind: Kind
    """Statistic of the events."""
    column: str | None
    """Column that the statistic is of; None for count, since_last and risk."""
    span: int
    """Length of the window, in microseconds."""
    delay: int = 0
    """Time between the end of the window and the row, in microseconds; only for risk."""


@dataclass(frozen=True)
class WindowDefinition:
    """All window features of a model, in the order of their columns.

    Args:
        windows: the windows of each entity column (`data.windows`).

    Example:
        >>> hourly = EntityWindows(over=("1h",), count=True, of={"amount": ("sum",)})
        >>> WindowDefinition({"card": hourly}).names
        ('card_count_1h', 'card_amount_sum_1h')
    """

    windows: Mapping[str, EntityWindows]

    @classmethod
    def of_config(cls, data: Mapping[str, Any]) -> WindowDefinition:
        """Return the definition in the section ``data`` of a recorded configuration.

        >>> WindowDefinition.of_config({"path": "rows.csv"}).names
        ()
        """
        windows = data.get("windows", {})
        return cls({name: EntityWindows.model_validate(w) for name, w in windows.items()})

    @cached_property
    def by_entity(self) -> Mapping[str, tuple[WindowFeature, ...]]:
        """Features of each entity, in the order of the configuration."""
        return {name: tuple(_features(name, windows)) for name, windows in self.windows.items()}

    @cached_property
    def features(self) -> tuple[WindowFeature, ...]:
        """Every feature, by entity, in the order of the configuration."""
        return tuple(feature for features in self.by_entity.values() for feature in features)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features' columns."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def entities(self) -> tuple[str, ...]:
        """Columns that name entities."""
        return tuple(self.windows)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Numeric columns that statistics are of."""
        return tuple(dict.fromkeys(name for w in self.windows.values() for name in w.of))

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Columns whose different values are counted."""
        return tuple(dict.fromkeys(name for w in self.windows.values() for name in w.distinct))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Columns of entities, and of values of which the different ones are counted."""
        return tuple(dict.fromkeys([*self.entities, *self.values]))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Columns that mark known anomalies."""
        risks = (w.risk.label for w in self.windows.values() if w.risk)
        return tuple(dict.fromkeys(risks))

    @cached_property
    def reach(self) -> Mapping[str, int]:
        """Age in microseconds up to which the features of each entity see its events."""
        return {
            entity: max(feature.span + feature.delay for feature in features)
            for entity, features in self.by_entity.items()
        }

    @cached_property
    def longest(self) -> int:
        """Age in microseconds up to which any feature sees events."""
        return max(self.reach.values())

    @cached_property
    def layout(self) -> str:
        """Digest of the entities and columns, whatever the windows.

        Definitions with one layout pack their events alike, and so can share them.
        """
        layout = {
            entity: [windows.risk and windows.risk.label, [*windows.of], [*windows.distinct]]
            for entity, windows in self.windows.items()
        }
        return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the features and the labels of risks, hexadecimal, whatever their order."""
        risks = [(entity, w.risk.label) for entity, w in self.windows.items() if w.risk]
        text = json.dumps([sorted(map(_content, self.features)), sorted(risks)])
        return hashlib.sha256(text.encode()).hexdigest()


def _content(feature: WindowFeature) -> list[str]:
    return [str(value) for value in vars(feature).values()]


def _features(entity: str, windows: EntityWindows) -> Iterator[WindowFeature]:
    for over in windows.over:
        span = seconds(over) * MICROSECONDS
        if windows.count:
            yield WindowFeature(f"{entity}_count_{over}", entity, "count", None, span)
        for column, statistics in windows.of.items():
            for kind in statistics:
                name = f"{entity}_{column}_{kind}_{over}"
                yield WindowFeature(name, entity, kind, column, span)
        for column in windows.distinct:
            name = f"{entity}_{column}_distinct_{over}"
            yield WindowFeature(name, entity, "distinct", column, span)
        if windows.risk:
            delay = seconds(windows.risk.delay) * MICROSECONDS
            yield WindowFeature(f"{entity}_risk_{over}", entity, "risk", None, span, delay)
    if windows.since_last:
        span = max(map(seconds, windows.over)) * MICROSECONDS
        yield WindowFeature(f"{entity}_since_last", entity, "since_last", None, span)
