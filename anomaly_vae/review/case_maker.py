"""Make cases of scored rows: which columns they keep, and which values are masked."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from anomaly_vae.data.converters import level_name
from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.review.cases import Case, CaseReason, Kind
from anomaly_vae.types import KNOWN_ANOMALIES, REGION

__all__ = ["CaseColumns", "CaseFields", "CaseMaker"]

MASK = "masked-"
"""Beginning of a masked value."""
MASK_DIGITS = 16
"""Number of hexadecimal digits of a masked value."""
MIN_SALT = 16
"""Minimum length of a salt, in characters."""


@dataclass(frozen=True, slots=True)
class CaseColumns:
    """The columns of a model's data that have a meaning for cases; None where there is none.

    >>> data = {"id": "tx", "time": "at", "windows": {"card": {"of": {"amount": ["sum"]}}}}
    >>> CaseColumns.of_config({"data": data})
    CaseColumns(id='tx', time='at', time_format=None, entity='card', amount='amount')
    """

    id: str | None = None
    time: str | None = None
    time_format: str | None = None
    entity: str | None = None
    amount: str | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any], time_format: str | None = None) -> Self:
        """Return the columns that a recorded configuration names.

        The entity is the group of the rows, or the first entity with windows. The amount is that of
        the costs, or the first column that windows sum up.

        Args:
            config: the configuration in the manifest of a bundle.
            time_format: format of the times that was found in training.
        """
        data, costs = config.get("data", {}), config.get("calibration", {}).get("cost") or {}
        windows = data.get("windows") or {}
        summed = (name for entity in windows.values() for name in entity.get("of") or {})
        amount = costs.get("amount") if isinstance(costs, Mapping) else None
        return cls(
            data.get("id"),
            data.get("time"),
            time_format or data.get("time_format"),
            data.get("group") or next(iter(windows), None),
            amount or next(summed, None),
        )

    def named(self, entity: str = "", amount: str = "") -> CaseColumns:
        """Return the columns with another entity or amount, where one is given."""
        return replace(self, entity=entity or self.entity, amount=amount or self.amount)


@dataclass(frozen=True, slots=True)
class CaseFields:
    """The values that cases keep: ``kept`` columns (empty: those of the model), some masked.

    A masked value is a keyed digest: equal values stay equal, and nobody without the salt can
    tell which they are. The ids of rows are never masked, because labels name them.

    Raises:
        ConfigError: columns are masked without a salt of at least 16 characters.

    >>> fields = CaseFields(masked=frozenset({"card"}), salt="0123456789abcdef")
    >>> fields.value("card", 12) == fields.value("card", "12.0"), fields.value("amount", 5)
    (True, 5)
    """

    kept: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    salt: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Require a salt for masked columns."""
        if self.masked and len(self.salt) < MIN_SALT:
            raise ConfigError(
                f"masked columns need a salt of at least {MIN_SALT} characters; set "
                "ANOMALY_VAE_CASES_SALT",
                key="cases_salt",
            )

    def keeps(self, column: str) -> bool:
        """Return whether the values of a column are kept, masked or not."""
        return not self.kept or column in self.kept or column in self.masked

    def value(self, column: str, value: Any) -> Any:
        """Return a value, or its digest if its column is masked."""
        if column not in self.masked or value is None:
            return value
        name = (level_name(value) if not isinstance(value, bytes) else value.hex()) or ""
        digest = hmac.new(self.salt.encode(), name.encode(errors="replace"), hashlib.sha256)
        return f"{MASK}{digest.hexdigest()[:MASK_DIGITS]}"

    def reason(self, reason: CaseReason, source: str) -> CaseReason:
        """Return a reason without values that are masked or not kept.

        Args:
            reason: the reason.
            source: column that its value comes from.
        """
        if source in self.masked:
            return replace(
                reason, observed=self.value(source, reason.observed), expected=None,
                text=f"{reason.feature}: an unusual value, which is masked",
            )  # fmt: skip
        if not self.keeps(source):
            text = f"{reason.feature}: an unusual value, which is not kept"
            return replace(reason, observed=None, expected=None, text=text)
        return reason

    def likeness(self, reason: CaseReason) -> CaseReason:
        """Return the reason of a row's likeness to known anomalies, without hidden values."""
        if not self.kept and not self.masked:
            return reason
        return replace(reason, observed=None, expected=None, text=reason.text.partition(":")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMaker:
    """Makes cases of rows that one version of a model scored.

    ``names`` are the columns that the model reads, and ``sources`` the columns of which window
    features are computed, by the name of the feature.

    >>> maker = CaseMaker(
    ...     model="fraud", version="3", alpha=0.01, columns=CaseColumns("tx", entity="card"),
    ...     names=("amount",),
    ... )
    >>> row = {"tx": 12, "card": 7, "amount": 950.0, "name": "Ann"}
    >>> case = maker.make(row, score=9.5, p_value=0.001, threshold=5.0)
    >>> case.row_id, case.entity, case.fields
    ('12', '7', {'amount': 950.0})
    """

    model: str
    version: str | None
    alpha: float
    columns: CaseColumns
    names: Sequence[str]
    fields: CaseFields = CaseFields()
    unit: str = "nats"
    sources: Mapping[str, str] = field(default_factory=dict)

    def make(
        self,
        row: Mapping[str, Any],
        *,
        score: float,
        p_value: float,
        threshold: float,
        kind: Kind = "flagged",
        reasons: Sequence[CaseReason] = (),
        unusual_input: str | None = None,
        recorded_at: float | None = None,
        row_id: object = None,
        image: str | None = None,
    ) -> Case:
        """Make a case.

        Args:
            row: values by column, among others those of the model.
            score: score of the row.
            p_value: p-value of the row.
            threshold: threshold that the score was compared with.
            kind: why the row becomes a case.
            reasons: why the score is high, the most important first.
            unusual_input: why the row is unlike the training data.
            recorded_at: time of scoring in seconds since 1970; None for now.
            row_id: id of the row; None for the value in the column of ids.
            image: name of the folder of a kept scan.
        """
        columns, fields = self.columns, self.fields
        entity, amount = columns.entity, columns.amount
        is_masked = amount in fields.masked
        return Case.of(
            model=self.model,
            version=self.version,
            row=row_id if columns.id is None or row_id is not None else row.get(columns.id),
            kind=kind,
            at=self._time(row),
            recorded_at=recorded_at,
            score=score,
            p_value=p_value,
            threshold=threshold,
            alpha=self.alpha,
            unit=self.unit,
            entity_column=entity,
            entity=fields.value(entity, row.get(entity)) if entity else None,
            amount_column=None if is_masked else amount,
            amount=None if is_masked or amount is None else row.get(amount),
            fields=self._kept(row),
            reasons=list(map(self._reason, reasons)),
            unusual_input=unusual_input,
            image=image,
        )

    def _reason(self, reason: CaseReason) -> CaseReason:
        """Return a reason without values of columns that are masked or not kept."""
        if reason.feature == REGION:  # it says where in an image, and names no column
            return reason
        if reason.feature == KNOWN_ANOMALIES:  # it names several columns with their values
            return self.fields.likeness(reason)
        return self.fields.reason(reason, self.sources.get(reason.feature, reason.feature))

    def _kept(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values to keep, in the order of the model's columns."""
        names = dict.fromkeys((*self.names, *sorted(self.fields.kept | self.fields.masked)))
        kept = (name for name in names if name in row and self._keeps(name))
        return {name: self.fields.value(self.sources.get(name, name), row[name]) for name in kept}

    def _keeps(self, name: str) -> bool:
        return self.fields.keeps(self.sources.get(name, name))

    def _time(self, row: Mapping[str, Any]) -> float | None:
        """Return the time of the event; None if the row has none that can be read."""
        value = row.get(self.columns.time) if self.columns.time else None
        try:
            return None if value is None else parse_time(value, self.columns.time_format)
        except (ValueError, DataError):
            return None
