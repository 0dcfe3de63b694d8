"""Combine the sections into the configuration of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from anomaly_vae.config.base import Section
from anomaly_vae.config.calibration import CalibrationConfig, ImageCalibrationConfig
from anomaly_vae.config.data import DataConfig, ImageData, TabularData
from anomaly_vae.config.lifecycle import EvaluationConfig, MLflowConfig, PromotionConfig
from anomaly_vae.config.model import (
    ImageModelConfig,
    ModelConfig,
    ResolvedImageModel,
    ResolvedModel,
)
from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.config.training import (
    ImageTrainingConfig,
    ResolvedImageTraining,
    ResolvedTraining,
    TrainingConfig,
)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tabular": {
        "fast": {
            "model": {
                "members": 1,
                "depth": 1,
                "hidden_dim": 64,
                "components": 64,
                "exemplars": 0,
            }
        },
        "best": {"model": {"members": 8, "components": 512, "exemplars": 8192}},
    },
    "image": {
        "fast": {"model": {"width": 8, "hidden_dim": 128}, "training": {"epochs": 10}},
        "best": {"model": {"width": 32}, "training": {"patience": 40}},
    },
}
"""Defaults that each preset changes, by kind of data."""
BACKBONE_DEFAULTS: dict[str, Any] = {
    "data": {"size": 224, "fit": "stretch"},
    "score": {"standardise": False},
    "training": {"beta": 0.3, "keep": "best"},
}
"""Defaults that `model.backbone` changes."""
DENSITY_DEFAULTS: dict[str, Any] = {"training": {"beta": 1.0}}
"""Defaults that likelihoods of images change if they are densities, in nats."""


class BaseConfig(Section):
    """Configuration common to all detectors."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    """Name of the registered model."""
    preset: Literal["fast", "default", "best"] = "default"
    """Set of defaults, from fast to accurate; keys that are given override it."""
    description: str | None = None
    """Purpose of the model, shown in its model card."""
    calibration: CalibrationConfig = CalibrationConfig()
    """Threshold."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Figures reported on the test split."""
    promotion: PromotionConfig = PromotionConfig()
    """Policy for replacing the champion."""
    mlflow: MLflowConfig = MLflowConfig()
    """Location of runs and models."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("score"), str):  # score: neg_elbo is short for score.type
            value = {**value, "score": {"type": value["score"]}}
        presets = PRESETS[cls.model_fields["kind"].default]
        defaults = merged(cls._implied(value), presets.get(str(value.get("preset")), {}))
        return merged(defaults, value)

    @classmethod
    def _implied(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that other keys of a configuration change."""
        del value
        return {}

    @model_validator(mode="after")
    def _check_renewal(self) -> Self:
        data: TabularData | ImageData = self.data  # type: ignore[attr-defined]  # of every subclass
        if self.promotion.renew_test and not data.time:
            raise ValueError(
                "promotion.renew_test needs the times of rows, which show that newer test rows "
                "did not train the champion; name data.time"
            )
        return self

    @field_validator("name", mode="before")
    @classmethod
    def _accept_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    def recorded(self) -> dict[str, Any]:
        """Return the part that the manifest records, as plain values.

        Paths, devices, servers and policies are left out, because they do not change the model.
        `training.warm_start` is left out, too: the manifest has the digest of that model.
        """
        data: DataConfig = self.data  # type: ignore[attr-defined]  # a field of every subclass
        exclude: Any = {
            "data": {"path", "labels", *data.unset},
            "calibration": self.calibration.unset,
            "model": self.model.unset,  # type: ignore[attr-defined]
            "training": {"device", "resume", "warm_start"},
            "promotion": True,
            "mlflow": True,
        }
        return self.model_dump(mode="json", exclude=exclude)


