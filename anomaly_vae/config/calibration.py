"""Describe how the threshold is chosen."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from anomaly_vae.config.base import Fraction, Section, check_zone
from anomaly_vae.types import Method


class CostConfig(Section):
    """Cost of each kind of decision, all in the same currency."""

    missed: float = Field(1.0, gt=0)
    """Cost of an anomaly that is not flagged; with `amount`, cost per unit of its amount."""
    amount: str | None = None
    """Column with the amount of each anomaly, for tables only; null: every anomaly counts as 1."""
    review: float = Field(0.0, ge=0)
    """Cost of reviewing a flagged row."""
    blocked: float = Field(0.0, ge=0)
    """Cost of flagging a normal row, in addition to its review."""


class CalibrationConfig(Section):
    """Method of choosing the threshold, and its settings."""

    method: Method = "conformal"
    """Method that chooses the threshold; docs/thresholds.md compares what each guarantees."""
    alpha: Fraction = 0.01
    """Highest accepted false positive rate: the fraction of normal rows that may be flagged."""
    delta: Fraction = 0.05
    """For `certified`: highest accepted probability that the false positive rate exceeds alpha."""
    tail: Fraction = 0.1
    """For `evt`: fraction of calibration rows, those with the highest scores, that the generalised
    Pareto tail is fitted to."""
    per_1000: float | None = Field(None, gt=0, lt=1000)
    """For `budget`: highest expected number of alerts per 1,000 rows; null: no such limit."""
    per_day: float | None = Field(None, gt=0)
    """For `budget`: highest expected number of alerts per day, as counted on the complete days of
    the calibration split; null: no such limit."""
    entity: str | None = None
    """For `budget` with `per_day`: column of which each value counts as one alert a day, such as a
    customer, for tables only; null: rows count."""
    time_zone: str | None = None
    """For `budget` with `per_day`: time zone of the days, such as `Europe/Berlin`; null: that of
    `data.timezone`."""
    costs: CostConfig = CostConfig()
    """For `cost`: costs whose expected sum the threshold minimises."""
    f_beta: float = Field(1.0, gt=0)
    """For `fbeta`: weight of recall relative to precision; 1 weighs both alike."""
    min_precision: Fraction = 0.5
    """For `recall_at_precision`: lowest accepted fraction of flagged rows that are anomalies."""
    group_by: str | None = None
    """For methods with alpha: categorical or binary column, each level of which gets a threshold
    of its own, for tables only; null: one threshold for all rows."""
    trim_scores: float = Field(0.0, ge=0, lt=0.5)
    """For methods with alpha: fraction of calibration rows, those with the highest scores, left
    out as suspected anomalies."""
    density_ratio: str | None = None
    """For `conformal`: column with the density of live traffic relative to that of the calibration
    rows, at each row, for tables only; null: both are alike."""
    unusual_alpha: float | None = Field(0.01, ge=0, lt=1)
    """Highest accepted fraction of normal rows that are reported as unlike the training rows, with
    any method; null or 0: rows are not tested for that."""

    KEYS: ClassVar[dict[Method, tuple[str, ...]]] = {
        "conformal": ("alpha", "group_by", "trim_scores", "density_ratio"),
        "certified": ("alpha", "delta", "group_by", "trim_scores"),
        "evt": ("alpha", "tail", "group_by", "trim_scores"),
        "quantile": ("alpha", "group_by", "trim_scores"),
        "budget": ("per_1000", "per_day", "entity", "time_zone"),
        "cost": ("costs",),
        "fbeta": ("f_beta",),
        "recall_at_precision": ("min_precision",),
    }
    """Keys that each method reads."""

    @property
    def promises_alpha(self) -> bool:
        """Whether alpha is given; for other methods it follows from the threshold."""
        return "alpha" in self.KEYS[self.method]

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        return {name for name in ("entity", "time_zone") if getattr(self, name) is None}

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, value: str | None) -> str | None:
        return check_zone(value)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Reset keys given as null, so that ``--set calibration.alpha=null`` undoes a file."""
        if not isinstance(value, dict):
            return value
        resets = cls.model_fields.keys() - {"unusual_alpha"}  # where null has a meaning
        return {k: v for k, v in value.items() if v is not None or k not in resets}

    @model_validator(mode="after")
    def _check_keys_of_method(self) -> CalibrationConfig:
        own = self.KEYS[self.method]
        for key, field in type(self).model_fields.items():
            if key not in {"method", "unusual_alpha", *own} and getattr(self, key) != field.default:
                raise ValueError(
                    f"method {self.method} has no {key}, only {', '.join(own)}; leave it out "
                    f"(--set calibration.{key}=null)"
                )
        if self.method == "budget" and not (self.per_1000 or self.per_day):
            raise ValueError("method budget needs per_1000 or per_day")
        for key in ("entity", "time_zone"):
            if getattr(self, key) and not self.per_day:
                raise ValueError(f"{key} is for a budget per day; give per_day, or leave {key} out")
        if self.method == "cost" and not (self.costs.review or self.costs.blocked):
            raise ValueError("method cost needs costs.review or costs.blocked, else all is flagged")
        if self.trim_scores and self.density_ratio:
            raise ValueError(
                "trim_scores counts rows, density_ratio weighs them; leave one of them out"
            )
        return self


class ImageCalibrationConfig(CalibrationConfig):
    """Method of choosing the threshold of an image model, and its settings."""

    alpha: Fraction = 0.05
    """Highest accepted false positive rate: the fraction of normal images that may be flagged."""
