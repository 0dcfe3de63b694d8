"""Describe the networks and their likelihoods."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from anomaly_vae.config.base import Section


class ModelConfig(Section):
    """Networks of a tabular model, and its likelihood."""

    type: Literal["vae", "autoencoder"] = "vae"
    """Kind of model: `vae`, or `autoencoder`, the same networks without noise and KL term."""
    members: int = Field(3, ge=1, le=64)
    """Number of networks trained side by side; a score is the mean over members, with limited
    influence of the last one, the guard."""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """Number of latent dimensions; null: the number of encoded columns, 1 to 64."""
    hidden_dim: int | None = Field(None, ge=1, le=8192)
    """Number of units per hidden layer; null: twice the number of encoded columns, rounded up to a
    power of two, 64 to 256."""
    depth: int = Field(2, ge=0, le=16)
    """Number of hidden layers in the encoder and in the decoder; 0 makes both linear."""
    likelihood: Literal["gaussian", "student_t"] = "gaussian"
    """Likelihood of numeric columns."""
    variance_floor: float = Field(0.01, gt=0)
    """Smallest variance of the likelihood of a standardised numeric column."""
    posterior_variance: Literal["shared", "row"] = "shared"
    """Variance of the approximate posterior: one vector `shared` by all rows, or one per `row`."""
    prior: Literal["aggregated", "standard"] = "aggregated"
    """Prior of scores and samples: the `aggregated` posterior, or the `standard` normal one, which
    every model is trained with."""
    components: int = Field(128, ge=1, le=65_536)
    """Largest number of mixture components of the aggregated posterior."""
    exemplars: int = Field(4096, ge=0, le=65_536)
    """Largest number of training rows in the exemplar member, a kernel density whose bound counts
    for half of the score; 0: no such member."""
    known: Literal["off", "auto"] = "off"
    """Whether labelled anomalies of the training period teach boosted trees, whose surprise is
    added to that of the detector: `off`, or `auto`, from 30 of them on."""

    @field_validator("known", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        """Accept what YAML makes of a bare ``off``."""
        return "off" if value is False else value

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        return {"known"} if self.known == "off" else set()

    def resolve(self, n_columns: int) -> ResolvedModel:
        """Fill in sizes that are None.

        Args:
            n_columns: number of encoded columns.
        """
        width = 2 ** math.ceil(math.log2(max(2 * n_columns, 2)))
        sizes = {
            "latent_dim": self.latent_dim or min(max(n_columns, 1), 64),
            "hidden_dim": self.hidden_dim or min(max(width, 64), 256),
        }
        return ResolvedModel.model_validate({**dict(self), **sizes})


class ResolvedModel(ModelConfig):
    """Networks of a tabular model with all sizes known."""

    latent_dim: int
    hidden_dim: int


class ImageModelConfig(Section):
    """Network of an image model, and its likelihood."""

    type: Literal["vae", "autoencoder"] = "vae"
    """Kind of model: `vae`, or `autoencoder`, the same networks without noise and KL term."""
    network: Literal["convolutional", "residual", "dense", "hierarchical"] = "hierarchical"
    """Architecture; `hierarchical` has latents at three resolutions (Sønderby et al. 2016)."""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """Number of latent dimensions, for `hierarchical` the channels of the coarsest level; null: 16,
    for `hierarchical` 8, with a `backbone` 64."""
    width: int = Field(16, ge=1, le=512)
    """Number of channels of the finest convolutions; each halving of the resolution doubles it."""
    hidden_dim: int = Field(256, ge=1, le=8192)
    """Number of units per dense layer."""
    upsampling: Literal["resize", "shuffle", "transposed"] | None = None
    """Upsampling layer of decoders: `resize` enlarges linearly before a convolution, which leaves
    neither grids nor frames in pictures; pixel `shuffle`, or a `transposed` convolution; null:
    `resize` for `hierarchical` with `localization_head`, else `shuffle`."""
    likelihood: Literal["gaussian", "laplace", "bernoulli", "structural", "contrast"] = "contrast"
    """Likelihood of pixels; `structural` is Gaussian on bands of local contrast, `contrast` counts
    the fraction of local variance left unexplained."""
    variance_floor: float = Field(1e-3, gt=0)
    """Smallest variance of a `gaussian`, `laplace` or `structural` likelihood."""
    localization_head: bool = False
    """Whether a second network learns which pixels are anomalous, from synthetic corruption."""
    symmetry: bool | None = None
    """Whether that network compares each place with the opposite one of the mirror image, for
    images whose two sides look alike; null: yes with `localization_head`."""
    backbone: Literal["none", "efficientnet_lite0"] = "none"
    """Network trained on photographs whose patch features are modelled in place of pixels, for
    industrial pictures: `efficientnet_lite0`, which needs the extra `backbone`, or `none`."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_known(cls, value: Any) -> Any:
        """Refuse the head that learns from known anomalies, which only tables have."""
        if not isinstance(value, dict) or "known" not in value:
            return value
        if value["known"] not in (False, "off"):
            raise ValueError(
                "known: auto learns from the columns of tables, and images have none; set "
                "model.known: off, and name the labels in data.label to evaluate and to choose "
                "the threshold"
            )
        return {key: own for key, own in value.items() if key != "known"}

    @property
    def unset(self) -> set[str]:
        """Keys that the manifest leaves out, because they have their defaults."""
        usual = {"backbone": self.backbone == "none", "symmetry": not self.symmetry}
        return {key for key, unset in usual.items() if unset}

    def resolve(self, n_columns: int) -> ResolvedImageModel:
        """Fill in sizes that are None; the number of pixels, ``n_columns``, has no influence."""
        del n_columns
        hierarchical = self.network == "hierarchical"
        usual = 8 if hierarchical else 16
        filled = {
            "latent_dim": self.latent_dim or (usual if self.backbone == "none" else 64),
            "upsampling": self.upsampling
            or ("resize" if hierarchical and self.localization_head else "shuffle"),
            "symmetry": self.localization_head and self.symmetry is not False,
        }
        return ResolvedImageModel.model_validate({**dict(self), **filled})


class ResolvedImageModel(ImageModelConfig):
    """Network of an image model with all sizes known."""

    latent_dim: int
    upsampling: Literal["resize", "shuffle", "transposed"]
    symmetry: bool
