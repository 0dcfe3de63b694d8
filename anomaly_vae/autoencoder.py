"""The plain autoencoder: the VAE's deterministic twin, for comparison."""

from __future__ import annotations

from torch import Tensor

from anomaly_vae.vae import VAE, Terms


class Autoencoder(VAE):
    """Same networks and likelihoods; the code is the encoder's mean, and it costs nothing."""

    def elbo(self, x: Tensor, noise: Tensor) -> Terms:  # noqa: ARG002  # a code has no noise
        """The reconstruction log-likelihood, whatever the noise; the KL term is 0."""
        return self.reconstruction(x)

    def importance_weighted(self, x: Tensor, noise: Tensor) -> Terms:  # noqa: ARG002  # a code has no noise
        """The same: a point has nothing to weigh."""
        return self.reconstruction(x)
