"""Likelihoods p(x|z) of images: decoder outputs (..., C · S²) → a distribution over pixels.

Like those of tables they keep ``log_prob`` per value, (..., F), so that the map of an image adds
up to its score. Each has ``planes``: how many values per pixel it wants of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.likelihoods import (
    LOG_2PI,
    Bernoulli,
    Distribution,
    Gaussian,
    bounded,
    floored,
    randn_like,
)

INITIAL_LOG_VAR = -4.0
"""Where learned log-variances start: a standard deviation of an eighth on the image's scale."""


@dataclass(frozen=True)
class Laplace:
    """Laplace(mean, b): −|x − μ| / b − log 2b, with b² = ½ variance."""

    mean: Tensor
    log_var: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Distribution`."""
        log_scale = 0.5 * (self.log_var - math.log(2))
        return -(x - self.mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """See `Distribution`. By the scale mixture: normal times the root of an exponential."""
        uniform = torch.rand(self.mean.shape, generator=generator, device=self.mean.device)
        spread = torch.sqrt(-torch.log1p(-uniform))
        noise = randn_like(self.mean, generator)
        return self.mean + torch.exp(0.5 * self.log_var) * spread * noise


@dataclass(frozen=True)
class Clamped:
    """A Bernoulli of values on [0, 1]: what lies beyond counts as 0 or 1.

    Its log-probability is minus the binary cross-entropy, which is no density over grey values
    (Loaiza-Ganem & Cunningham 2019), but the usual criterion.
    """

    inner: Bernoulli

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Distribution`."""
        return self.inner.log_prob(x.clamp(0, 1))

    @property
    def mean(self) -> Tensor:
        """Probability of one."""
        return self.inner.mean

    def sample(self, generator: Generator | None = None) -> Tensor:
        """See `Distribution`; grey values are their expectation, not black and white."""
        del generator
        return self.inner.mean


class PixelLikelihood(nn.Module):
    """Gaussian or Laplace with one learned variance a channel, or Bernoulli.

    One variance for all pixels of a channel is the σ-VAE (Rybkin et al. 2021, sec. 4): it weighs
    reconstruction against rate by itself.
    """

    def __init__(self, layout: ImageLayout, family: str, variance_floor: float) -> None:
        super().__init__()
        self.layout, self.family, self.variance_floor = layout, family, variance_floor
        self.planes = layout.channels
        self.raw_log_var: nn.Parameter | None = None
        if family != "bernoulli":
            self.raw_log_var = nn.Parameter(torch.full((layout.channels, 1), INITIAL_LOG_VAR))

    def forward(self, outputs: Tensor) -> Distribution:
        """(..., F) → a distribution over (..., F)"""
        if self.raw_log_var is None:
            return Clamped(Bernoulli(bounded(outputs)))
        if self.family == "laplace":
            return Laplace(outputs, self.log_var())
        return Gaussian(outputs, self.log_var())

    def log_var(self) -> Tensor:
        """(F,)"""
        assert self.raw_log_var is not None
        log_var = floored(self.raw_log_var, self.variance_floor)
        return log_var.expand(-1, self.layout.size**2).flatten()


class Bands(nn.Module):
    """An image as bands of local contrast, from fine to coarse, and what is left below them.

    Band b is d / (√(blur(d²)) + c) / 4 with d = p − blur(p), where p is the blurred image of the
    band before: divisive normalisation (Lyu & Simoncelli 2008, eq. 1), as the local terms of
    structural similarity have it (Wang et al. 2004). The last band is the lowest, p − ½.
    """

    kernels: Tensor

    def __init__(self, sigmas: tuple[float, ...], contrast: float) -> None:
        super().__init__()
        self.contrast, self.count = contrast, len(sigmas) + 1
        for index, sigma in enumerate(sigmas):
            self.register_buffer(f"kernel_{index}", gaussian_kernel(sigma), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(M, C, S, S) → (M, count, C, S, S)"""
        bands, low = [], images
        for index in range(self.count - 1):
            kernel = self.get_buffer(f"kernel_{index}")
            blurred = blurred_by(low, kernel)
            detail = low - blurred
            spread = torch.sqrt(blurred_by(detail**2, kernel) + 1e-8)
            bands.append(0.25 * detail / (spread + self.contrast))
            low = blurred
        return torch.stack([*bands, low - 0.5], 1)


def gaussian_kernel(sigma: float) -> Tensor:
    """(2r + 1,) weights that add up to 1, r = 3σ."""
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1.0)
    weights = torch.exp(-(place**2) / (2 * sigma**2))
    return weights / weights.sum()


def blurred_by(images: Tensor, kernel: Tensor) -> Tensor:
    """(M, C, S, S) blurred along both axes, the border repeated."""
    radius, channels = len(kernel) // 2, images.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)


