"""Read files into data sets that are split for training."""

__all__: list[str] = []