class TabularConfig(BaseConfig):
    """Configuration of a detector for tables.

    >>> config = TabularConfig(name="fraud", data={"path": "rows.parquet"})
    >>> config.calibration.alpha, config.model.latent_dim
    (0.01, None)
    >>> config.resolve(n_columns=12, n_rows=10_000).model.latent_dim
    12
    """

    kind: Literal["tabular"] = "tabular"
    """Kind of data: `tabular` or `image`."""
    data: TabularData
    """Input data."""
    model: ModelConfig = ModelConfig()
    """Networks and likelihoods."""
    training: TrainingConfig = TrainingConfig()
    """Fit."""
    score: ScoreConfig = ScoreConfig()
    """Anomaly score; its type may be given in place of the section: `score: neg_elbo`."""

    @model_validator(mode="before")
    @classmethod
    def _ignore_density_ratio(cls, value: Any) -> Any:
        """Leave the column of weights out of the features."""
        match value:
            case {"calibration": {"density_ratio": str(column)}, "data": dict(data)}:
                ignore = data.get("ignore", ())
                if isinstance(ignore, list | tuple) and column not in ignore:
                    return {**value, "data": {**data, "ignore": (*ignore, column)}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_time_zone(cls, value: Any) -> Any:
        """Count the alerts of a budget per day in the time zone of the data."""
        match value:
            case {"calibration": {"per_day": per_day, **rest}, "data": {"timezone": zone}}:
                if per_day and zone and rest.get("time_zone") is None:
                    calibration = {**rest, "per_day": per_day, "time_zone": zone}
                    return {**value, "calibration": calibration}
        return value

    def resolve(self, n_columns: int, n_rows: int) -> ResolvedTabularConfig:
        """Fill in all sizes that depend on the data.

        Args:
            n_columns: number of encoded columns.
            n_rows: number of training rows.
        """
        sizes = {"model": self.model.resolve(n_columns), "training": self.training.resolve(n_rows)}
        return ResolvedTabularConfig.model_validate({**dict(self), **sizes})


class ResolvedTabularConfig(TabularConfig):
    """Configuration of a detector for tables with all sizes known."""

    model: ResolvedModel
    training: ResolvedTraining


class ImageConfig(BaseConfig):
    """Configuration of a detector for images.

    >>> config = ImageConfig(name="scans", data={"path": "scans/"}, score="reconstruction")
    >>> config.calibration.alpha, config.score.type
    (0.05, 'reconstruction')
    """

    kind: Literal["image"] = "image"
    """Kind of data: `tabular` or `image`."""
    data: ImageData
    """Input data."""
    model: ImageModelConfig = ImageModelConfig()
    """Networks and likelihoods."""
    training: ImageTrainingConfig = ImageTrainingConfig()
    """Fit."""
    score: ImageScoreConfig = ImageScoreConfig()
    """Anomaly score; its type may be given in place of the section: `score: neg_elbo`."""
    calibration: ImageCalibrationConfig = ImageCalibrationConfig()
    """Threshold."""

    @classmethod
    def _implied(cls, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that a backbone or a likelihood changes."""
        match value.get("model"):
            case {"backbone": str(name)} if name != "none":
                return BACKBONE_DEFAULTS
            case {"likelihood": str(name)} if name != "contrast":
                return DENSITY_DEFAULTS
        return {}

    @model_validator(mode="after")
    def _check_backbone(self) -> Self:
        if self.model.backbone == "none":
            return self
        if self.model.localization_head:
            raise ValueError(
                "model.backbone localises by itself; leave model.localization_head out"
            )
        if self.data.tiles is not None or self.data.mask is not None:
            raise ValueError(
                "model.backbone sees patches of whole images; leave data.tiles and data.mask out"
            )
        if (self.score.type, self.score.draws, self.score.standardised) != ("neg_elbo", 1, False):
            raise ValueError(
                "patches of model.backbone are scored by neg_elbo, in nats and at the posterior "
                "mean; leave score.type, score.draws and score.standardise out"
            )
        return self

    @model_validator(mode="after")
    def _check_score(self) -> ImageConfig:
        if self.score.type == "contamination" and not self.model.localization_head:
            raise ValueError("score contamination needs model.localization_head: true")
        if self.model.network == "hierarchical" and self.score.draws > 1:
            raise ValueError("a hierarchical model is scored at its posterior mean: score.draws 1")
        return self

    @model_validator(mode="after")
    def _refuse_columns(self) -> ImageConfig:
        for key in ("group_by", "density_ratio", "entity"):
            if getattr(self.calibration, key):
                raise ValueError(
                    f"calibration.{key} names a column, and an image to be scored has none; leave "
                    "it out"
                )
        return self

    def resolve(self, n_columns: int, n_rows: int) -> ResolvedImageConfig:
        """Fill in all sizes that depend on the data.

        Args:
            n_columns: number of pixels times channels.
            n_rows: number of training images.
        """
        sizes = {"model": self.model.resolve(n_columns), "training": self.training.resolve(n_rows)}
        return ResolvedImageConfig.model_validate({**dict(self), **sizes})


class ResolvedImageConfig(ImageConfig):
    """Configuration of a detector for images with all sizes known."""

    model: ResolvedImageModel
    training: ResolvedImageTraining


Config = TabularConfig | ImageConfig


KINDS: dict[str, type[TabularConfig] | type[ImageConfig]] = {
    "tabular": TabularConfig,
    "image": ImageConfig,
}
"""Type of configuration by the value of `kind`."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the keys of ``over`` replaced, section by section.

    >>> merged({"model": {"depth": 2, "members": 3}}, {"model": {"depth": 1}})
    {'model': {'depth': 1, 'members': 3}}
    """
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        out[key] = merged(below or {}, value) if both else value
    return out
