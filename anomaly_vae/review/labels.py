"""Define labels, the limits on their texts, and what is known about them together."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown

__all__ = ["CurrentLabel", "Label", "LabelStats"]

Verdict = Literal["anomaly", "normal", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""Words for the verdicts."""
MAX_NAME = 200
"""Maximum length of ids and of the names of models and reviewers, in characters."""
MAX_NOTE = 2000
"""Maximum length of notes, in characters."""
MAX_CLOCK_DIFFERENCE = 300.0
"""Maximum time by which a verdict may lie in the future, for clocks that differ, in seconds."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Pattern of characters that no name contains."""
NOTE_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Pattern of characters that no note contains; tabs and line ends are allowed."""


@dataclass(frozen=True, slots=True)
class Label:
    """A verdict of a reviewer on a row; `of` checks its parts.

    ``at`` is the time of the verdict in seconds since 1970; None means now.

    >>> Label.of("fraud", 12.0, "anomaly", "alice", note="card stolen")
    Label(model='fraud', id='12', label='anomaly', who='alice', at=None, note='card stolen')
    """

    model: str
    id: str
    label: Verdict
    who: str
    at: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        model: str,
        row: object,
        label: str,
        who: str,
        at: float | None = None,
        note: str | None = None,
    ) -> Self:
        """Check the parts of a label.

        Args:
            model: name of the model that scored the row.
            row: id of the row; 12, 12.0 and "12" are the same id.
            label: ``anomaly``, ``normal`` or ``unsure``.
            who: name of the reviewer.
            at: time of the verdict in seconds since 1970; None means now.
            note: reason for the verdict.

        Raises:
            DataError: a part is missing, too long or not a text; ``column`` names it.

        >>> Label.of("fraud", "12", "maybe", "alice")
        Traceback (most recent call last):
        anomaly_vae.errors.DataError: expected anomaly, normal or unsure, got 'maybe'
        """
        if label not in VERDICTS:
            raise _fault("label", f"expected anomaly, normal or unsure, got {shown(label)}")
        return cls(
            check_name("model", model),
            check_name("id", level_name(row) or ""),
            label,
            check_name("who", who),
            _check_time(at),
            check_note(note or ""),
        )


def check_name(field: str, text: str) -> str:
    """Return a name if it is one: 1 to `MAX_NAME` characters, none of them a control character.

    Raises:
        DataError: it is none; ``column`` is ``field``.
    """
    if not text.strip():
        raise _fault(field, "it is empty")
    if len(text) > MAX_NAME:
        raise _fault(field, f"it has {len(text):,} characters; at most {MAX_NAME} are kept")
    if CONTROL.search(text):
        raise _fault(field, "it contains control characters; remove them")
    return text


def check_note(text: str, field: str = "note") -> str:
    """Return a note if it is short enough and free of control characters.

    Raises:
        DataError: it is not; ``column`` is ``field``.
    """
    if len(text) > MAX_NOTE:
        raise _fault(field, f"it has {len(text):,} characters; at most {MAX_NOTE} are kept")
    if NOTE_CONTROL.search(text):
        raise _fault(field, "it contains control characters; remove them")
    return text


def _check_time(at: float | None) -> float | None:
    if at is not None and at > time.time() + MAX_CLOCK_DIFFERENCE:
        reason = "the time lies in the future; a time without a zone is UTC, so add its zone, as in"
        raise _fault("at", f"{reason} 2024-01-31T12:00:00+01:00")
    return at


def _fault(field: str, reason: str) -> DataError:
    return DataError(reason, column=field)


@dataclass(frozen=True, slots=True)
class CurrentLabel:
    """The label of a row that counts: the newest of all reviewers.

    ``at`` is in seconds since 1970. ``conflicts`` has the newest verdict of each other reviewer who
    disagrees, by reviewer.

    >>> CurrentLabel("fraud", "12", "normal", "bob", 1.7e9, "", {"alice": "anomaly"}).conflicts
    {'alice': 'anomaly'}
    """

    model: str
    id: str
    label: Verdict
    who: str
    at: float
    note: str
    conflicts: Mapping[str, Verdict]


@dataclass(frozen=True, slots=True)
class LabelStats:
    """Numbers of labels in a store.

    ``labels`` counts all that were ever stored, ``verdicts`` the ids by the verdict that counts,
    ``conflicts`` the ids on which reviewers disagree, ``reviewers`` the labels of each reviewer.
    ``oldest`` and ``newest`` are the times of the first and last verdict, in seconds since 1970;
    None if there are none.

    >>> LabelStats(3, {"anomaly": 1, "normal": 1, "unsure": 0}, 1, {"alice": 3}, 1.0, 2.0).ids
    2
    """

    labels: int
    verdicts: Mapping[str, int]
    conflicts: int
    reviewers: Mapping[str, int]
    oldest: float | None
    newest: float | None

    @property
    def ids(self) -> int:
        """Number of ids with a label."""
        return sum(self.verdicts.values())
