"""Define cases, snoozes and filters, and the limits on what a case holds."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.review.labels import CONTROL, MAX_NAME, CurrentLabel, check_name, check_note

__all__ = ["Case", "CaseFilter", "CaseReason", "CaseRecord", "Snooze"]

Kind = Literal["flagged", "sample"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Reasons for which a row becomes a case: it was flagged, or drawn at random from the others."""
Status = Literal["open", "decided", "snoozed"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""States of a case."""
Order = Literal["p_value", "amount", "entity", "day"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""Orders of the queue: lowest p-value, largest amount, entity by name, newest time first."""

MAX_FIELDS = 200
"""Maximum number of fields of a case."""
MAX_FIELDS_LENGTH = 20_000
"""Maximum length of all fields of a case together, in characters; further fields are left out."""
MAX_TEXT = 500
"""Maximum length of a text in a field or a reason, in characters; longer ones are cut."""
MAX_REASONS = 20
"""Maximum number of reasons of a case."""
MAX_SECONDS = 1e11
"""Latest time of a case, in seconds since 1970; the year 5138."""
SECONDS_PER_DAY = 86_400
Cell = str | int | float | bool | None
"""Value of a field."""


@dataclass(frozen=True, slots=True)
class CaseReason:
    """A part of the score of a row: what was observed and expected, in numbers and as a sentence.

    ``amount`` is the part of the score in the unit of the case.

    >>> CaseReason("amount", 6.0, 950.0, 28.1, "amount 950, usually 5 to 80").feature
    'amount'
    """

    feature: str
    amount: float
    observed: Cell
    expected: Cell
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scored row for people to review; `Case.of` cuts and cleans its parts.

    Times are in seconds since 1970: ``at`` is that of the event, or of scoring if the data have
    none. ``kind`` is ``flagged``, or ``sample`` for one drawn at random from the rows that were not
    flagged. ``unit`` is that of ``score``, ``threshold`` and the reasons. ``image`` names the
    folder of a kept scan, with ``scan.png``, ``expected.png`` and ``heatmap.png``. ``version`` is
    empty for a model from a folder.

    >>> case = Case.of(model="fraud", row=12, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01)
    >>> case.row_id, case.kind, case.snooze
    ('12', 'flagged', None)
    """

    model: str
    version: str
    row_id: str
    kind: Kind
    at: float
    recorded_at: float
    score: float
    p_value: float
    threshold: float
    alpha: float
    unit: str = "nats"
    entity_column: str | None = None
    entity: str | None = None
    amount_column: str | None = None
    amount: float | None = None
    fields: Mapping[str, Cell] = field(default_factory=dict)
    reasons: tuple[CaseReason, ...] = ()
    unusual_input: str | None = None
    image: str | None = None
    snooze: int | None = None
    """Number of the snooze that keeps the case out of the queue; None if there is none."""

    @classmethod
    def of(
        cls,
        *,
        model: str,
        row: object,
        score: float,
        p_value: float,
        threshold: float,
        alpha: float,
        version: str | None = None,
        kind: Kind = "flagged",
        at: float | None = None,
        recorded_at: float | None = None,
        unit: str = "nats",
        entity_column: str | None = None,
        entity: object = None,
        amount_column: str | None = None,
        amount: object = None,
        fields: Mapping[str, Any] | None = None,
        reasons: Sequence[CaseReason] = (),
        unusual_input: str | None = None,
        image: str | None = None,
    ) -> Self:
        """Create a case; texts that are too long are cut, and control characters replaced.

        Args:
            model: name of the model.
            row: id of the row. Without one the case gets a name made from its contents and its
                time, so that the same row is the same case.
            score: score of the row.
            p_value: p-value of the row.
            threshold: threshold that the score was compared with.
            alpha: false positive rate that the model is calibrated for.
            version: version of the model; None for a model from a folder.
            kind: why the row becomes a case.
            at: time of the event in seconds since 1970; None or NaN for ``recorded_at``.
            recorded_at: time of scoring in seconds since 1970; None for now.
            unit: unit of the score.
            entity_column: column that names the card, customer or machine of the row.
            entity: value in that column.
            amount_column: column by which the queue can be ordered.
            amount: value in that column.
            fields: values to keep, by column.
            reasons: why the score is high, the most important first.
            unusual_input: why the row is unlike the training data.
            image: name of the folder of a kept scan.
        """
        recorded_at = _clipped(time.time() if recorded_at is None else recorded_at)
        at = recorded_at if at is None or not math.isfinite(at) else _clipped(at)
        kept = clean_fields(fields or {})
        entity_name = clean_name(entity)
        return cls(
            model=clean(model, MAX_NAME),
            version=clean(version or "", MAX_NAME),
            row_id=clean_name(row) or _name_of(kept, score, at),
            kind=kind,
            at=at,
            recorded_at=recorded_at,
            score=float(score),
            p_value=float(p_value),
            threshold=float(threshold),
            alpha=float(alpha),
            unit=unit,
            entity_column=entity_column if entity_name else None,
            entity=entity_name if entity_column else None,
            amount_column=amount_column,
            amount=as_number(amount),
            fields=kept,
            reasons=tuple(map(_cut, reasons[:MAX_REASONS])),
            unusual_input=None if unusual_input is None else clean(unusual_input, MAX_TEXT),
            image=image,
        )

    @property
    def key(self) -> str:
        """Digest by which a repeated case is recognised.

        It contains the time of the event; without one, the id alone names the row.
        """
        at = None if self.at == self.recorded_at else microseconds(self.at)
        parts = self.model, self.version, self.row_id, at
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]

    @property
    def day(self) -> dt.date:
        """Day of the event, in UTC."""
        return day_of(self.at)


def clean(text: str, most: int) -> str:
    """Return a text without control characters, cut to ``most`` characters."""
    text = CONTROL.sub("?", text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def clean_name(value: object) -> str | None:
    """Return an id as labels name it; one that no label can name ends in a digest.

    >>> clean_name(12.0), clean_name(" ")
    ('12', None)
    """
    try:
        name = level_name(value) or ""
    except DataError:
        name = repr(value)
    cleaned = CONTROL.sub("?", name)
    if cleaned == name and len(name) <= MAX_NAME:
        return name or None
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{cleaned[: MAX_NAME - 17]}-{digest}"


def clean_fields(fields: Mapping[str, Any]) -> dict[str, Cell]:
    """Return the values of a row as JSON can hold them, the first ones if they are too many."""
    kept: dict[str, Cell] = {}
    left = MAX_FIELDS_LENGTH
    for name, value in list(fields.items())[:MAX_FIELDS]:
        key, cell = clean(str(name), MAX_NAME), clean_cell(value)
        left -= len(key) + len(str(cell))
        if left >= 0:
            kept[key] = cell
    return kept


def clean_cell(value: Any) -> Cell:
    """Return a value as JSON can hold it: NaN as None, infinity and other objects as text.

    >>> clean_cell(float("nan")), clean_cell("a" * 1000)[-2:], clean_cell([1])
    (None, 'a…', '[1]')
    """
    if value is None or isinstance(value, bool | int):
        return value if value is None or abs(value) < 1 << 63 else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return clean(str(value)[: MAX_TEXT + 1], MAX_TEXT)


def as_number(value: object) -> float | None:
    """Return a finite number, also of a text; None for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]  # anything a record may hold
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def microseconds(seconds: float) -> int:
    """Convert seconds to microseconds."""
    return round(seconds * 1_000_000)


