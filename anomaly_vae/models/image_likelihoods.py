"""Define likelihoods p(x|z) of images.

A likelihood maps decoder outputs (..., C · S²) to a distribution over pixels. ``log_prob`` keeps
one value per pixel and channel, (..., F), so that the map of an image adds up to its score. The
attribute ``planes`` is the number of decoder outputs per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
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
"""Initial log-variance; it corresponds to a standard deviation of an eighth on the image's
scale."""


@dataclass(frozen=True)
class Laplace:
    """The Laplace distribution: log p = −|x − μ| / b − log 2b, where b² = ½ variance."""

    mean: Tensor
    log_var: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x); see `Distribution`."""
        log_scale = 0.5 * (self.log_var - math.log(2))
        return -(x - self.mean).abs() * torch.exp(-log_scale) - log_scale - math.log(2)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Draw once, as a normal times the root of an exponential; see `Distribution`."""
        uniform = torch.rand(self.mean.shape, generator=generator, device=self.mean.device)
        spread = torch.sqrt(-torch.log1p(-uniform))
        noise = randn_like(self.mean, generator)
        return self.mean + torch.exp(0.5 * self.log_var) * spread * noise


@dataclass(frozen=True)
class ClampedBernoulli:
    """A Bernoulli distribution of grey values, which are clamped to [0, 1].

    Its log-probability is minus the binary cross-entropy, the usual criterion. It is no density
    over grey values (Loaiza-Ganem & Cunningham 2019).
    """

    inner: Bernoulli

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x); see `Distribution`."""
        return self.inner.log_prob(x.clamp(0, 1))

    @property
    def mean(self) -> Tensor:
        """(..., F): probability of one."""
        return self.inner.mean

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Return the expected grey values in place of black-and-white draws; see `Distribution`."""
        del generator
        return self.inner.mean


class PixelLikelihood(nn.Module):
    """A Gaussian or Laplace likelihood with one learned variance per channel, or a Bernoulli.

    One variance for all pixels of a channel is the σ-VAE (Rybkin et al. 2021, sec. 4), which
    balances reconstruction against the KL term by itself.
    """

    def __init__(self, layout: ImageLayout, family: str, variance_floor: float) -> None:
        super().__init__()
        self.layout, self.family, self.variance_floor = layout, family, variance_floor
        self.planes = layout.channels
        self.raw_log_var: nn.Parameter | None = None
        if family != "bernoulli":
            self.raw_log_var = nn.Parameter(torch.full((layout.channels, 1), INITIAL_LOG_VAR))

    def forward(self, outputs: Tensor) -> Distribution:
        """Convert decoder outputs (..., F) into a distribution over (..., F)."""
        if self.raw_log_var is None:
            return ClampedBernoulli(Bernoulli(bounded(outputs)))
        if self.family == "laplace":
            return Laplace(outputs, self.log_var())
        return Gaussian(outputs, self.log_var())

    def log_var(self) -> Tensor:
        """Return the log-variance of every value (F,), nats."""
        assert self.raw_log_var is not None
        log_var = floored(self.raw_log_var, self.variance_floor)
        return log_var.expand(-1, self.layout.size**2).flatten()


class Bands(nn.Module):
    """A decomposition of an image into bands of local contrast, from fine to coarse.

    Band b is d / (√(blur(d²)) + c) / 4 with d = p − blur(p), where p is the blurred image of the
    previous band. This is divisive normalisation (Lyu & Simoncelli 2008, eq. 1), as in the local
    terms of structural similarity (Wang et al. 2004). The last band is the remaining blurred image,
    p − ½.
    """

    kernels: Tensor

    def __init__(self, sigmas: tuple[float, ...], contrast: float) -> None:
        super().__init__()
        self.contrast, self.count = contrast, len(sigmas) + 1
        for index, sigma in enumerate(sigmas):
            self.register_buffer(f"kernel_{index}", gaussian_kernel(sigma), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert images (M, C, S, S) into bands (M, count, C, S, S)."""
        bands, low = [], images
        for index in range(self.count - 1):
            kernel = self.get_buffer(f"kernel_{index}")
            blurred = blur(low, kernel)
            detail = low - blurred
            spread = torch.sqrt(blur(detail**2, kernel) + 1e-8)
            bands.append(0.25 * detail / (spread + self.contrast))
            low = blurred
        return torch.stack([*bands, low - 0.5], 1)


def gaussian_kernel(sigma: float) -> Tensor:
    """Return Gaussian weights (2r + 1,) with sum 1 and radius r = 3σ."""
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1.0)
    weights = torch.exp(-(place**2) / (2 * sigma**2))
    return weights / weights.sum()


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve images (M, C, S, S) with a kernel along both axes, replicating the border."""
    radius, channels = len(kernel) // 2, images.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)


@dataclass(frozen=True)
class Structural:
    """The distribution N(T(x); T(mean), σ²) of an image's bands T; log_var is (count, 1, 1, 1)."""

    mean: Tensor
    log_var: Tensor
    bands: Bands
    shape: tuple[int, int, int]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), summed over the bands of a pixel; see `Distribution`."""
        expected, observed = self._transformed(self.mean), self._transformed(x)
        squared = (observed - expected) ** 2 * torch.exp(-self.log_var)
        return -0.5 * (squared + self.log_var + LOG_2PI).sum(-4).flatten(-3)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Return the mean, since drawn bands are in general not the bands of any image."""
        del generator
        return self.mean

    def _transformed(self, x: Tensor) -> Tensor:
        """Convert values (..., F) into bands (..., count, C, S, S)."""
        images: Tensor = x.flatten(0, -2).unflatten(1, self.shape)
        bands: Tensor = self.bands(images)
        return bands.view(*x.shape[:-1], *bands.shape[1:])


