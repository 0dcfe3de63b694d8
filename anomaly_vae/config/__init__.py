"""Define, read and validate the configuration of a detector.

Unknown keys are refused with the nearest known name. Sizes that are None are chosen when the model
is fitted, from the size of the data: `TabularConfig.resolve` and `ImageConfig.resolve` return
configurations in which all sizes are known. They are recorded with the model.
"""

from anomaly_vae.config.base import Section, utc
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig, ImageCalibrationConfig
from anomaly_vae.config.data import DataConfig, Feature, ImageData, Splits, TabularData
from anomaly_vae.config.detector import (
    KINDS,
    PRESETS,
    BaseConfig,
    Config,
    ImageConfig,
    ResolvedImageConfig,
    ResolvedTabularConfig,
    TabularConfig,
    merged,
)
from anomaly_vae.config.lifecycle import EvaluationConfig, MLflowConfig, PromotionConfig
from anomaly_vae.config.loading import fields, load_config, validate_config
from anomaly_vae.config.model import (
    ImageModelConfig,
    ModelConfig,
    ResolvedImageModel,
    ResolvedModel,
)
from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.config.training import (
    AugmentationConfig,
    CorruptionConfig,
    FitConfig,
    ImageTrainingConfig,
    ResolvedFit,
    ResolvedImageTraining,
    ResolvedTraining,
    TrainingConfig,
)

__all__ = [
    "KINDS",
    "PRESETS",
    "AugmentationConfig",
    "BaseConfig",
    "CalibrationConfig",
    "Config",
    "CorruptionConfig",
    "CostConfig",
    "DataConfig",
    "EvaluationConfig",
    "Feature",
    "FitConfig",
    "ImageCalibrationConfig",
    "ImageConfig",
    "ImageData",
    "ImageModelConfig",
    "ImageScoreConfig",
    "ImageTrainingConfig",
    "MLflowConfig",
    "ModelConfig",
    "PromotionConfig",
    "ResolvedFit",
    "ResolvedImageConfig",
    "ResolvedImageModel",
    "ResolvedImageTraining",
    "ResolvedModel",
    "ResolvedTabularConfig",
    "ResolvedTraining",
    "ScoreConfig",
    "Section",
    "Splits",
    "TabularConfig",
    "TabularData",
    "TrainingConfig",
    "fields",
    "load_config",
    "merged",
    "utc",
    "validate_config",
]
