"""Describe the networks and their likelihoods."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from anomaly_vae.config.base import Section


class ModelConfig(Section):
    """The network and its likelihoods."""

    type: Literal["vae", "autoencoder"] = "vae"
    """autoencoder: the deterministic twin, without noise or rate"""
    members: int = Field(3, ge=1, le=64)
    """networks fitted side by side; scores are their mean, the guard's within limits"""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """absent: the encoded columns, 1 to 64"""
    hidden_dim: int | None = Field(None, ge=1, le=8192)
    """absent: twice the encoded columns as a power of two, 64 to 256"""
    depth: int = Field(2, ge=0, le=16)
    """hidden layers in encoder and decoder; 0 is linear"""
    likelihood: Literal["gaussian", "student_t"] = "gaussian"
    """of numeric columns"""
    variance_floor: float = Field(0.01, gt=0)
    """smallest variance of a standardised numeric column"""
    posterior_variance: Literal["shared", "row"] = "shared"
    """of q(z|x): one vector for all rows, or each row its own"""
    prior: Literal["aggregated", "standard"] = "aggregated"
    """of scores and samples: the aggregated posterior, or N(0, I) as in training"""
    components: int = Field(256, ge=1, le=65_536)
    """most parts of the aggregated posterior"""

    def resolve(self, n_columns: int) -> ModelConfig:
        """Fill what is absent from the number of encoded columns."""
        width = 2 ** math.ceil(math.log2(max(2 * n_columns, 2)))
        return self.model_copy(
            update={
                "latent_dim": self.latent_dim or min(max(n_columns, 1), 64),
                "hidden_dim": self.hidden_dim or min(max(width, 64), 256),
            }
        )


class ImageModelConfig(Section):
    """The network of an image model and its likelihood."""

    type: Literal["vae", "autoencoder"] = "vae"
    """autoencoder: the deterministic twin, without noise or rate"""
    network: Literal["convolutional", "residual", "dense", "hierarchical"] = "hierarchical"
    """hierarchical: latents at three resolutions (Sønderby et al. 2016)"""
    latent_dim: int | None = Field(None, ge=1, le=4096)
    """absent: 16; hierarchical: channels of the coarsest level, absent: 8"""
    width: int = Field(16, ge=1, le=512)
    """channels of the finest convolutions, doubled with each halving of the side"""
    hidden_dim: int = Field(256, ge=1, le=8192)
    """units of the dense layers"""
    upsampling: Literal["shuffle", "transposed"] = "shuffle"
    """how decoders double the side: pixel shuffle or transposed convolution"""
    likelihood: Literal["gaussian", "laplace", "bernoulli", "structural", "contrast"] = "contrast"
    """structural: Gaussian on bands of local contrast; contrast: what is unexplained of it"""
    variance_floor: float = Field(1e-3, gt=0)
    """smallest variance that a Gaussian or a Laplace learns"""
    localization_head: bool = False
    """a second network learns which pixels do not belong, from inserted corruption"""

    def resolve(self, n_columns: int) -> ImageModelConfig:
        """Fill what is absent; the size of the images decides nothing yet."""
        del n_columns
        usual = 8 if self.network == "hierarchical" else 16
        return self.model_copy(update={"latent_dim": self.latent_dim or usual})
