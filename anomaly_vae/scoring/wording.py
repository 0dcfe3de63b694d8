"""Say in words why a score is high, for the people who review a row or an image.

Reviewers read what is unusual about a row, not what its score is made of. Contributions that lower
the score, the rest and the KL term are therefore left out, and a value is compared with the usual
values of its column: those of the middle 90% of the training rows. A value within them was
unexpected only beside the other values of its row; then the sentence gives the value that the model
expected there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from anomaly_vae.data.encoding import (
    BINS_OF_CYCLE,
    WEEKDAYS,
    Binary,
    Categorical,
    Cyclic,
    EncodedColumn,
    Numeric,
    TabularEncoding,
)
from anomaly_vae.features.definition import WindowDefinition, WindowFeature
from anomaly_vae.features.wording import describe, value_text
from anomaly_vae.messages import plain_number
from anomaly_vae.scoring.detector import Explanation, RegionContribution
from anomaly_vae.scoring.modality import Encoding
from anomaly_vae.types import KNOWN_ANOMALIES

MIN_SHARE = 0.01
"""Minimum share of a contribution in all positive ones for a sentence about it."""
MAX_TEXT = 40
"""Maximum length of a value that a sentence quotes, in characters."""
MAX_LEVELS = 3
"""Maximum number of levels that `Wording.usual_values` names."""
TOGETHER = "unusual beside the other values"
"""Text about a value that is no different from the expected one."""
COMBINATION = "no single value stands out; they are unusual together"
"""Text about a row of which no column raises the score."""
DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PARTS = re.compile(r" \(\+\d+\.\d\)")
"""Parts of the score in the observed value of the line about known anomalies."""
NOTE = "; this one was "
"""Text between the expected value and the note on the observed one; see `Categorical.expected`."""


class Reason(Protocol):
    """A contribution of a detector, of an answer of the service, or of a row of batch results."""

    @property
    def feature(self) -> str:
        """Name of the raw column."""

    @property
    def observed(self) -> Any:
        """Observed value: a number, possibly as text, a text, or None if it is missing."""

    @property
    def expected(self) -> Any:
        """Expected value, in the same form."""


@dataclass(frozen=True)
class Wording:
    """The words for the columns of a model.

    >>> from anomaly_vae.scoring.detector import Contribution
    >>> amount = Numeric(name="amount", center=30, scale=20, usual=(5, 80))
    >>> wording = Wording({"amount": (amount,)})
    >>> wording.sentence(Contribution("amount", 6.0, observed=950.0, expected=28.14))
    'amount 950, usually 5 to 80'
    >>> wording.sentence(Contribution("amount", 6.0, observed=60.0, expected=9.5))
    'amount 60, where about 9.5 was expected'
    """

    parts: Mapping[str, tuple[EncodedColumn, ...]]
    """Encoded columns of each raw column; see `TabularEncoding.parts`."""
    windows: Mapping[str, WindowFeature] = field(default_factory=dict)
    """Window features by name, of which the length and the entity are said."""
    known: str = "known anomalies"
    """Name of the anomalies that the model has learned from, if it has learned from any."""

    @classmethod
    def of(cls, encoding: Encoding, data: Mapping[str, Any] = MappingProxyType({})) -> Wording:
        """Return the words for the columns of a table; images have none.

        Args:
            encoding: the encoding of the model.
            data: the section ``data`` of the configuration that the manifest records.
        """
        parts = encoding.parts if isinstance(encoding, TabularEncoding) else {}
        known = "known fraud" if "fraud" in str(data.get("label")).lower() else cls.known
        return cls(parts, {f.name: f for f in WindowDefinition.of_config(data).features}, known)

    def reasons(self, explanation: Explanation, most: int | None = None) -> tuple[str, ...]:
        """Return a sentence for each contribution or region that raises the score, largest first.

        Args:
            explanation: the explanation of a row or an image.
            most: maximum number of sentences; None for no limit.
        """
        columns, regions = (
            raising_parts(explanation.contributions),
            raising_parts(explanation.regions),
        )
        columns = (c for c in columns if c.feature != KNOWN_ANOMALIES or c.observed is not None)
        sentences = [*map(self.sentence, columns), *map(describe_region, regions)][:most]
        if explanation.contributions and not sentences:
            return (COMBINATION,)
        return tuple(sentences)

    def sentence(self, reason: Reason) -> str:
        """Return a sentence about one contribution."""
        if reason.feature == KNOWN_ANOMALIES and reason.observed is not None:
            return f"resembles {self.known}: {PARTS.sub('', reason.observed)}"
        first, *_ = parts = self.parts.get(reason.feature) or (None,)
        if reason.observed is None or reason.expected is None or first is None:
            return _compared(reason.feature, _text(reason.observed), _text(reason.expected))
        if isinstance(first, Cyclic):
            return _about_time(reason, [part for part in parts if isinstance(part, Cyclic)])
        if isinstance(first, Categorical):
            return _about_level(reason, first)
        if isinstance(first, Binary):
            expected = plain_number(round(float(reason.expected)))
            return _compared(reason.feature, _text(reason.observed), expected, "usually {}")
        return self._about_number(reason, first)

    def _about_number(self, reason: Reason, column: Numeric) -> str:
        window = self.windows.get(column.name)
        say = partial(value_text, window) if window else plain_number
        observed = say(float(reason.observed))
        subject = f"{column.name} {observed}"
        if window:
            subject = describe(window, float(reason.observed))
        if column.usual and not column.usual[0] <= float(reason.observed) <= column.usual[1]:
            ends = [say(end) for end in column.usual]
            if observed not in ends:
                return f"{subject}, usually {_span(*ends)}"
        expected = say(float(reason.expected))
        if observed == expected:
            return f"{subject}: {TOGETHER}"
        return f"{subject}, where about {expected} was expected"

    def usual_values(self, name: str) -> str:
        """Return the usual values of a raw column; empty if they are not known."""
        return ", ".join(filter(None, map(_usual, self.parts.get(name, ())[::-1])))


def describe_region(region: RegionContribution) -> str:
    """Return a sentence about a region of an image.

    >>> describe_region(RegionContribution(box=(12, 40, 30, 52), nats=8.1, share=0.34))
    'the area from x 12 to 30 and y 40 to 52, 34% of all that is unusual'
    """
    x0, y0, x1, y1 = region.box
    return (
        f"the area from x {x0} to {x1} and y {y0} to {y1}, {region.share:.0%} of all that is "
        "unusual"
    )


def raising_parts(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield the parts that raise the score, without negligible ones.

    >>> parts = [RegionContribution((0, 0, 9, 9), nats, 0.5) for nats in (4.0, 0.001, -2.0)]
    >>> [part.nats for part in raising_parts(parts)]
    [4.0]
    """
    least = MIN_SHARE * sum(part.nats for part in parts if part.nats > 0)
    return (part for part in parts if part.nats > 0 and part.nats >= least)


