"""Collect the results of an evaluation: figures, slices, p-values and signs of leakage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from anomaly_vae.data.times import Period
from anomaly_vae.evaluation.label_maturity import LabelMaturity
from anomaly_vae.evaluation.leakage import Duplicates, SingleFeatureAUROC
from anomaly_vae.evaluation.metrics import Evaluation
from anomaly_vae.evaluation.p_values import UniformityPoint
from anomaly_vae.evaluation.slices import ColumnSlice


@dataclass(frozen=True)
class EvaluationReport:
    """The results of an evaluation, as stored in a bundle and in MLflow."""

    figures: Evaluation
    slices: tuple[ColumnSlice, ...] = ()
    p_values: tuple[UniformityPoint, ...] = ()
    single_features: tuple[SingleFeatureAUROC, ...] = ()
    """AUROC of each feature on its own, best first."""
    duplicates: Duplicates | None = None
    """Test rows that also occur in training; None if unknown."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the figures, for the user."""
    period: Period | None = None
    """Period of the evaluated rows; None if they have no time."""
    labels: LabelMaturity | None = None
    """How many labels are final; None if the configuration gives no delay of labels."""

    def details(self) -> dict[str, Any]:
        """Return everything except the figures as plain JSON values."""
        return {
            "slices": [part.to_json() for part in self.slices],
            "p_values": [point.to_json() for point in self.p_values],
            "alone": [feature.to_json() for feature in self.single_features],
            "twins": self.duplicates.to_json() if self.duplicates else None,
            "warnings": list(self.warnings),
            **({"period": self.period.to_json()} if self.period else {}),
            **({"labels": self.labels.to_json()} if self.labels else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.figures.to_json(), **self.details()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a report from the result of `to_json`, also of older versions."""
        duplicates, labels = content.get("twins"), content.get("labels")
        return cls(
            Evaluation.from_json(content),
            tuple(map(ColumnSlice.from_json, content.get("slices", ()))),
            tuple(UniformityPoint(**point) for point in content.get("p_values", ())),
            tuple(SingleFeatureAUROC(**feature) for feature in content.get("alone", ())),
            Duplicates(**duplicates) if duplicates else None,
            tuple(content.get("warnings", ())),
            Period.from_json(content["period"]) if "period" in content else None,
            LabelMaturity(**labels) if labels else None,
        )
