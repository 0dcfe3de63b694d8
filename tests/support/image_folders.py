"""Folders of images and manifests beside them."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file

from pipelines.datasets.images.files import ImageFile
from tests.support.scans import blobs, patched

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


N_REJECTED = 3
"""Number of files of `write_formats` that are no images: damaged, hidden, and text."""


def write_formats(folder: Path, n: int = 12) -> Path:
    """Write n PNGs, DICOM (one of them in gzip), NIfTI, a torn image and what is no image."""
    folder.mkdir()
    images = patched(blobs(n))
    for i, image in enumerate(images):
        png(folder / f"{i:02d}.png", image)
    dicom = get_testdata_file("CT_small.dcm", download=False)
    shutil.copy(str(dicom), folder / "a.dcm")
    (folder / "b.dcm.gz").write_bytes(gzip.compress((folder / "a.dcm").read_bytes(), mtime=0))
    volume = np.stack(list(images[:3]), -1).astype(np.int16)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(folder / "c.nii.gz")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "00.png", folder / ".hidden" / "d.png")
    return folder
