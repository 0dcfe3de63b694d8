"""Choose between tables and images."""

from __future__ import annotations

from anomaly_vae.config import ImageData, TabularData
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.tables import load_table


def load_dataset(data: TabularData | ImageData) -> Dataset:
    """Read and split whatever the configuration names.

    Raises:
        DataError: see `load_table` and `images.load_images`.
    """
    if isinstance(data, TabularData):
        return load_table(data)
    from pipelines.datasets.images import load_images

    return load_images(data)
