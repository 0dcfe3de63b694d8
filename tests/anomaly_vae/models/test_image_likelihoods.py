"""Likelihoods of images against closed forms, scipy and naive filters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import integrate, ndimage, stats
from torch import Tensor, distributions
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models import image_likelihoods
from anomaly_vae.models.image_likelihoods import (
    INITIAL_LOG_VAR,
    Bands,
    ClampedBernoulli,
    Contrast,
    ContrastLikelihood,
    Laplace,
    PixelLikelihood,
    Structural,
    StructuralLikelihood,
    blur,
    gaussian_kernel,
)
from anomaly_vae.models.likelihoods import Bernoulli, Gaussian, bounded

LAYOUT, COLOUR = ImageLayout(1, 16), ImageLayout(3, 16)
FLOOR = 1e-3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed))


# ---------------------------------------------------------------- Laplace


@pytest.mark.parametrize("log_var", [-4.0, 0.0, 1.5])
def test_laplace_is_a_density_with_the_variance_it_is_given(log_var: float) -> None:
    laplace = Laplace(torch.tensor(0.3), torch.tensor(log_var, dtype=torch.float64))
    b = math.exp(0.5 * log_var) / math.sqrt(2)

    def density(x: float) -> float:
        return math.exp(laplace.log_prob(torch.tensor(x, dtype=torch.float64)))

    mean = float(laplace.mean)
    spans = [(mean - 40 * b, mean), (mean, mean + 40 * b)]
    total = sum(integrate.quad(density, *span)[0] for span in spans)
    square = sum(integrate.quad(lambda x: density(x) * (x - mean) ** 2, *s)[0] for s in spans)
    assert total == pytest.approx(1, abs=1e-7)
    assert square == pytest.approx(math.exp(log_var), rel=1e-6)


def test_laplace_agrees_with_scipy() -> None:
    x, mean = 3 * images(50).double(), images(50, seed=1).double()
    log_var = torch.linspace(-6, 3, 50, dtype=torch.float64)
    truth = stats.laplace.logpdf(x, mean, torch.exp(0.5 * log_var) / math.sqrt(2))
    np.testing.assert_allclose(Laplace(mean, log_var).log_prob(x), truth, rtol=1e-12)


def test_laplace_draws_have_its_moments_and_its_shape() -> None:
    draws = Laplace(torch.full((200_000,), 0.5), torch.tensor(-1.0)).sample(generator())
    scale = math.exp(-0.5) / math.sqrt(2)
    assert draws.mean() == pytest.approx(0.5, abs=0.006)
    assert draws.var() == pytest.approx(math.exp(-1), rel=0.02)
    assert stats.kstest(draws.numpy(), "laplace", (0.5, scale)).pvalue > 0.001


# ---------------------------------------------------------------- pixels


def test_gaussian_pixels_are_normal_with_one_variance_a_channel() -> None:
    likelihood = PixelLikelihood(COLOUR, "gaussian", FLOOR)
    assert likelihood.raw_log_var is not None
    with torch.no_grad():
        likelihood.raw_log_var.copy_(torch.tensor([[-3.0], [-1.0], [0.5]]))
    outputs, x = images(4, 768), images(4, 768, seed=1)
    got = likelihood(outputs).log_prob(x)
    scale = torch.sqrt(torch.exp(torch.tensor([-3.0, -1.0, 0.5])) + FLOOR).repeat_interleave(256)
    torch.testing.assert_close(got, distributions.Normal(outputs, scale).log_prob(x))


@pytest.mark.parametrize(("family", "kind"), [("gaussian", Gaussian), ("laplace", Laplace)])
def test_the_variance_is_learned_above_its_floor(family: str, kind: type) -> None:
    likelihood = PixelLikelihood(LAYOUT, family, 0.05)
    assert likelihood.raw_log_var is not None
    with torch.no_grad():
        likelihood.raw_log_var.fill_(-50)
    found = likelihood(images(2, 256))
    assert isinstance(found, kind)
    torch.testing.assert_close(likelihood.log_var(), torch.full((256,), math.log(0.05)))
    loss = -found.log_prob(images(2, 256, seed=1)).sum()
    fresh = PixelLikelihood(LAYOUT, family, 0.05)
    (-fresh(images(2, 256)).log_prob(images(2, 256, seed=1)).sum()).backward()  # type: ignore[no-untyped-call]
    assert fresh.raw_log_var is not None
    assert fresh.raw_log_var.grad is not None
    assert fresh.raw_log_var.grad.abs() > 0
    assert torch.isfinite(loss)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    """What makes it the σ-VAE: at the optimum the likelihood knows its own error."""
    likelihood = PixelLikelihood(LAYOUT, "gaussian", 1e-6)
    outputs, x = images(8, 256), images(8, 256, seed=1)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -likelihood(outputs).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    error = ((outputs - x) ** 2).mean().item()
    assert likelihood.log_var().exp()[0].item() == pytest.approx(error, rel=1e-3)


def test_bernoulli_is_minus_the_binary_cross_entropy() -> None:
    likelihood = PixelLikelihood(LAYOUT, "bernoulli", FLOOR)
    outputs, grey = 8 * (images(3, 256) - 0.5), images(3, 256, seed=1)
    truth = -F.binary_cross_entropy_with_logits(bounded(outputs), grey, reduction="none")
    torch.testing.assert_close(likelihood(outputs).log_prob(grey), truth)
    torch.testing.assert_close(likelihood(outputs).mean, torch.sigmoid(bounded(outputs)))
    assert not list(likelihood.parameters())


def test_beyond_black_and_white_counts_as_black_and_white() -> None:
    distribution = ClampedBernoulli(Bernoulli(torch.zeros(4)))
    beyond, within = torch.tensor([-3.0, 0.0, 1.0, 7.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.equal(distribution.log_prob(beyond), distribution.log_prob(within))


def test_a_grey_drawn_is_the_grey_expected() -> None:
    distribution = ClampedBernoulli(Bernoulli(torch.tensor([-1.0, 0.0, 2.0])))
    assert torch.equal(distribution.sample(generator()), distribution.mean)


def test_a_pixel_drawn_is_spread_about_the_one_expected() -> None:
    found = PixelLikelihood(LAYOUT, "gaussian", FLOOR)(torch.full((400, 256), 0.5))
    draws = found.sample(generator()).detach()
    assert draws.mean() == pytest.approx(0.5, abs=2e-3)
    assert draws.var() == pytest.approx(math.exp(INITIAL_LOG_VAR) + FLOOR, rel=0.02)


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 4.0])
def test_the_kernel_is_scipys(sigma: float) -> None:
    kernel = gaussian_kernel(sigma).double()
    impulse = np.zeros(2 * len(kernel) + 1)
    impulse[len(kernel)] = 1
    radius = len(kernel) // 2
    truth = ndimage.gaussian_filter1d(impulse, sigma, mode="constant", radius=radius)
    np.testing.assert_allclose(kernel, truth[len(kernel) - radius :][: len(kernel)], atol=1e-7)
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_blurring_is_scipys_with_the_border_repeated(sigma: float) -> None:
    picture = images(2, 3, 16, 16)
    kernel = gaussian_kernel(sigma)
    np.testing.assert_allclose(
        blur(picture, kernel), naive_blur(picture.numpy(), kernel), atol=1e-6
    )


def naive_blur(picture: NDArray[np.float32], kernel: Tensor) -> NDArray[np.float64]:
    weights = kernel.double().numpy()
    rows = ndimage.correlate1d(picture.astype(np.float64), weights, -2, mode="nearest")
    return np.asarray(ndimage.correlate1d(rows, weights, -1, mode="nearest"))


# ---------------------------------------------------------------- structure


def naive_bands(picture: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """(C, S, S) → the bands, by scipy."""
    bands, low = [], picture
    for sigma in StructuralLikelihood.SIGMAS:
        kernel = gaussian_kernel(sigma)
        blurred = naive_blur(low, kernel)
        detail = low - blurred
        spread = np.sqrt(naive_blur(detail**2, kernel))
        bands.append(detail / (spread + StructuralLikelihood.CONTRAST) / 4)
        low = blurred
    return [*bands, low - 0.5]


@pytest.mark.parametrize("layout", [LAYOUT, COLOUR], ids=["grey", "colour"])
def test_structural_is_a_gaussian_on_naive_bands(layout: ImageLayout) -> None:
    likelihood = StructuralLikelihood(layout, FLOOR)
    with torch.no_grad():
        likelihood.raw_log_var.copy_(torch.tensor([-3.0, -2.0, -1.0]).view(3, 1, 1, 1))
    outputs, x = images(2, layout.n_columns), images(2, layout.n_columns, seed=1)
    got = likelihood(outputs).log_prob(x)
    variances = np.exp([-3.0, -2.0, -1.0]) + FLOOR
    for row in range(2):
        pair = (t[row].double().view(layout.shape).numpy() for t in (outputs, x))
        expected, observed = map(naive_bands, pair)
        truth = sum(
            stats.norm.logpdf(o, e, np.sqrt(v))
            for o, e, v in zip(observed, expected, variances, strict=True)
        )
        np.testing.assert_allclose(got[row].detach(), truth.ravel(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["structural", "contrast"])
def test_draws_share_the_image_they_are_compared_with(kind: str) -> None:
    likelihood = (
        StructuralLikelihood(LAYOUT, FLOOR) if kind == "structural" else ContrastLikelihood(LAYOUT)
    )
    outputs, x = images(2, 3, 256), images(2, 256, seed=1)
    together = likelihood(outputs).log_prob(x.unsqueeze(1))
    assert together.shape == (2, 3, 256)
    for draw in range(3):
        torch.testing.assert_close(together[:, draw], likelihood(outputs[:, draw]).log_prob(x))


def test_bands_do_not_change_with_the_brightness_of_an_image() -> None:
    bands = Bands((1.5, 4.0), 0.06)
    picture = images(1, 1, 16, 16)
    before, after = bands(picture)[0], bands(picture + 0.25)[0]
    torch.testing.assert_close(before[:-1], after[:-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(before[-1] + 0.25, after[-1])


@pytest.mark.parametrize("kind", ["structural", "contrast"])
def test_an_image_fits_itself_best_and_is_what_is_drawn(kind: str) -> None:
    outputs, other = images(1, 256), images(1, 256, seed=1)
    likelihood = (
        StructuralLikelihood(LAYOUT, FLOOR) if kind == "structural" else ContrastLikelihood(LAYOUT)
    )
    found = likelihood(outputs)
    assert isinstance(found, Structural | Contrast)
    fits = [found.log_prob(x).sum() for x in (outputs, outputs.lerp(other, 0.3), other)]
    assert fits == sorted(fits, reverse=True)
    assert torch.equal(found.sample(generator()), outputs)
    assert torch.equal(found.mean, outputs)


def naive_energy(x: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S, S) twice → the energy, window by window."""
    reach, size = Contrast.WINDOW // 2, len(x)
    energy = np.empty_like(x)
    for i, j in np.ndindex(x.shape):
        window = np.s_[max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
        residual = (x - mean)[window]
        spread = x[window].var() + mean[window].var()
        share = (residual.var() + Contrast.FLOOR) / (spread + Contrast.FLOOR)
        energy[i, j] = Contrast.WEIGHT * (share + Contrast.LOW * residual.mean() ** 2)
    assert energy.shape == (size, size)
    return energy


def test_contrast_is_the_naive_energy() -> None:
    outputs, x = images(2, 768), images(2, 768, seed=1)
    got = ContrastLikelihood(COLOUR)(outputs).log_prob(x)
    for row, channel in np.ndindex(2, 3):
        plane = slice(256 * channel, 256 * (channel + 1))
        pair = (t[row, plane].double().view(16, 16).numpy() for t in (x, outputs))
        np.testing.assert_allclose(got[row, plane], -naive_energy(*pair).ravel(), rtol=1e-3)


def test_an_inverted_image_costs_more_than_none() -> None:
    """Which a squared similarity does not see."""
    x = images(1, 256)
    energies = [
        -Contrast(guess, LAYOUT.shape).log_prob(x).sum()
        for guess in (x, torch.full_like(x, 0.5), 1 - x)
    ]
    assert energies == sorted(energies)
    assert energies[2] > 1.5 * energies[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_quick_gradient_of_a_window_sum_is_that_of_its_convolutions(channels: int) -> None:
    images = torch.randn(2, channels, 9, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: image_likelihoods._window_sum(x, 5), images)
    weights = torch.randn_like(images)
    found, expected = (
        torch.autograd.grad((total(images, 5) * weights).sum(), images)[0]
        for total in (image_likelihoods._window_sum, image_likelihoods._two_convolutions)
    )
    torch.testing.assert_close(found, expected)