def day_of(seconds: float) -> dt.date:
    """Return the day of a time in seconds since 1970, in UTC."""
    return dt.date(1970, 1, 1) + dt.timedelta(days=seconds // SECONDS_PER_DAY)


def _clipped(seconds: float) -> float:
    return min(max(seconds, -MAX_SECONDS / 2), MAX_SECONDS)


def _name_of(fields: Mapping[str, Cell], score: float, at: float) -> str:
    content = json.dumps([sorted(fields.items()), score, microseconds(at)], default=str)
    return f"row-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _cut(reason: CaseReason) -> CaseReason:
    return CaseReason(
        clean(reason.feature, MAX_NAME),
        as_number(reason.amount) or 0.0,
        clean_cell(reason.observed),
        clean_cell(reason.expected),
        clean(reason.text, MAX_TEXT),
    )


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """A case in a store, with its number and the label of its row that counts.

    >>> case = Case.of(model="fraud", row=12, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01)
    >>> CaseRecord(1, case, None).status
    'open'
    """

    number: int
    case: Case
    label: CurrentLabel | None

    @property
    def status(self) -> Status:
        """State of the case; a row labelled ``unsure`` is not decided."""
        if self.label and self.label.label != "unsure":
            return "decided"
        return "open" if self.case.snooze is None else "snoozed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFilter:
    """The cases to list: those that fit all of the given parts; None stands for all.

    ``first_day`` and ``last_day`` are days of events, in UTC, both included.

    >>> CaseFilter(model="fraud", status="open").kind is None
    True
    """

    model: str | None = None
    version: str | None = None
    status: Status | None = None
    kind: Kind | None = None
    entity_column: str | None = None
    entity: str | None = None
    row_id: str | None = None
    first_day: dt.date | None = None
    last_day: dt.date | None = None


@dataclass(frozen=True, slots=True)
class Snooze:
    """A time during which the flags of an entity stay out of the queue; `Snooze.of` checks it.

    Times are in seconds since 1970. ``number`` is 0 before the snooze is stored.

    >>> Snooze.of("card", 7, until=2e9, reason="new phone", who="alice", at=1.9e9).entity
    '7'
    """

    entity_column: str
    entity: str
    until: float
    reason: str
    who: str
    at: float
    number: int = 0

    @classmethod
    def of(
        cls,
        entity_column: str,
        entity: object,
        until: float,
        reason: str,
        who: str,
        at: float | None = None,
    ) -> Self:
        """Check the parts of a snooze.

        Args:
            entity_column: column that names the entity.
            entity: value in that column.
            until: end in seconds since 1970.
            reason: why its flags need no review; must not be empty.
            who: name of the reviewer.
            at: beginning in seconds since 1970; None for now.

        Raises:
            DataError: a part is missing or too long, or the end is not in the future; ``column``
                names it.
        """
        at = time.time() if at is None else at
        if not at < until <= MAX_SECONDS:
            raise DataError("the end of a snooze must lie in the future", column="until")
        if not reason.strip():
            raise DataError("give a reason for the snooze", column="reason")
        return cls(
            check_name("entity_column", entity_column),
            check_name("entity", level_name(entity) or ""),
            until,
            check_note(reason, "reason"),
            check_name("who", who),
            at,
        )
