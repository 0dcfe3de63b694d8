"""Read maps again with the libraries that users read them with."""

from __future__ import annotations

import gzip
import itertools
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
import tifffile
from nibabel.orientations import axcodes2ornt, ornt_transform

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.map_files import nifti_map, npy_map, tiff_map
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeOptions

HEAT = np.arange(6, dtype=np.float32).reshape(2, 3)


def opened(content: bytes) -> nib.Nifti1Image:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert isinstance(image, nib.Nifti1Image)
    return image


def test_npy_and_tiff_hold_the_map_itself() -> None:
    np.testing.assert_array_equal(np.load(BytesIO(npy_map(HEAT))), HEAT)
    with tifffile.TiffFile(BytesIO(tiff_map(HEAT, "nats per pixel"))) as file:
        np.testing.assert_array_equal(file.asarray(), HEAT)
        assert file.pages[0].tags["ImageDescription"].value == "nats per pixel"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "AIL"])
@pytest.mark.parametrize("times", [1, 2])
def test_maps_of_a_volume_lie_voxel_by_voxel_on_it(axis: int, axes: str, times: int) -> None:
    voxels = np.random.default_rng(0).permutation(24 * times).reshape(2, 3, 4, times)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    volume = nib.Nifti1Image(voxels.astype(np.int16)[..., :times], affine)
    turned = volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    options = DecodeOptions(axis=axis, intensity_window=(24 * times / 2, 24 * times + 1))
    images = list(read_bytes(turned.to_bytes(), options))
    assert all(isinstance(image, DecodedImage) for image in images)
    maps = {image.frame: image.pixels.astype(np.float32) for image in images}
    missing = maps.pop(1)
    found = opened(nifti_map(maps, gzip.compress(turned.to_bytes()), options))
    np.testing.assert_allclose(found.affine, turned.affine)
    assert found.header.get_zooms()[:3] == turned.header.get_zooms()[:3]
    values, stored = found.get_fdata(), np.asarray(turned.dataobj).reshape(found.shape)
    assert np.isnan(values).sum() == missing.size
    shown = ~np.isnan(values)
    scaled = (values[shown] - values[shown].min()) / np.ptp(values[shown])
    expected = stored[shown].astype(float)
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(scaled, expected, atol=2 / MAX_PIXEL)


def test_maps_of_other_files_are_slices_with_their_spacing() -> None:
    maps = {0: HEAT, 2: HEAT + 10}
    found = opened(nifti_map(maps, b"no volume", DecodeOptions(), (0.5, 0.25)))
    assert found.shape == (3, 2, 3)
    assert found.header.get_zooms() == (0.25, 0.5, 1.0)
    for x, y in itertools.product(range(3), range(2)):
        np.testing.assert_array_equal(
            found.get_fdata()[x, y], [HEAT[y, x], np.nan, HEAT[y, x] + 10]
        )