class StructuralLikelihood(nn.Module):
    """A Gaussian likelihood on local-contrast-normalised bands of the image.

    It is a proper density of the bands T(x), whose mean T(o(z)) belongs to an image o(z) that can
    be displayed. It is not normalised over images, since not every set of bands belongs to an
    image. The variance of each band is learned.
    """

    SIGMAS, CONTRAST = (1.5, 4.0), 0.06

    def __init__(self, layout: ImageLayout, variance_floor: float) -> None:
        super().__init__()
        self.layout, self.variance_floor = layout, variance_floor
        self.planes = layout.channels
        self.bands = Bands(self.SIGMAS, self.CONTRAST)
        self.raw_log_var = nn.Parameter(torch.full((self.bands.count, 1, 1, 1), INITIAL_LOG_VAR))

    def forward(self, outputs: Tensor) -> Structural:
        """Convert decoder outputs (..., F) into a `Structural` over (..., F)."""
        log_var = floored(self.raw_log_var, self.variance_floor)
        return Structural(outputs, log_var, self.bands, self.layout.shape)


@dataclass(frozen=True)
class Contrast:
    """The unnormalised density exp(−energy), where the energy measures unexplained local contrast.

    In a window around each pixel, with the residual e = x − mean:

        energy = WEIGHT · ((var e + c) / (var x + var mean + c) + LOW · (average e)²)

    The first term is the residual's share of the local variance; it equals 1 minus the structure
    term of structural similarity (Wang et al. 2004) in another form. The second term is the error
    of the local brightness. Unlike similarity, the energy penalises an inverted image, and missing
    detail as much as superfluous detail.
    """

    mean: Tensor
    shape: tuple[int, int, int]

    WINDOW: ClassVar[int] = 7
    FLOOR: ClassVar[float] = 4e-3
    LOW: ClassVar[float] = 5.0
    WEIGHT: ClassVar[float] = 5.0

    def log_prob(self, x: Tensor) -> Tensor:
        """Return minus the energy (..., F), without the normalising constant."""
        expected, observed = self._images(self.mean), self._images(x.expand_as(self.mean))
        average, unexplained = _local_moments(observed - expected, self.WINDOW)
        spread = _local_moments(observed, self.WINDOW)[1] + _local_moments(expected, self.WINDOW)[1]
        share = (unexplained + self.FLOOR) / (spread + self.FLOOR)
        energy = self.WEIGHT * (share + self.LOW * average**2)
        return -energy.reshape(self.mean.shape)

    def sample(self, generator: Generator | None = None) -> Tensor:
        """Return the mean, since drawing from this density is not feasible."""
        del generator
        return self.mean

    def _images(self, x: Tensor) -> Tensor:
        """Reshape values (..., F) into images (M, C, S, S)."""
        return x.reshape(-1, *self.shape)


def _local_moments(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the local mean and variance of images (M, C, S, S)."""
    mean, square = (_local_mean(values, window) for values in (images, images**2))
    return mean, torch.relu(square - mean**2)


def _local_mean(images: Tensor, window: int) -> Tensor:
    """Return the mean over the part of a square window inside the image, (M, C, S, S)."""
    return _window_sum(images, window) / _window_sum(torch.ones_like(images[:1]), window)


def _window_sum(images: Tensor, window: int) -> Tensor:
    """Return the sum over a square window (M, C, S, S), with a gradient that is as quick."""
    if images.requires_grad and not torch.compiler.is_exporting():
        summed: Tensor = _WindowSum.apply(images, window)  # type: ignore[no-untyped-call]
        return summed
    return _two_convolutions(images, window)


def _two_convolutions(images: Tensor, window: int) -> Tensor:
    """Return the sum over a square window (M, C, S, S), one axis after the other.

    Two convolutions are several times faster than pooling with stride 1.
    """
    channels, reach = images.shape[1], window // 2
    rows = F.conv2d(
        images, images.new_ones(channels, 1, window, 1), padding=(reach, 0), groups=channels
    )
    return F.conv2d(
        rows, images.new_ones(channels, 1, 1, window), padding=(0, reach), groups=channels
    )


class _WindowSum(torch.autograd.Function):
    """The sum over a window, whose gradient is the sum over the same window of the gradient.

    torch's own gradient of a convolution with one channel takes ten times as long: it was half of
    the time of a fit.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, window: int) -> Tensor:
        """Return the sum."""
        ctx.window = window
        return _two_convolutions(images, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient with respect to the images."""
        return _two_convolutions(gradient.contiguous(), ctx.window), None


class ContrastLikelihood(nn.Module):
    """The energy of unexplained local contrast in place of a negative log-likelihood.

    The normalising constant depends on z and is unknown. The bound therefore holds up to that
    constant only, as for every VAE trained with a perceptual loss (Snell et al. 2017).
    `StructuralLikelihood` is the alternative with a proper density.
    """

    def __init__(self, layout: ImageLayout) -> None:
        super().__init__()
        self.layout, self.planes = layout, layout.channels

    def forward(self, outputs: Tensor) -> Contrast:
        """Convert decoder outputs (..., F) into a `Contrast` over (..., F)."""
        return Contrast(outputs, self.layout.shape)
