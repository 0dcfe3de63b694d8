"""Describe the anomaly score."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from anomaly_vae.config.base import Section, Seed


class ScoreConfig(Section):
    """What the anomaly score is."""

    type: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo"
    """in nats, higher is more anomalous"""
    draws: int = Field(1, ge=1, le=1024)
    """frozen posterior draws, shared by all rows; 1 is the posterior mean"""
    seed: Seed = 0
    """of the draws"""

    unit: ClassVar[str] = "nats"
    """Of scores and their parts."""


class ImageScoreConfig(Section):
    """What the anomaly score of an image is."""

    type: Literal[
        "neg_elbo", "reconstruction", "importance_weighted", "structural", "contamination"
    ] = "neg_elbo"
    """higher is more anomalous; see docs/configuration.md"""
    standardise: bool | None = None
    """pixels by their mean and deviation on held-out normals; absent: all but contamination"""
    draws: int = Field(1, ge=1, le=1024)
    """frozen posterior draws, shared by all images; 1 is the posterior mean"""
    seed: Seed = 0
    """of the draws"""

    @property
    def standardised(self) -> bool:
        """Whether pixels are measured by what they are on held-out normals."""
        return self.type != "contamination" if self.standardise is None else self.standardise

    @property
    def unit(self) -> str:
        """Of scores and their parts: nats, or standard deviations on held-out normals."""
        return "sd" if self.standardised else "nats"
