"""Write samples, reconstructions and latent maps to files."""

__all__: list[str] = []
