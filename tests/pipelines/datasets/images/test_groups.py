"""Check which images are taken to belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly_vae.config.data import ImageData
from anomaly_vae.data.splitting import NAMES
from anomaly_vae.images.schema import image_batch
from pipelines.datasets.images.batches import Batch
from pipelines.datasets.images.dataset import build_index, load_images
from pipelines.datasets.images.files import ImageFile
from pipelines.datasets.images.groups import group_name, image_groups
from tests.support.image_folders import tiff
from tests.support.scans import blobs

FILES = [ImageFile(Path(name), name, {"patient": who}) for name, who in (("a", "P1"), ("b", None))]


def read(numbers: tuple[int, ...], series: tuple[str, ...]) -> Batch:
    images = image_batch(np.zeros((len(numbers), 1, 2, 2), np.float32))
    frames = tuple(range(len(numbers)))
    return Batch(numbers, frames, images, series, (None,) * len(numbers))


def test_a_column_names_a_group_before_what_files_state() -> None:
    assert group_name("patient", FILES[0], "1.2") == "P1"
    assert group_name("patient", FILES[1], "1.2") is None
    assert group_name("series", FILES[0], "1.2") == "1.2"
    assert group_name("series", FILES[0], "") is None
    assert group_name("volume", FILES[1], "") == "b"
    listed = ImageFile(Path("c"), "c", {"series": "morning"})
    assert group_name("series", listed, "1.2") == "morning"


def test_a_kind_of_groups_counts_where_a_group_has_several_images() -> None:
    groups = image_groups(FILES, read((0, 0, 1), ("1.2", "1.3", "1.2")), "patient")
    assert {kind: codes.tolist() for kind, codes in groups.items()} == {
        "patient": [0, 0, 1],
        "series": [0, 1, 0],
        "volume": [0, 0, 1],
    }
    assert image_groups(FILES, read((0, 1), ("", "")), None) == {}


def test_images_of_a_series_stay_in_one_split_without_a_manifest() -> None:
    plain = [ImageFile.from_path(Path(str(n))) for n in range(4)]
    table = build_index(plain, read((0, 1, 2, 3), ("1.2", "1.2", "1.3", "")), None, None)
    assert table["group"].to_pylist() == ["1.2", "1.2", "1.3", "file 3"]


def test_volumes_of_a_folder_are_groups_and_stay_whole(tmp_path: Path) -> None:
    for n in range(20):
        tiff(tmp_path / f"{n:02d}.tif", blobs(3, seed=n))
    data = load_images(ImageData(path=str(tmp_path), size=16, group="volume"))
    codes = data.image_groups["volume"]
    assert len(np.unique(codes)) == 20
    for split in range(len(NAMES)):
        rows = data.assignment.rows(split)
        assert len(rows) == 3 * len(np.unique(codes[rows]))
