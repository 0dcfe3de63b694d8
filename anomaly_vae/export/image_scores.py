"""Compute the score of images and its parts as one torch module, which is traced to a graph.

The outputs are

    score     (N,)    float64, higher is more anomalous
    nats      (N, F)  float32, share of each value in the score
    kl        (N,)    float64, share of the KL term; score = Σ nats + kl
    expected  (N, F)  float32, the decoder's mean at the posterior mean
    latent    (N, L)  float32, the posterior mean

A standardised score measures each share relative to its mean and standard deviation on held-out
normal images, and is then not in nats. The localization score (type "contamination") is minus the
log-probability that no pixel is anomalous, Σ softplus(2 (ℓ − level)). Here ℓ are the log-odds of
the localization head, averaged over the image and its mirror image and smoothed by one pixel, less
a share of what a twentieth of the image's pixels exceed: in an image that looks odd everywhere, a
place has to stand out more. If the head is symmetric, a share of what the opposite place of the
mirror image has in excess of it is subtracted as well: normal anatomy that looks odd is often on
both sides, and a lesion on one. Three pixels in a thousand of held-out normal images exceed the
level.

If only some pixels count, the others, which are marked in x, add nothing to the score.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.images.encoding import STANDARDISED_MEAN, ImageLayout
from anomaly_vae.images.masking import ENCODED_OUTSIDE, LIMIT
from anomaly_vae.models.image_likelihoods import Contrast, blur, gaussian_kernel
from anomaly_vae.models.localization_head import LocalizationHead
from anomaly_vae.models.vae import VAE, Inference, Terms, frozen_noise

CHUNK_IMAGES = 64
"""Number of images that are scored at a time while statistics are estimated."""
SMOOTHING = 1.0
"""Standard deviation of the blur over the statistics of neighbouring pixels, in pixels."""
GAIN, LEVEL_QUANTILE = 2.0, 0.997
"""Steepness of the localization score above the level, and the quantile that defines the level."""
RELATIVE, EXCEEDING = 0.7, 0.05
"""Share that is subtracted of the log-odds that a share of the image's pixels exceed, and this
second share."""
SYMMETRY, REACH = 0.4, 1 / 32
"""Share that is subtracted of the excess at the opposite place of the mirror image, and maximum
distance from that place, as a fraction of the image's side."""
MIN_SCALE_SHARE = 0.1
"""Fraction of the overall standard deviation that is added to that of each pixel, so that no
divisor is 0."""


