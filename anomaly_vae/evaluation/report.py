"""All that an evaluation found: figures, slices, p-values, and what may flatter them."""

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
    """An evaluation as a bundle and MLflow keep it."""

    figures: Evaluation
    slices: tuple[ColumnSlice, ...] = ()
    p_values: tuple[UniformityPoint, ...] = ()
    alone: tuple[SingleFeatureAUROC, ...] = ()
    """what separates anomalies by itself, the best first"""
    twins: Duplicates | None = None
    """None: nothing is known of them"""
    warnings: tuple[str, ...] = ()
    """what makes the figures doubtful, in words"""

    def findings(self) -> dict[str, Any]:
        """Plain values of all but the figures."""
        return {
            "slices": [one.to_json() for one in self.slices],
            "p_values": [one.to_json() for one in self.p_values],
            "alone": [one.to_json() for one in self.alone],
            "twins": self.twins.to_json() if self.twins else None,
            "warnings": list(self.warnings),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.figures.to_json(), **self.findings()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; older versions had figures alone."""
        twins = content.get("twins")
        return cls(
            Evaluation.from_json(content),
            tuple(map(ColumnSlice.from_json, content.get("slices", ()))),
            tuple(UniformityPoint(**one) for one in content.get("p_values", ())),
            tuple(SingleFeatureAUROC(**one) for one in content.get("alone", ())),
            Duplicates(**twins) if twins else None,
            tuple(content.get("warnings", ())),
        )
