"""Make random streams of events with ties, missing values, duplicates and disorder."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from anomaly_vae.config.windows import EntityWindows, Risk
from anomaly_vae.features import WindowDefinition, WindowInputs
from anomaly_vae.features.inputs import Event
from anomaly_vae.features.store import WindowStore
from anomaly_vae.features.store.store import Label
from tests.support import window_oracle

HOUR, DAY = 3_600_000_000, 86_400_000_000
START = 1_533_081_600_000_000
"""The first of August 2018, in microseconds."""
WINDOWS = {
    "CUSTOMER_ID": EntityWindows(
        over=("1h", "1d", "7d"),
        count=True,
        of={"TX_AMOUNT": ("sum", "mean", "max", "std")},
        distinct=("TERMINAL_ID",),
        since_last=True,
    ),
    "TERMINAL_ID": EntityWindows(
        over=("1d", "2d"), count=True, risk=Risk(label="TX_FRAUD", delay="1d")
    ),
}
INPUTS = WindowInputs(
    WindowDefinition(WINDOWS), time="TX_DATETIME", id="TRANSACTION_ID", horizon=DAY
)


def stream(count: int, seed: int, *, ids: bool = True, disorder: int = 0) -> list[Event]:
    """Return events of three days in the order of their arrival, some with equal times."""
    draw = random.Random(seed)
    times = sorted(START + draw.randrange(3 * DAY) // HOUR * (HOUR // 2) for _ in range(count))
    events = [_event(draw, number, time, ids) for number, time in enumerate(times)]
    delays = {id(event): draw.randrange(disorder + 1) for event in events}
    return sorted(events, key=lambda event: (event.time or 0) + delays[id(event)])


def _event(draw: random.Random, number: int, time: int, ids: bool) -> Event:
    keys = {
        "CUSTOMER_ID": draw.choice(["1", "2", "3", None]),
        "TERMINAL_ID": draw.choice(["1", "a", None]),
    }
    amount = math.nan if draw.random() < 0.1 else draw.choice([5.0, 0.1, draw.random() * 1e6])
    marks = frozenset({"TX_FRAUD"} if draw.random() < 0.3 else ())
    return Event(str(number) if ids else None, time, keys, {"TX_AMOUNT": amount}, marks)


@dataclass
class Replay:
    """A store, and the events that have arrived in it."""

    store: WindowStore
    arrived: list[window_oracle.Event] = field(default_factory=list)

    def score(self, rows: Sequence[Event]) -> None:
        """Compute the features of rows that arrive together, check each, and record the rows."""
        windows = self.store.features(rows)
        for row, found in zip(rows, windows.values.tolist(), strict=True):
            check(found, expected(self.store.inputs, row, self.arrived), row)
            self.arrived.append(as_oracle(row))
        self.store.record(windows.events)

    def label(self, one: str, is_anomaly: bool, at: int) -> None:
        """Label an event in the store and among the arrived ones."""
        assert self.store.label([Label(one, is_anomaly, at)]) == [True]
        for event in self.arrived:
            if event.id == one:
                object.__setattr__(event, "known_at", at if is_anomaly else None)


def as_oracle(event: Event) -> window_oracle.Event:
    """Return an event as the oracle reads it; its label is known after the delay."""
    numbers = {name: None if math.isnan(v) else v for name, v in event.numbers.items()}
    known = event.time + DAY if event.anomalous and event.time is not None else None
    return window_oracle.Event(event.id, event.time, dict(event.keys), numbers, known)


def expected(
    inputs: WindowInputs, row: Event, arrived: Sequence[window_oracle.Event]
) -> list[float | None]:
    """Return the features of a row by the oracle, in the order of their columns."""
    features = window_oracle.expected_features(inputs.definition, as_oracle(row), arrived)
    return [features[name] for name in inputs.definition.names]


def check(found: Sequence[float], wanted: Sequence[float | None], row: Any) -> None:
    """Check features: sums to 1e-9 of their size, everything else exactly."""
    for name, value, truth in zip(INPUTS.definition.names, found, wanted, strict=True):
        if truth is None:
            assert math.isnan(value), (name, row)
        else:
            assert math.isclose(value, truth, rel_tol=1e-9, abs_tol=1e-9), (name, row)


def batches(events: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    """Yield events in groups."""
    for start in range(0, len(events), size):
        yield events[start : start + size]
