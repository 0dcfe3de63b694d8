"""Select cases: filters, orders, and the label of a row that counts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true

from anomaly_vae.review.base import PER_SECOND
from anomaly_vae.review.cases import SECONDS_PER_DAY, CaseFilter, Order, Status
from anomaly_vae.review.tables import CASES, LABELS

DECISIVE = ("anomaly", "normal")
"""Verdicts that decide a case."""
Key = tuple[ColumnElement[Any], bool]
"""An expression to order by, and whether its largest value comes first."""
NO_AMOUNT = -1e308
"""Amount of cases without one in the order of amounts."""
LAST_NAME = "\U0010ffff"
"""Entity of cases without one in the order of entities."""


def verdict() -> ColumnElement[str]:
    """Return the newest verdict on the row of a case, as a scalar subquery; NULL without one."""
    newest = LABELS.c.at_us.desc(), LABELS.c.number.desc()
    same = LABELS.c.model == CASES.c.model, LABELS.c.row_id == CASES.c.row_id
    return select(LABELS.c.label).where(*same).order_by(*newest).limit(1).scalar_subquery()


def is_status(status: Status | None) -> ColumnElement[bool]:
    """Return the condition that a case has this status; None for any."""
    if status is None:
        return true()
    decided = func.coalesce(verdict(), "").in_(DECISIVE)
    if status == "decided":
        return decided
    snoozed = CASES.c.snooze.is_not(None) if status == "snoozed" else CASES.c.snooze.is_(None)
    return and_(snoozed, ~decided)


def conditions(chosen: CaseFilter) -> list[ColumnElement[bool]]:
    """Return the conditions of a filter."""
    columns = CASES.c
    equal = {
        columns.model: chosen.model, columns.version: chosen.version, columns.kind: chosen.kind,
        columns.entity_column: chosen.entity_column, columns.entity: chosen.entity,
        columns.row_id: chosen.row_id,
    }  # fmt: skip
    found = [column == value for column, value in equal.items() if value is not None]
    if chosen.first_day:
        found.append(columns.at_us >= start_of(chosen.first_day))
    if chosen.last_day:
        found.append(columns.at_us < start_of(chosen.last_day + dt.timedelta(days=1)))
    return [*found, is_status(chosen.status)]


def start_of(day: dt.date) -> int:
    """Return the beginning of a day (UTC) in microseconds since 1970."""
    return day_number(day) * SECONDS_PER_DAY * PER_SECOND


def day_number(day: dt.date) -> int:
    """Return the number of a day, counted from 1970."""
    return (day - dt.date(1970, 1, 1)).days


def order_keys(order: Order) -> list[Key]:
    """Return the expressions of an order, the last of which is unique."""
    columns = CASES.c
    by_p_value: list[Key] = [(columns.p_value, False), (columns.number, False)]
    by_amount: Key = (func.coalesce(columns.amount, NO_AMOUNT), True)
    first: dict[Order, list[Key]] = {
        "p_value": [],
        "amount": [by_amount],
        "entity": [(func.coalesce(columns.entity, LAST_NAME), False)],
        "day": [(columns.at_us, True)],
    }
    return [*first[order], *by_p_value]


def ordered(statement: Select[Any], keys: Sequence[Key], reverse: bool = False) -> Select[Any]:
    """Order a statement, or reverse the order."""
    return statement.order_by(
        *(key.desc() if last is not reverse else key.asc() for key, last in keys)
    )


def beyond(keys: Sequence[Key], values: Sequence[Any], before: bool) -> ColumnElement[bool]:
    """Return the condition that a case comes after the one with these values, or before it."""
    alternatives = []
    for place, (key, last) in enumerate(keys):
        same = [one == value for (one, _), value in zip(keys, values[:place], strict=False)]
        further = key < values[place] if last is not before else key > values[place]
        alternatives.append(and_(*same, further))
    return or_(*alternatives)
