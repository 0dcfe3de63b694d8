"""Describe how a model is fitted."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field

from anomaly_vae.config.base import Probability, Section, Seed


class FitConfig(Section):
    """How a model of any kind is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: about 600 steps, 3 to 300 epochs"""
    batch_size: int | None = Field(None, ge=1)
    """absent: a 32nd of the rows as a power of two, 32 to 512"""
    learning_rate: float = Field(4e-3, gt=0)
    """peak of the cosine schedule"""
    weight_decay: float = Field(1e-5, ge=0)
    """of AdamW"""
    clip_norm: float = Field(5.0, gt=0)
    """largest norm of the gradient"""
    beta: float = Field(1.0, ge=0)
    """weight of the KL term (Higgins et al. 2017)"""
    kl_warmup: float = Field(0.3, ge=0, le=1)
    """share of the steps over which beta rises from 0"""
    free_bits: float = Field(0.0, ge=0)
    """nats per latent dimension that cost nothing (Kingma et al. 2016)"""
    trim: float = Field(0.0, ge=0, le=0.5)
    """share of the rows, the worst fitting ones, that do not teach (Shen & Sanghavi 2019)"""
    keep: Literal["best", "last"] = "best"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""
    patience: int = Field(20, ge=1)
    """keep best: epochs without a better validation ELBO before stopping"""
    seed: Seed = 0
    """of the initial weights, the order of the rows and the noise"""
    threads: int = Field(1, ge=1)
    """of the CPU while fitting; small networks are fastest with one"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of the networks while fitting; bfloat16 is faster on GPUs that have it"""
    resume: bool = True
    """continue from a checkpoint of the same data and configuration"""
    warm_start: str | None = None
    """folder or URI of a model whose weights the fit starts from, where they fit"""

    STEPS: ClassVar[int] = 600
    """Of a fit whose epochs are absent, at least, where 300 epochs are enough for that."""
    EPOCHS: ClassVar[int] = 0
    """Of such a fit, at least, where that takes no more than `MOST_STEPS`."""
    MOST_STEPS: ClassVar[int] = 6000

    def resolve(self, n_rows: int) -> Self:
        """Fill what is absent from the number of training rows."""
        batch = 2 ** round(math.log2(max(n_rows / 32, 1)))
        batch = self.batch_size or min(max(batch, 32), 512)
        per_epoch = max(1, math.ceil(n_rows / batch))
        wanted = max(self.STEPS / per_epoch, min(self.EPOCHS, self.MOST_STEPS / per_epoch))
        epochs = self.epochs or min(max(round(wanted), 3), 300)
        return self.model_copy(update={"batch_size": batch, "epochs": epochs})

    def trims(self, members: int) -> tuple[float, ...]:
        """The share of the rows that each of a model's members does not learn from."""
        return (self.trim,) * members


class TrainingConfig(FitConfig):
    """How a tabular model is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: 80, but at least 600 steps, at most 6,000, and 3 to 300 epochs"""
    learning_rate: float = Field(3e-3, gt=0)
    """peak of the cosine schedule"""
    beta: float = Field(0.3, ge=0)
    """weight of the KL term (Higgins et al. 2017)"""
    keep: Literal["best", "last"] = "last"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""
    noise: float = Field(0.2, ge=0)
    """deviation of the noise on standardised numbers that the encoder has to see through"""
    hide: float = Field(0.02, ge=0, lt=1)
    """share of the cells treated as missing in each batch, so that missing ones are met"""
    guard: float = Field(0.1, ge=0, le=0.5)
    """what is trimmed of the last of several members: it is surprised by what the others learned"""

    EPOCHS: ClassVar[int] = 80

    def trims(self, members: int) -> tuple[float, ...]:
        """See `FitConfig.trims`; of several members the last is the guard."""
        guard = max(self.trim, self.guard) if members > 1 else self.trim
        return (*super().trims(members - 1), guard)


class CorruptionConfig(Section):
    """What is done to an image that the model then has to see through."""

    type: Literal["none", "coarse", "pixel", "mask", "downsample"] = "coarse"
    """noise on a coarse grid, noise per pixel, squares hidden, or fewer pixels"""
    strength: float = Field(0.25, ge=0)
    """deviation of the noise, share of the side hidden, or of the resolution lost"""


class AugmentationConfig(Section):
    """Random changes that leave an image normal; whole batches at once."""

    flip: Probability = 0.0
    """of mirroring left to right"""
    rotation: Probability = 0.0
    """of turning by up to `degrees`"""
    degrees: float = Field(10.0, ge=0, le=180)
    """the largest turn to either side"""


class ImageTrainingConfig(FitConfig):
    """How an image model is fitted."""

    epochs: int | None = Field(None, ge=1)
    """upper bound; absent: about 600 steps, 3 to 300 epochs"""
    batch_size: int | None = Field(None, ge=2)
    """absent: a 32nd of the images as a power of two, 32 to 512; batch norm needs two"""
    kl_warmup: float = Field(0.2, ge=0, le=1)
    """share of the steps over which beta rises from 0"""
    keep: Literal["best", "last"] = "last"
    """weights of the best validation ELBO, or of the last epoch and no early stop"""

    corruption: CorruptionConfig = CorruptionConfig()
    """makes the model a denoiser, an inpainter or a super-resolver"""
    augmentation: AugmentationConfig = AugmentationConfig()
    """mirroring and turning"""
