"""Describe the anomaly score."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from anomaly_vae.config.base import Section, Seed

SURPRISE = "surprise"
"""Unit of scores that are sums of surprises: nats of how rare a score is among normal rows."""


class ScoreConfig(Section):
    """Anomaly score of a table's rows."""

    type: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo"
    """Anomaly score, in nats; higher is more anomalous."""
    draws: int = Field(1, ge=1, le=1024)
    """Number of posterior draws per score, the same for all rows; 1 scores at the posterior
    mean."""
    seed: Seed = 0
    """Seed of the posterior draws."""

    unit: ClassVar[str] = "nats"
    """Unit of scores and their parts."""


class ImageScoreConfig(Section):
    """Anomaly score of images."""

    type: Literal[
        "neg_elbo", "reconstruction", "importance_weighted", "structural", "contamination"
    ] = "neg_elbo"
    """Anomaly score; higher is more anomalous. `contamination` needs `model.localization_head`."""
    standardise: bool | None = None
    """Whether each pixel's part is scaled by its mean and standard deviation on held-out normal
    images; null: yes, except for `contamination`."""
    draws: int = Field(1, ge=1, le=1024)
    """Number of posterior draws per score, the same for all images; 1 scores at the posterior
    mean."""
    seed: Seed = 0
    """Seed of the posterior draws."""

    @property
    def standardised(self) -> bool:
        """Whether each pixel's part is scaled by its values on held-out normal images."""
        return self.type != "contamination" if self.standardise is None else self.standardise

    @property
    def unit(self) -> str:
        """Unit of scores and their parts: nats, or standard deviations on held-out normals."""
        return "sd" if self.standardised else "nats"
