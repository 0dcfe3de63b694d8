"""Describe what the fixtures of pipelines return."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_vae.config import Config
from pipelines.promotion.promote import Promotion
from pipelines.registry.model_uri import LoadedModel
from pipelines.training.calibrate import Calibrated
from pipelines.training.train import Trained


@dataclass(frozen=True)
class World:
    """A folder with a registry, and what was made in it."""

    folder: Path
    config: Config
    trained: Trained
    calibrated: Calibrated
    promotion: Promotion

    @property
    def source(self) -> LoadedModel:
        """The champion as commands open it."""
        return LoadedModel(self.calibrated.bundle, "fraud", "1", "champion")


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        content: dict[str, Any] = json.loads(self.out)
        return content


Command = Callable[..., Answer]
