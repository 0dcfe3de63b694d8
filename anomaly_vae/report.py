"""All that an evaluation found: figures, slices, p-values, and what may flatter them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from anomaly_vae.evaluation import Evaluation
from anomaly_vae.leakage import Alone, Twins
from anomaly_vae.slices import ColumnSlice
from anomaly_vae.uniformity import Step


@dataclass(frozen=True)
class Report:
    """An evaluation as a bundle and MLflow keep it."""

    figures: Evaluation
    slices: tuple[ColumnSlice, ...] = ()
    p_values: tuple[Step, ...] = ()
    alone: tuple[Alone, ...] = ()
    """what separates anomalies by itself, the best first"""
    twins: Twins | None = None
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
            tuple(Step(**one) for one in content.get("p_values", ())),
            tuple(Alone(**one) for one in content.get("alone", ())),
            Twins(**twins) if twins else None,
            tuple(content.get("warnings", ())),
        )
