"""Folders of images and manifests beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.image_files import ImageFile
from tests.support.scans import blobs

Write = Callable[..., Path]
"""Function that writes a manifest."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png, b.PNG and sub/c.tif, beside what is no image, hidden."""
    images = blobs(4)
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name, image in zip(("a.png", "b.PNG", "sub/c.tif", ".cache/d.png"), images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def listing(folder: Path) -> Write:
    """Write a manifest beside the images of `folder`."""

    def write(text: str, encoding: str = "utf-8") -> Path:
        path = folder / "list.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def names(items: list[ImageFile], folder: Path) -> list[str]:
    return [item.path.relative_to(folder).as_posix() for item in items]


def png(path: Path, image: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def tiff(path: Path, images: NDArray[Any]) -> Path:
    first, *others = map(Image.fromarray, images)
    first.save(path, save_all=True, append_images=others)
    return path
