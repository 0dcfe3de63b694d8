"""Describe evaluation, promotion and the registry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from anomaly_vae.config.base import Fraction, Section


class EvaluationConfig(Section):
    """Figures reported on the test split, in addition to the usual ones."""

    top: int = Field(100, ge=1)
    """Number of rows, and of entities per day, that can be reviewed."""
    entity: str | None = None
    """Column of the entity reviewed each day, such as a card; null: `data.group`."""
    slices: tuple[str, ...] = ()
    """Additional columns whose levels are compared; categorical and binary features always are."""


class RenewTestConfig(Section):
    """When the frozen test split is replaced by the newest one of a challenger."""

    days: float | None = Field(None, gt=0)
    """Age of the split at which it is replaced, in days: from its newest row to the newest row of
    the challenger's data; null: any age."""
    promotions: int | None = Field(None, ge=1)
    """Number of promotions decided on one split, the first included, after which it is replaced;
    null: any number."""

    @model_validator(mode="after")
    def _check_given(self) -> RenewTestConfig:
        if self.days is None and self.promotions is None:
            raise ValueError("give days, promotions or both, or leave renew_test out")
        return self


class PromotionConfig(Section):
    """Policy by which a challenger may replace the champion; frozen at the first promotion."""

    metric: Literal["average_precision", "auroc"] = "average_precision"
    """Metric compared on the frozen test split, if that has labels."""
    tolerance: float = Field(0.0, ge=0, lt=1)
    """Largest accepted loss of the metric relative to the champion, in absolute terms."""
    proof: Literal["worse", "no_worse"] = "worse"
    """Burden of proof: `worse` refuses a challenger shown to be worse, `no_worse` refuses one that
    is not shown to be no worse."""
    confidence: Fraction = 0.95
    """Confidence level of all intervals that rules use."""
    slice_recall: Fraction | None = 0.1
    """Largest accepted loss of recall, beyond chance, in a level of a categorical column; null: no
    limit."""
    leak_auroc: Fraction | None = 0.99
    """Lowest AUROC of a single feature at which it counts as revealing the label; null: no
    limit."""
    ks_distance: Fraction | None = 0.03
    """Largest accepted distance (Kolmogorov-Smirnov) of p-values of normal test rows from the
    uniform distribution, unless chance explains it; null: no limit."""
    ks_p_value: Fraction = 1e-15
    """p-value of the Kolmogorov-Smirnov test from which on chance explains a distance."""
    agreement: Fraction | None = None
    """Lowest accepted fraction of rows that both models decide alike; null: no limit."""
    row_microseconds: float | None = Field(None, gt=0)
    """Longest accepted CPU time of scoring a single row, in microseconds; null: no limit."""
    slowdown: float | None = Field(None, gt=0)
    """Longest accepted CPU time of scoring a single row, as a multiple of the champion's; null: no
    limit."""
    megabytes: float | None = Field(None, gt=0)
    """Largest accepted bundle, in megabytes (10^6 bytes); null: no limit."""
    renew_test: RenewTestConfig | None = None
    """When the frozen test split is replaced by the newest one of a challenger; needs `data.time`;
    null: never."""


class MLflowConfig(Section):
    """Location where runs and models are recorded."""

    tracking_uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI, not a plain folder: `sqlite:///FILE`, `http(s)://HOST`, or a database
    with its driver, such as `postgresql+psycopg2://HOST/NAME`. The variable `MLFLOW_TRACKING_URI`
    overrides it."""
    experiment: str | None = None
    """Name of the MLflow experiment; null: the model's name."""