@dataclass(frozen=True)
class Structural:
    """N(T(x); T(mean), σ²) on the bands T of an image; log_var (count, 1, 1, 1)."""

    mean: Tensor
    log_var: Tensor
    bands: Bands
    shape: tuple[int, int, int]

    def log_prob(self, x: Tensor) -> Tensor:
        """See `Distribution`; a pixel's bands are summed."""
        expected, observed = self._transformed(self.mean), self._transformed(x)
        squared = (observed - expected) ** 2 * torch.exp(-self.log_var)
        return -0.5 * (squared + self.log_var + LOG_2PI).sum(-4).flatten(-3)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """The mean: a draw of the bands is not the bands of an image."""
        del generator
        return self.mean

    def _transformed(self, x: Tensor) -> Tensor:
        """(..., F) → (..., count, C, S, S)"""
        images: Tensor = x.flatten(0, -2).unflatten(1, self.shape)
        bands: Tensor = self.bands(images)
        return bands.view(*x.shape[:-1], *bands.shape[1:])


class StructuralLikelihood(nn.Module):
    """A Gaussian where structure shows: on local-contrast-normalised bands of the image.

    It is a proper density of the bands T(x), whose mean T(o(z)) belongs to an image o(z) that can
    be shown. Over images it is not normalised, since not all bands are those of an image. Each
    band's variance is learned.
    """

    SIGMAS, CONTRAST = (1.5, 4.0), 0.06

    def __init__(self, layout: ImageLayout, variance_floor: float) -> None:
        super().__init__()
        self.layout, self.variance_floor = layout, variance_floor
        self.planes = layout.channels
        self.bands = Bands(self.SIGMAS, self.CONTRAST)
        self.raw_log_var = nn.Parameter(torch.full((self.bands.count, 1, 1, 1), INITIAL_LOG_VAR))

    def forward(self, outputs: Tensor) -> Structural:
        """(..., F) → `Structural` over (..., F)"""
        log_var = floored(self.raw_log_var, self.variance_floor)
        return Structural(outputs, log_var, self.bands, self.layout.shape)


@dataclass(frozen=True)
class Contrast:
    """exp(−energy) around an image: what it leaves unexplained of the local contrast.

    In a window around each pixel, with residual e = x − mean:

        energy = WEIGHT · ((var e + c) / (var x + var mean + c) + LOW · (average e)²)

    the residual's share of the local variance, which is 1 minus the structure term of structural
    similarity (Wang et al. 2004) in another form, and the error of the local brightness. Unlike
    similarity it punishes an inverted image, and detail that is missing as much as detail too many.
    """

    mean: Tensor
    shape: tuple[int, int, int]

    WINDOW: ClassVar[int] = 7
    FLOOR: ClassVar[float] = 4e-3
    LOW: ClassVar[float] = 5.0
    WEIGHT: ClassVar[float] = 5.0

    def log_prob(self, x: Tensor) -> Tensor:
        """Minus the energy, (..., F); the normalising constant is left out."""
        expected, observed = self._images(self.mean), self._images(x.expand_as(self.mean))
        average, unexplained = _moments(observed - expected, self.WINDOW)
        spread = _moments(observed, self.WINDOW)[1] + _moments(expected, self.WINDOW)[1]
        share = (unexplained + self.FLOOR) / (spread + self.FLOOR)
        energy = self.WEIGHT * (share + self.LOW * average**2)
        return -energy.reshape(self.mean.shape)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """The mean: nobody can draw from this."""
        del generator
        return self.mean

    def _images(self, x: Tensor) -> Tensor:
        """(..., F) → (M, C, S, S)"""
        return x.reshape(-1, *self.shape)


def _moments(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Local mean and variance of (M, C, S, S)."""
    mean, square = (_average(values, window) for values in (images, images**2))
    return mean, torch.relu(square - mean**2)


def _average(images: Tensor, window: int) -> Tensor:
    """(M, C, S, S): the mean over the part of a square window that lies inside the image."""
    return _total(images, window) / _total(torch.ones_like(images[:1]), window)


def _total(images: Tensor, window: int) -> Tensor:
    """(M, C, S, S): the sum over a square window, along one axis and then the other.

    As convolutions, which are several times faster than pooling with stride 1.
    """
    channels, reach = images.shape[1], window // 2
    rows = F.conv2d(
        images, images.new_ones(channels, 1, window, 1), padding=(reach, 0), groups=channels
    )
    return F.conv2d(
        rows, images.new_ones(channels, 1, 1, window), padding=(0, reach), groups=channels
    )


class ContrastLikelihood(nn.Module):
    """The energy of unexplained local contrast in place of a log-likelihood.

    Its normalising constant depends on z and is not known, so the bound is one only up to that
    constant, as whenever a VAE is trained with a perceptual loss (Snell et al. 2017). Take
    `StructuralLikelihood` where a proper density is wanted.
    """

    def __init__(self, layout: ImageLayout) -> None:
        super().__init__()
        self.layout, self.planes = layout, layout.channels

    def forward(self, outputs: Tensor) -> Contrast:
        """(..., F) → `Contrast` over (..., F)"""
        return Contrast(outputs, self.layout.shape)
