"""Describe how a model is fitted."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from anomaly_vae.config.base import Probability, Section, Seed


class FitConfig(Section):
    """Settings of a fit, common to tables and images."""

    epochs: int | None = Field(None, ge=1)
    """Largest number of epochs; null: as many as make about 600 steps, 3 to 300."""
    batch_size: int | None = Field(None, ge=1)
    """Number of rows per batch; null: 1/32 of the training rows, rounded to a power of two, 32 to
    512."""
    learning_rate: float = Field(4e-3, gt=0)
    """Peak learning rate of the cosine schedule."""
    weight_decay: float = Field(1e-5, ge=0)
    """Weight decay of AdamW."""
    clip_norm: float = Field(5.0, gt=0)
    """Largest norm of the gradient; longer gradients are scaled down to it."""
    beta: float = Field(1.0, ge=0)
    """Weight of the KL term (Higgins et al. 2017)."""
    kl_warmup: float = Field(0.3, ge=0, le=1)
    """Fraction of the steps over which the weight of the KL term rises from 0 to `beta`."""
    free_bits: float = Field(0.0, ge=0)
    """KL divergence per latent dimension that costs nothing, in nats (Kingma et al. 2016)."""
    trim: float = Field(0.0, ge=0, le=0.5)
    """Fraction of rows, those with the highest loss, excluded from training (Shen & Sanghavi
    2019)."""
    keep: Literal["best", "last"] = "last"
    """Weights to keep: those of the `best` validation ELBO, which also stops early, or of the
    `last` epoch."""
    patience: int = Field(20, ge=1)
    """With `keep: best`: number of epochs without a better validation ELBO before stopping."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the rows and the noise."""
    threads: int = Field(1, ge=1)
    """Number of CPU threads; small networks are fastest with one. A forked process uses one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; `auto` takes a GPU if there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the networks in training; `bfloat16` is faster on GPUs that support it."""
    resume: bool = True
    """Whether to continue from a checkpoint of the same data and configuration."""
    warm_start: str | None = None
    """Folder or URI of a model whose weights to start from if they fit; null: random weights."""

    STEPS: ClassVar[int] = 600
    """Smallest number of steps of a fit without `epochs`, unless that takes over 300 epochs."""
    EPOCHS: ClassVar[int] = 0
    """Smallest number of epochs of a fit without `epochs`, unless that takes over `MOST_STEPS`."""
    MOST_STEPS: ClassVar[int] = 6000
    """Number of steps up to which `EPOCHS` applies."""

    def trims(self, members: int) -> tuple[float, ...]:
        """Return the fraction of rows that each of a model's members is not trained on."""
        return (self.trim,) * members

    def _sizes(self, n_rows: int) -> dict[str, int]:
        """Choose batch size and epochs from the number of training rows."""
        batch = 2 ** round(math.log2(max(n_rows / 32, 1)))
        batch = self.batch_size or min(max(batch, 32), 512)
        per_epoch = max(1, math.ceil(n_rows / batch))
        wanted = max(self.STEPS / per_epoch, min(self.EPOCHS, self.MOST_STEPS / per_epoch))
        return {"batch_size": batch, "epochs": self.epochs or min(max(round(wanted), 3), 300)}


class TrainingConfig(FitConfig):
    """Settings of a fit on a table."""

    epochs: int | None = Field(None, ge=1)
    """Largest number of epochs; null: 80, raised to make at least 600 steps, lowered to make at
    most 6,000, but 3 to 300."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate of the cosine schedule."""
    beta: float = Field(0.3, ge=0)
    """Weight of the KL term (Higgins et al. 2017)."""
    noise: float = Field(0.2, ge=0)
    """Standard deviation of the noise added to standardised numbers before the encoder."""
    hide: float = Field(0.02, ge=0, lt=1)
    """Fraction of cells hidden in each batch, so that the model learns to handle missing values."""
    guard: float = Field(0.1, ge=0, le=0.5)
    """Fraction of highest-loss rows excluded from training the last of several members, so that it
    does not learn anomalies the others did."""

    EPOCHS: ClassVar[int] = 80

    def trims(self, members: int) -> tuple[float, ...]:
        """Return the fraction of rows that each member is not trained on; the last is the guard."""
        guard = max(self.trim, self.guard) if members > 1 else self.trim
        return (*super().trims(members - 1), guard)

    def resolve(self, n_rows: int) -> ResolvedTraining:
        """Fill in sizes that are None.

        Args:
            n_rows: number of training rows.
        """
        return ResolvedTraining.model_validate({**dict(self), **self._sizes(n_rows)})


class ResolvedTraining(TrainingConfig):
    """Settings of a fit on a table with all sizes known."""

    epochs: int
    batch_size: int


class CorruptionConfig(Section):
    """Corruption of training images that the model learns to undo."""

    type: Literal["none", "coarse", "pixel", "mask", "downsample"] = "coarse"
    """Kind of corruption: noise on a `coarse` grid, noise per `pixel`, hidden squares (`mask`), or
    lower resolution (`downsample`)."""
    strength: float = Field(0.25, ge=0)
    """Standard deviation of the noise, fraction of the side hidden, or fraction of the resolution
    lost."""


class AugmentationConfig(Section):
    """Random changes to training images that leave them normal, drawn anew for each image."""

    flip: Probability = 0.0
    """Probability of mirroring left to right."""
    rotation: Probability = 0.0
    """Probability of rotating by a random angle of up to `degrees`."""
    degrees: float = Field(10.0, ge=0, le=180)
    """Largest rotation to either side, in degrees."""


class ImageTrainingConfig(FitConfig):
    """Settings of a fit on images."""

    batch_size: int | None = Field(None, ge=2)
    """Number of images per batch, at least 2 for batch normalisation; null: 1/32 of the training
    images, rounded to a power of two, 32 to 512."""
    beta: float = Field(0.03, ge=0)
    """Weight of the KL term (Higgins et al. 2017); 1 for any other `model.likelihood` than
    `contrast`, whose energy has no scale of its own."""
    kl_warmup: float = Field(0.2, ge=0, le=1)
    """Fraction of the steps over which the weight of the KL term rises from 0 to `beta`."""
    corruption: CorruptionConfig = CorruptionConfig()
    """Corruption that makes the model a denoiser, an inpainter or a super-resolver."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random mirroring and rotation of training images."""

    def resolve(self, n_rows: int) -> ResolvedImageTraining:
        """Fill in sizes that are None.

        Args:
            n_rows: number of training images.
        """
        return ResolvedImageTraining.model_validate({**dict(self), **self._sizes(n_rows)})


class ResolvedImageTraining(ImageTrainingConfig):
    """Settings of a fit on images with all sizes known."""

    epochs: int
    batch_size: int


ResolvedFit = ResolvedTraining | ResolvedImageTraining