class ImageScore(nn.Module):
    """The score of a trained image model and its parts."""

    any_batch = True
    """Whether the graph takes any number of images."""

    kernel: Tensor
    noise: Tensor
    center: Tensor
    scale: Tensor
    level: Tensor
    kl_center: Tensor
    kl_scale: Tensor

    def __init__(
        self, model: VAE, layout: ImageLayout, config: ImageScoreConfig, masked: bool = False
    ) -> None:
        super().__init__()
        self.model, self.layout, self.config, self.masked = model, layout, config, masked
        self.register_buffer("kernel", gaussian_kernel(SMOOTHING), persistent=False)
        self.register_buffer("noise", frozen_noise(config.draws, model.latent_dim, config.seed))
        self.register_buffer("center", torch.zeros(layout.n_columns))
        self.register_buffer("scale", torch.ones(layout.n_columns))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("kl_center", torch.zeros((), dtype=torch.float64))
        self.register_buffer("kl_scale", torch.ones((), dtype=torch.float64))

    @property
    def n_inputs(self) -> int:
        """Number F of values of an image."""
        return self.layout.n_columns

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Convert images (N, F) into score, nats, kl, expected and latent; see the module."""
        if self.masked:
            inside = x > LIMIT
            x = torch.where(inside, x, STANDARDISED_MEAN)
        inference = self.model.infer(x, torch.zeros_like(self.noise[:1]))
        terms = self.terms(x, inference)
        nats = (-terms.log_prob - self.center) / self.scale
        if self.masked:
            nats = torch.where(inside, nats, 0.0)
        kl = (terms.kl.double().sum(-1) - self.kl_center) / self.kl_scale
        expected = self.model.likelihood(inference.outputs).mean.squeeze(1)
        if self.masked:
            expected = torch.where(inside, expected, float(ENCODED_OUTSIDE))
        return nats.double().sum(-1) + kl, nats, kl, expected, inference.mean.squeeze(1)

    def terms(self, x: Tensor, inference: Inference) -> Terms:
        """Return the terms of the configured score before standardisation.

        Args:
            x: (N, F), encoded images.
            inference: result of the model for x at the posterior mean.
        """
        zero = torch.zeros_like(x[:, :1])
        match self.config.type:
            case "contamination":
                return Terms(-self._localization(x), zero)
            case "structural":
                expected = self.model.likelihood(inference.outputs).mean.squeeze(1)
                return Terms(Contrast(expected, self.layout.shape).log_prob(x), zero)
            case "reconstruction":
                return self.model.reconstruction(x)
            case "importance_weighted":
                return self.model.importance_weighted(x, self.noise)
            case "neg_elbo":
                at_mean = len(self.noise) == 1
                return self.model.terms(inference, x) if at_mean else self.model.elbo(x, self.noise)
        raise AssertionError(self.config.type)

    @property
    def unit(self) -> str:
        """Unit of the values of a map."""
        return f"{self.config.unit} per pixel"

    def _localization(self, x: Tensor) -> Tensor:
        """Return the share of each value (N, F), equal for all channels of a pixel."""
        share = F.softplus(GAIN * (self._log_odds(x) - self.level)) / self.layout.channels
        return share.repeat(1, self.layout.channels)

    def _log_odds(self, x: Tensor) -> Tensor:
        """Return the log-odds of the pixels (N, S²), smoothed, relative to the whole image's."""
        images = x.unflatten(1, self.layout.shape)
        maps = blur((self._head(images) + self._head(images.flip(-1)).flip(-1)) / 2, self.kernel)
        log_odds = maps.flatten(1)
        exceeding = max(round(EXCEEDING * log_odds.shape[1]), 1)
        usual = log_odds.topk(exceeding, dim=1).values[:, -1:]
        relative = torch.sub(log_odds, usual, alpha=RELATIVE)
        if not self._localization_head.symmetric:
            return relative
        return relative - SYMMETRY * F.relu(_opposite(maps).flatten(1) - usual)

    def _head(self, images: Tensor) -> Tensor:
        """Return the head's log-odds (N, 1, S, S) for images (N, C, S, S)."""
        log_odds: Tensor = self._localization_head(images.flatten(1))
        return log_odds.view(-1, 1, self.layout.size, self.layout.size)

    @property
    def _localization_head(self) -> LocalizationHead:
        head = self.model.contamination
        assert isinstance(head, LocalizationHead), "the configuration guarantees a head"
        return head

    @torch.no_grad()
    def fit_statistics(self, x: Tensor) -> None:
        """Estimate the level and the standardisation from held-out normal images (N, F)."""
        if self.config.type == "contamination":
            log_odds = torch.cat([self._log_odds(part) for part in x.split(CHUNK_IMAGES)]).numpy()
            self.level.fill_(float(np.quantile(log_odds, LEVEL_QUANTILE)))
        if self.config.standardised:
            self._standardise(x)

    def _standardise(self, x: Tensor) -> None:
        """Estimate mean and standard deviation of every share on images (N, F)."""
        terms = [
            self.terms(part, self.model.infer(part, torch.zeros_like(self.noise[:1])))
            for part in x.split(CHUNK_IMAGES)
        ]
        nats = -torch.cat([t.log_prob for t in terms]).double()
        kl = torch.cat([t.kl.double().sum(-1) for t in terms])
        self.center.copy_(self._smoothed(nats.mean(0)))
        deviation = self._smoothed(nats.std(0, correction=0))
        self.scale.copy_(deviation + MIN_SCALE_SHARE * nats.std(correction=0) + 1e-6)
        self.kl_center.copy_(kl.mean())
        self.kl_scale.copy_(kl.std(correction=0) + MIN_SCALE_SHARE * kl.mean().abs() + 1e-6)

    def _smoothed(self, values: Tensor) -> Tensor:
        """Blur one value per pixel and channel, (F,) to (F,)."""
        images = values.float().view(1, *self.layout.shape)
        return blur(images, self.kernel).flatten()


def _opposite(maps: Tensor) -> Tensor:
    """Return the highest value about the opposite place of each pixel of maps (N, 1, S, S)."""
    reach = round(REACH * maps.shape[-1])
    return F.max_pool2d(maps.flip(-1), 2 * reach + 1, 1, reach)
