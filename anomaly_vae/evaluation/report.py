"""Collect the results of an evaluation: figures, slices, p-values and possible leakage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from anomaly_vae.evaluation.leakage import Duplicates, SingleFeatureAUROC
from anomaly_vae.evaluation.metrics import Evaluation
from anomaly_vae.evaluation.p_values import UniformityPoint
from anomaly_vae.evaluation.slices import ColumnSlice


@dataclass(frozen=True)
class EvaluationReport:
    """The results of an evaluation, as a bundle and MLflow store them."""

    figures: Evaluation
    slices: tuple[ColumnSlice, ...] = ()
    p_values: tuple[UniformityPoint, ...] = ()
    single_features: tuple[SingleFeatureAUROC, ...] = ()
    """Features that separate anomalies on their own, the best first."""
    duplicates: Duplicates | None = None
    """Test rows that also occur in training; None if unknown."""
    warnings: tuple[str, ...] = ()
    """Warnings that put the figures in doubt."""

    def details(self) -> dict[str, Any]:
        """Return everything except the figures as plain JSON values."""
        return {
            "slices": [one.to_json() for one in self.slices],
            "p_values": [one.to_json() for one in self.p_values],
            "alone": [one.to_json() for one in self.single_features],
            "twins": self.duplicates.to_json() if self.duplicates else None,
            "warnings": list(self.warnings),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.figures.to_json(), **self.details()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Restore a report from the result of `to_json`, also of older versions."""
        duplicates = content.get("twins")
        return cls(
            Evaluation.from_json(content),
            tuple(map(ColumnSlice.from_json, content.get("slices", ()))),
            tuple(UniformityPoint(**one) for one in content.get("p_values", ())),
            tuple(SingleFeatureAUROC(**one) for one in content.get("alone", ())),
            Duplicates(**duplicates) if duplicates else None,
            tuple(content.get("warnings", ())),
        )