def _compared(name: str, observed: str, expected: str, how: str = "where {} was expected") -> str:
    return (
        f"{name} {observed}: {TOGETHER}"
        if observed == expected
        else f"{name} {observed}, {how.format(expected)}"
    )


def _text(value: Any) -> str:
    """Return a value as text on one line, cut to `MAX_TEXT` characters."""
    if value is None:
        return "missing"
    if isinstance(value, int | float):
        return plain_number(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[: MAX_TEXT + 1])
    return (f"{text[: MAX_TEXT - 3]}..." if len(text) > MAX_TEXT else text) or "(empty)"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _about_level(reason: Reason, column: Categorical) -> str:
    expected, _, note = str(reason.expected).partition(NOTE)
    if expected not in column.levels and expected in column.names:
        expected = "a rare value" if column.bands is None else f"a value {expected.strip('()')}"
    if not note and reason.observed not in column.names[1:]:
        note = "rare or never seen in training"
    subject, usual = f"{reason.feature} {_text(reason.observed)}", f"usually {expected}"
    if note:
        return f"{subject}, {note}; {usual}"
    return _compared(reason.feature, _text(reason.observed), expected, "usually {}")


# ---------------------------------------------------------------- times


def _about_time(reason: Reason, parts: Sequence[Cyclic]) -> str:
    """Name the parts of a time that are unusual, or all of them if none is.

    The expected time is not given: it is a mean over hours and weekdays, which may be far from any
    time that is common.
    """
    observed = _parts_of_time(reason.observed)
    ordered = [part for part in parts[::-1] if part.part in observed]  # the weekday before the hour
    unusual = [part for part in ordered if not _is_usual(part, observed[part.part])]
    when = " ".join(_when(part, observed) for part in unusual or ordered)
    subject = f"{reason.feature} {when}"
    if not unusual:
        return f"{subject}: {TOGETHER}"
    return f"{subject}, usually {', '.join(map(_usual, unusual))}"


def _parts_of_time(text: Any) -> dict[str, str]:
    """Split a text such as "Sun 00:02" into its weekday and its hour."""
    return {"hour" if ":" in word else "weekday": word for word in str(text).split()}


def _is_usual(part: Cyclic, text: str) -> bool:
    """Return whether a part of a time is usual, or not known to be unusual."""
    if part.usual is None:
        return True
    bins = BINS_OF_CYCLE[part.part]
    value = int(text.partition(":")[0]) if part.part == "hour" else WEEKDAYS.index(text)
    first, last = part.usual
    return (value - first) % bins <= (last - first) % bins


def _when(part: Cyclic, texts: Mapping[str, str]) -> str:
    text = texts[part.part]
    return f"at {text}" if part.part == "hour" else f"on a {DAY_NAMES[WEEKDAYS.index(text)]}"


def _usual(column: EncodedColumn) -> str:
    """Return the usual values of an encoded column; empty if they are not known."""
    if isinstance(column, Binary):
        return "0 or 1"
    if isinstance(column, Categorical):
        more = len(column.levels) - MAX_LEVELS
        names = ", ".join(map(_text, column.levels[:MAX_LEVELS]))
        return names + (f" and {more} more" if more > 0 else "")
    if column.usual is None:
        return ""
    if isinstance(column, Numeric):
        return _span(*map(plain_number, column.usual))
    first, last = column.usual
    if column.part == "hour":
        return f"{first} to {last + 1}h"
    return _span(DAY_NAMES[first], DAY_NAMES[last])
