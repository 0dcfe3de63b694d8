"""Masks of anomalies, and the figures of maps against them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.masks import Masks
from pipelines.reports.report import evaluate_files
from tests.support.image_folders import png
from tests.support.scans import scans

Layout = tuple[Path, Path]
"""Folder with images by defect, and the one with masks."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Write 12 normal scans, 3 with a crack and 2 with a hole, and masks of the last five."""
    images, masks = tmp_path / "test", tmp_path / "ground_truth"
    pixels = scans()[:17].copy()
    for number, image in enumerate(pixels):
        defect = "good" if number < 12 else "crack" if number < 15 else "hole"
        if number >= 12:
            image[4:8, 4:8] = 255 - image[4:8, 4:8]
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[4:8, 4:8] = 1
            png(masks / defect / f"{number:03}_mask.png", mask)
        png(images / defect / f"{number:03}.png", image)
    return images, masks


def evaluate(bundle: Bundle, images: Path, masks: Path) -> dict[str, Any]:
    source = LoadedModel(bundle)
    return evaluate_files(source, [str(images)], "label", masks=str(masks))


def test_figures_of_all_defects_and_of_each(image_calibrated: Bundle, layout: Layout) -> None:
    answer = evaluate(image_calibrated, *layout)
    pixels, metrics = answer["pixels"], answer["metrics"]
    assert metrics["pixel_auroc"] == pixels["auroc"]
    assert metrics["pixel_average_precision"] == pixels["average_precision"]
    assert metrics["region_overlap"] == pixels["region_overlap"]
    assert (pixels["images"], pixels["regions"], pixels["without_mask"]) == (17, 5, 0)
    assert {name: one["images"] for name, one in pixels["by_defect"].items()} == {
        "crack": 15,
        "hole": 14,
    }


def test_an_anomaly_without_a_mask_is_counted_apart(
    image_calibrated: Bundle, layout: Layout
) -> None:
    images, masks = layout
    (masks / "crack" / "012_mask.png").unlink()
    pixels = evaluate(image_calibrated, images, masks)["pixels"]
    assert (pixels["images"], pixels["without_mask"]) == (16, 1)


def test_a_folder_without_any_of_the_masks_is_refused(
    image_calibrated: Bundle, layout: Layout, tmp_path: Path
) -> None:
    png(tmp_path / "others" / "x.png", np.eye(4, dtype=np.uint8))
    with pytest.raises(DataError, match="none of its 1 images is a mask of an anomalous image"):
        evaluate(image_calibrated, layout[0], tmp_path / "others")


def test_a_mask_of_another_size_names_both(image_calibrated: Bundle, layout: Layout) -> None:
    images, masks = layout
    Image.new("L", (5, 7), 255).save(masks / "hole" / "016_mask.png")
    with pytest.raises(DataError, match=r"016_mask.png': the mask has 5 × 7 pixels, its image"):
        evaluate(image_calibrated, images, masks)


def test_masks_are_for_images(calibrated: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--masks is for models of images; leave it out"):
        evaluate(calibrated, tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["012.png", "012_mask.png", "012-mask.png", "012_gt.png"])
def test_a_mask_is_named_like_its_image(tmp_path: Path, name: str) -> None:
    mask = png(tmp_path / "crack" / name, np.eye(4, dtype=np.uint8))
    assert Masks(str(tmp_path)).of(Path("test/crack/012.png")) == mask
    assert Masks(str(tmp_path)).of(Path("elsewhere/012.tif")) == mask
    assert Masks(str(tmp_path)).of(Path("test/crack/013.png")) is None


def test_masks_of_the_same_name_need_the_folder_of_their_image(tmp_path: Path) -> None:
    first = png(tmp_path / "crack" / "000.png", np.eye(4, dtype=np.uint8))
    shutil.copytree(tmp_path / "crack", tmp_path / "hole")
    masks = Masks(str(tmp_path))
    assert masks.of(Path("test/crack/000.png")) == first
    with pytest.raises(DataError, match=r"may both be the mask of 'other/000\.png'"):
        masks.of(Path("other/000.png"))
