"""Define the variational autoencoders, their networks, likelihoods and priors."""

from anomaly_vae.models.builder import build
from anomaly_vae.models.vae import VAE

__all__ = ["VAE", "build"]
