"""What an image is scored by, as one torch module: pixels in, the scoring graph's outputs out.

    score     (N,)    float64, higher is more anomalous
    nats      (N, F)  float32, each value's share of it
    kl        (N,)    float64, the rate's share of it; score = Σ nats + kl
    expected  (N, F)  float32, the decoder's mean at the posterior mean
    latent    (N, L)  float32, the posterior mean

Standardised, each share is measured in the standard deviations that it has on held-out normals,
about its mean there, and no longer in nats. The contamination score is minus the log-probability
that no pixel is contaminated, Σ softplus(2 (ℓ − level)): ℓ are the log-odds smoothed by a pixel,
and the level is what three pixels in a thousand of held-out normals exceed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.config import ImageScoreConfig
from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.image_likelihoods import Contrast, blurred_by, gaussian_kernel
from anomaly_vae.models.vae import VAE, Inference, Terms, frozen_noise

CHUNK = 64
"""Images that are scored at a time while the statistics are gathered."""
SMOOTHING = 1.0
"""Standard deviation, in pixels, of the blur over the statistics of neighbouring pixels."""
GAIN, RARE = 2.0, 0.997
"""How steeply the contamination score rises above the level, and which quantile that is."""
LEAST_SCALE = 0.1
"""Share of the common deviation that is added to each pixel's, so that none is divided by 0."""


class ImageScore(nn.Module):
    """The score of a trained model and its parts."""

    kernel: Tensor
    noise: Tensor
    center: Tensor
    scale: Tensor
    level: Tensor
    kl_center: Tensor
    kl_scale: Tensor

    def __init__(self, model: VAE, layout: ImageLayout, config: ImageScoreConfig) -> None:
        super().__init__()
        self.model, self.layout, self.config = model, layout, config
        self.register_buffer("kernel", gaussian_kernel(SMOOTHING), persistent=False)
        self.register_buffer("noise", frozen_noise(config.draws, model.latent_dim, config.seed))
        self.register_buffer("center", torch.zeros(layout.n_columns))
        self.register_buffer("scale", torch.ones(layout.n_columns))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("kl_center", torch.zeros((), dtype=torch.float64))
        self.register_buffer("kl_scale", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, F) → score, nats, kl, expected, latent"""
        found = self.model.infer(x, torch.zeros_like(self.noise[:1]))
        terms = self.parts(x, found)
        nats = (-terms.log_prob - self.center) / self.scale
        kl = (terms.kl.double().sum(-1) - self.kl_center) / self.kl_scale
        expected = self.model.likelihood(found.outputs).mean.squeeze(1)
        return nats.double().sum(-1) + kl, nats, kl, expected, found.mean.squeeze(1)

    def parts(self, x: Tensor, found: Inference) -> Terms:
        """The configured score before it is standardised; ``found`` is at the posterior mean."""
        nothing = torch.zeros_like(x[:, :1])
        match self.config.type:
            case "contamination":
                return Terms(-self._contamination(x), nothing)
            case "structural":
                expected = self.model.likelihood(found.outputs).mean.squeeze(1)
                return Terms(Contrast(expected, self.layout.shape).log_prob(x), nothing)
            case "reconstruction":
                return self.model.reconstruction(x)
            case "importance_weighted":
                return self.model.importance_weighted(x, self.noise)
            case "neg_elbo":
                at_mean = len(self.noise) == 1
                return self.model.terms(found, x) if at_mean else self.model.elbo(x, self.noise)
        raise AssertionError(self.config.type)

    @property
    def unit(self) -> str:
        """Of a map's values."""
        return f"{self.config.unit} per pixel"

    def _contamination(self, x: Tensor) -> Tensor:
        """(N, F): each pixel's share, the same for its channels."""
        share = F.softplus(GAIN * (self._log_odds(x) - self.level)) / self.layout.channels
        return share.repeat(1, self.layout.channels)

    def _log_odds(self, x: Tensor) -> Tensor:
        """(N, S²), smoothed by a pixel."""
        assert self.model.contamination is not None, "the configuration asks for it"
        maps = self.model.contamination(x).unflatten(1, (1, self.layout.size, -1))
        return blurred_by(maps, self.kernel).flatten(1)

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Take from held-out normal images (N, F) what the score is measured by."""
        if self.config.type == "contamination":
            log_odds = torch.cat([self._log_odds(part) for part in x.split(CHUNK)]).numpy()
            self.level.fill_(float(np.quantile(log_odds, RARE)))
        if self.config.standardised:
            self._standardise(x)

    def _standardise(self, x: Tensor) -> None:
        """Measure every share from here on by what it is on these images."""
        terms = [
            self.parts(part, self.model.infer(part, torch.zeros_like(self.noise[:1])))
            for part in x.split(CHUNK)
        ]
        nats = -torch.cat([t.log_prob for t in terms]).double()
        kl = torch.cat([t.kl.double().sum(-1) for t in terms])
        self.center.copy_(self._smooth(nats.mean(0)))
        deviation = self._smooth(nats.std(0, correction=0))
        self.scale.copy_(deviation + LEAST_SCALE * nats.std(correction=0) + 1e-6)
        self.kl_center.copy_(kl.mean())
        self.kl_scale.copy_(kl.std(correction=0) + LEAST_SCALE * kl.mean().abs() + 1e-6)

    def _smooth(self, values: Tensor) -> Tensor:
        """(F,) → (F,)"""
        images = values.float().view(1, *self.layout.shape)
        return blurred_by(images, self.kernel).flatten()
