"""The plain autoencoder: the VAE's deterministic twin, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_vae.models.vae import VAE, Inference, Terms


class Autoencoder(VAE):
    """Same networks and likelihoods; the code is the encoder's mean, and it costs nothing."""

    def infer_from(self, features: Tensor, noise: Tensor) -> Inference:
        """The code and what it decodes to, whatever the noise."""
        return super().infer_from(features, torch.zeros_like(noise[..., :1, :]))

    def terms(self, found: Inference, x: Tensor) -> Terms:
        """The reconstruction log-likelihood; the KL term is 0."""
        terms = super().terms(found, x)
        return terms._replace(kl=torch.zeros_like(terms.log_prob[..., :1]))

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Terms:  # noqa: ARG002  # a code has no noise
        """The reconstruction log-likelihood: a point has nothing to weigh."""
        return self.reconstruction(x)
