"""Describe evaluation, promotion and the registry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from anomaly_vae.config.base import Fraction, Section


class EvaluationConfig(Section):
    """What is told of the test split, beside its usual figures."""

    top: int = Field(100, ge=1)
    """rows, and cards of a day, that somebody can look into"""
    entity: str | None = None
    """column of what is looked into day by day, such as a card; absent: data.group"""
    slices: tuple[str, ...] = ()
    """more columns whose levels are compared; the model's own with levels are"""


class PromotionConfig(Section):
    """When a challenger may become champion; frozen in the registry at the first promotion."""

    metric: Literal["average_precision", "auroc"] = "average_precision"
    """compared on the frozen test split, where it has labels"""
    tolerance: float = Field(0.0, ge=0, lt=1)
    """how much worse than the champion's a challenger's metric may be"""
    proof: Literal["worse", "no_worse"] = "worse"
    """worse: refuse what is shown to be worse; no_worse: what is not shown to be no worse"""
    confidence: Fraction = 0.95
    """of every interval that a rule asks what chance explains"""
    slice_recall: Fraction | None = 0.1
    """most recall that a level of a categorical column may lose, beyond chance; null: any"""
    agreement: Fraction | None = None
    """least share of the rows on which both models flag alike; absent: any"""
    row_microseconds: float | None = Field(None, gt=0)
    """most CPU time that scoring a row alone may take; absent: any"""
    slowdown: float | None = Field(None, gt=0)
    """the same as a multiple of the champion's; absent: any"""
    megabytes: float | None = Field(None, gt=0)
    """largest bundle, in 10^6 bytes; absent: any"""


class MLflowConfig(Section):
    """Where runs and models are recorded; ``MLFLOW_TRACKING_URI`` wins over the file."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """any MLflow tracking URI but a plain folder"""
    experiment: str | None = None
    """absent: the model's name"""
