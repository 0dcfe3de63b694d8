"""Read the filter, the order and the page of the queue from the query of an address."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, urlencode

from anomaly_vae.errors import DataError
from anomaly_vae.messages import shown

if TYPE_CHECKING:
    from anomaly_vae.review import CaseFilter

PAGE_CASES = 100
"""Number of cases on a page."""
MAX_PAGE = 100_000
ORDERS = {
    "p_value": "lowest p-value",
    "amount": "largest amount",
    "entity": "entity",
    "day": "newest",
}
"""Names of the orders of the queue."""
STATUSES = {"open": "open", "decided": "decided", "snoozed": "snoozed", "all": "all"}
"""Names of the states of cases, and of all cases together."""
KINDS = {"": "flags and samples", "flagged": "flags", "sample": "random samples"}
"""Names of the kinds of cases."""


@dataclass(frozen=True)
class Query:
    """The cases that a reviewer looks at; empty texts stand for all."""

    order: str = "p_value"
    status: str = "open"
    kind: str = ""
    model: str = ""
    entity_column: str = ""
    entity: str = ""
    row_id: str = ""
    first_day: str = ""
    last_day: str = ""
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Self:
        """Read the parameters of an address; unknown ones are ignored.

        Raises:
            DataError: a parameter has a value that it cannot have.
        """
        names = [one.name for one in fields(cls) if one.name != "page"]
        given = {name: parameters[name].strip() for name in names if parameters.get(name)}
        query = cls(**given, page=_page(parameters.get("page", "1")))
        for name, allowed in (("order", ORDERS), ("status", STATUSES), ("kind", KINDS)):
            if (value := getattr(query, name)) not in allowed:
                raise DataError(f"{name}: expected one of {', '.join(filter(None, allowed))}, got "
                                f"{shown(value)}")  # fmt: skip
        for name in ("first_day", "last_day"):
            _day(name, getattr(query, name))
        return query

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a query that `text` wrote."""
        return cls.of(dict(parse_qsl(text, max_num_fields=50)))

    @property
    def text(self) -> str:
        """The query of an address, without what is as usual."""
        return urlencode(self.parameters)

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of an address by name, without what is as usual."""
        usual = type(self)()
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: str(v) for name, v in values.items() if v != getattr(usual, name)}

    def with_fields(self, **values: str | int) -> Self:
        """Return another query, on its first page unless the page is given."""
        return replace(self, **{"page": 1, **values})  # type: ignore[arg-type]

    @property
    def is_narrowed(self) -> bool:
        """Whether the query shows other cases than the usual one."""
        return self.with_fields(order="p_value") != type(self)()

    @property
    def offset(self) -> int:
        """Number of cases on the pages before."""
        return (self.page - 1) * PAGE_CASES

    def filter(self) -> CaseFilter:
        """Return the filter of the store."""
        from anomaly_vae.review import CaseFilter

        return CaseFilter(
            status=None if self.status == "all" else self.status,  # type: ignore[arg-type]
            kind=self.kind or None,  # type: ignore[arg-type]
            model=self.model or None,
            entity_column=self.entity_column or None,
            entity=self.entity or None,
            row_id=self.row_id or None,
            first_day=_day("first_day", self.first_day),
            last_day=_day("last_day", self.last_day),
        )


def _page(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise DataError(f"page: expected a number from 1 to {MAX_PAGE}, got {shown(text)}")
    return int(text)


def _day(name: str, text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError:
        raise DataError(f"{name}: expected a day such as 2024-01-31, got {shown(text)}") from None
