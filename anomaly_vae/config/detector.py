"""Put the sections together into the configuration of one detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from anomaly_vae.config.base import Section
from anomaly_vae.config.calibration import CalibrationConfig, ImageCalibrationConfig
from anomaly_vae.config.data import ImageData, TabularData
from anomaly_vae.config.lifecycle import EvaluationConfig, MLflowConfig, PromotionConfig
from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.config.training import ImageTrainingConfig, TrainingConfig

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tabular": {
        "fast": {"model": {"members": 1, "depth": 1, "hidden_dim": 64, "components": 64}},
        "best": {"model": {"members": 8, "components": 512}},
    },
    "image": {
        "fast": {"model": {"width": 8, "hidden_dim": 128}, "training": {"epochs": 10}},
        "best": {"model": {"width": 32}, "training": {"patience": 40}},
    },
}


class BaseConfig(Section):
    """What the configuration of every detector has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    """of the registered model"""
    preset: Literal["fast", "default", "best"] = "default"
    """defaults of several keys at once"""
    description: str | None = None
    """what the model is for; its card says so"""
    calibration: CalibrationConfig = CalibrationConfig()
    """what to promise"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """what to tell of the test split"""
    promotion: PromotionConfig = PromotionConfig()
    """when to replace the champion"""
    mlflow: MLflowConfig = MLflowConfig()
    """where to record it"""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("score"), str):  # score: neg_elbo is short for score.type
            value = {**value, "score": {"type": value["score"]}}
        presets = PRESETS[cls.model_fields["kind"].default]
        return merged(presets.get(str(value.get("preset")), {}), value)

    @field_validator("name", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    def recorded(self) -> dict[str, Any]:
        """What belongs to the model: everything but paths, devices, servers and policies.

        Of a model that it starts from, the digest belongs to it, which a path does not tell.
        """
        exclude: Any = {
            "data": {"path"},
            "training": {"device", "resume", "warm_start"},
            "promotion": True,
            "mlflow": True,
        }
        return self.model_dump(mode="json", exclude=exclude)


class TabularConfig(BaseConfig):
    """The whole of a tabular detector's configuration."""

    kind: Literal["tabular"] = "tabular"
    """what the rows are"""
    data: TabularData
    """what to read"""
    model: ModelConfig = ModelConfig()
    """what to fit"""
    training: TrainingConfig = TrainingConfig()
    """how to fit it"""
    score: ScoreConfig = ScoreConfig()
    """what to score by"""

    @model_validator(mode="before")
    @classmethod
    def _weights_are_no_feature(cls, value: Any) -> Any:
        match value:
            case {"calibration": {"density_ratio": str(column)}, "data": dict(data)}:
                ignore = data.get("ignore", ())
                if isinstance(ignore, list | tuple) and column not in ignore:
                    return {**value, "data": {**data, "ignore": (*ignore, column)}}
        return value


class ImageConfig(BaseConfig):
    """The whole of an image detector's configuration."""

    kind: Literal["image"] = "image"
    """what is scored"""
    data: ImageData
    """what to read"""
    model: ImageModelConfig = ImageModelConfig()
    """what to fit"""
    training: ImageTrainingConfig = ImageTrainingConfig()
    """how to fit it"""
    score: ImageScoreConfig = ImageScoreConfig()
    """what to score by"""
    calibration: ImageCalibrationConfig = ImageCalibrationConfig()
    """what to promise"""

    @model_validator(mode="after")
    def _score_fits_model(self) -> ImageConfig:
        if self.score.type == "contamination" and not self.model.localization_head:
            raise ValueError("score contamination needs model.localization_head: true")
        if self.model.network == "hierarchical" and self.score.draws > 1:
            raise ValueError("a hierarchical model is scored at its posterior mean: score.draws 1")
        return self

    @model_validator(mode="after")
    def _images_have_no_columns(self) -> ImageConfig:
        for key in ("group_by", "density_ratio"):
            if getattr(self.calibration, key):
                raise ValueError(
                    f"calibration.{key} names a column, and an image to be scored has none; leave "
                    "it out"
                )
        return self


Config = TabularConfig | ImageConfig


KINDS: dict[str, type[TabularConfig] | type[ImageConfig]] = {
    "tabular": TabularConfig,
    "image": ImageConfig,
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid upon ``base``, section by section."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = (
            merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return out
