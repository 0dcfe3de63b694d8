"""Sample, reconstruct, interpolate and traverse the latent space."""

__all__: list[str] = []
