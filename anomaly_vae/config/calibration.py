"""Describe how the threshold is chosen."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from anomaly_vae.config.base import Fraction, Section
from anomaly_vae.types import Method


class CostConfig(Section):
    """What a decision costs, in any one currency."""

    missed: float = Field(1.0, gt=0)
    """of an anomaly that is not flagged; times its amount, where that is given"""
    amount: str | None = None
    """column with the amount of an anomaly; tables only"""
    review: float = Field(0.0, ge=0)
    """of each row that is flagged"""
    blocked: float = Field(0.0, ge=0)
    """of each normal row that is flagged, on top of its review"""


class CalibrationConfig(Section):
    """How the threshold is chosen."""

    method: Method = "conformal"
    """conformal: false positive rate at most alpha on exchangeable rows; see docs/thresholds.md"""
    alpha: Fraction = 0.01
    """share of normal rows that may be flagged"""
    delta: Fraction = 0.05
    """certified: how often, over calibration samples, the rate may be above alpha"""
    tail: Fraction = 0.1
    """evt: share of the calibration rows, the highest, that the tail is fitted to"""
    per_1000: float | None = Field(None, gt=0, lt=1000)
    """budget: alerts per 1,000 rows, at most"""
    per_day: float | None = Field(None, gt=0)
    """budget: alerts a day, at most, at the calibration rows' pace"""
    costs: CostConfig = CostConfig()
    """cost: what is weighed"""
    f_beta: float = Field(1.0, gt=0)
    """fbeta: how many times more recall counts than precision"""
    min_precision: Fraction = 0.5
    """recall_at_precision: share of the flagged rows that are anomalies, at least"""
    group_by: str | None = None
    """methods with alpha: column whose levels get thresholds of their own; tables only"""
    trim_scores: float = Field(0.0, ge=0, lt=0.5)
    """methods with alpha: share of the calibration rows, the highest, that do not count"""
    density_ratio: str | None = None
    """conformal: column with how much denser traffic is than the calibration rows; tables only"""

    KEYS: ClassVar[dict[Method, tuple[str, ...]]] = {
        "conformal": ("alpha", "group_by", "trim_scores", "density_ratio"),
        "certified": ("alpha", "delta", "group_by", "trim_scores"),
        "evt": ("alpha", "tail", "group_by", "trim_scores"),
        "quantile": ("alpha", "group_by", "trim_scores"),
        "budget": ("per_1000", "per_day"),
        "cost": ("costs",),
        "fbeta": ("f_beta",),
        "recall_at_precision": ("min_precision",),
    }
    """Of each method."""
    BY_LABEL: ClassVar[tuple[Method, ...]] = ("cost", "fbeta", "recall_at_precision")
    """Methods that need known anomalies."""

    @property
    def promises_alpha(self) -> bool:
        """Whether alpha is wished for; else it is what the threshold comes to."""
        return "alpha" in self.KEYS[self.method]

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        """So that ``--set calibration.alpha=null`` takes back what a file says."""
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None or k not in cls.model_fields}

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> CalibrationConfig:
        own = self.KEYS[self.method]
        for key, field in type(self).model_fields.items():
            if key not in {"method", *own} and getattr(self, key) != field.default:
                raise ValueError(
                    f"method {self.method} has no {key}, only {', '.join(own)}; leave it out "
                    f"(--set calibration.{key}=null)"
                )
        if self.method == "budget" and not (self.per_1000 or self.per_day):
            raise ValueError("method budget needs per_1000 or per_day")
        if self.method == "cost" and not (self.costs.review or self.costs.blocked):
            raise ValueError("method cost needs costs.review or costs.blocked, else all is flagged")
        if self.trim_scores and self.density_ratio:
            raise ValueError(
                "trim_scores counts rows, density_ratio weighs them; leave one of them out"
            )
        return self


class ImageCalibrationConfig(CalibrationConfig):
    """How the threshold of an image model is chosen."""

    alpha: Fraction = 0.05
    """share of normal images that may be flagged"""
