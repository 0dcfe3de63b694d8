"""Tell images that are unlike the training images, and the fault that they seem to have."""

__all__: list[str] = []
