"""Define the plain autoencoder, the deterministic counterpart of the VAE."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_vae.models.vae import VAE, Inference, Terms


class Autoencoder(VAE):
    """A VAE without noise and without KL term, for comparison.

    Networks and likelihoods are those of `VAE`; the latent is the encoder's mean.
    """

    def infer_from(self, features: Tensor, noise: Tensor) -> Inference:
        """Return the encoder's mean and its decoding; the values of ``noise`` are ignored."""
        return super().infer_from(features, torch.zeros_like(noise[..., :1, :]))

    def terms(self, inference: Inference, x: Tensor) -> Terms:
        """Return the reconstruction log-likelihood with a KL term of 0."""
        terms = super().terms(inference, x)
        return terms._replace(kl=torch.zeros_like(terms.log_prob[..., :1]))

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Terms:  # noqa: ARG002  # there is no noise
        """Return the reconstruction log-likelihood; there are no draws to weight."""
        return self.reconstruction(x)
