"""Define the types that the fixtures of the pipeline tests return."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_vae.config import Config
from pipelines.promotion.decision import Promotion
from pipelines.registry.model_uri import LoadedModel
from pipelines.training.calibrate import Calibrated
from pipelines.training.train import Trained


@dataclass(frozen=True)
class World:
    """A folder with a registry and the results of training, calibration and promotion."""

    folder: Path
    config: Config
    trained: Trained
    calibrated: Calibrated
    promotion: Promotion

    @property
    def source(self) -> LoadedModel:
        """Return the champion as commands load it."""
        return LoadedModel(self.calibrated.bundle, "fraud", "1", "champion")


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Return the JSON object printed to stdout."""
        content: dict[str, Any] = json.loads(self.out)
        return content


Command = Callable[..., Answer]
