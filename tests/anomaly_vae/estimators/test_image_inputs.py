"""Arrays as images: types of values, volumes, and shapes that may mean two things."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.estimators.image_inputs import decoded_image, decoded_images, prepare_images
from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.pixels import CT_WINDOWS, MAX_PIXEL, DecodedImage, DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from tests.support.raster_files import tiff

HOUNSFIELD = np.arange(-1000, 1000, 20).reshape(10, 10)
SCHEMA = ImageSchema(16, 1)
random = np.random.default_rng(0)


def pixels(image: np.ndarray, **options: Any) -> np.ndarray:
    return decoded_image(image, DecodeOptions(**options)).pixels


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, ">i4"])
@pytest.mark.parametrize("window", ["auto", "percentile", (40.0, 400.0)])
def test_integers_without_a_range_are_read_as_in_a_tiff(kind: Any, window: Any) -> None:
    options = DecodeOptions(intensity_window=window)
    (file,) = read_bytes(tiff(HOUNSFIELD.astype(np.int16)), options)
    assert isinstance(file, DecodedImage)
    found = decoded_image(HOUNSFIELD.astype(kind), options).pixels
    np.testing.assert_array_equal(found, file.pixels)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64, np.int8])
def test_unsigned_and_short_integers_are_stretched_alike(kind: Any) -> None:
    values = random.integers(0, 100, (10, 10)).astype(kind)
    np.testing.assert_array_equal(pixels(values), pixels(values.astype(np.int64)))
    assert np.ptp(pixels(values)) == MAX_PIXEL


def test_a_window_in_numbers_reads_floats_beyond_0_to_1() -> None:
    units = HOUNSFIELD.astype(np.float32)
    window = {"intensity_window": CT_WINDOWS["lung"]}
    np.testing.assert_array_equal(pixels(units, **window), pixels(HOUNSFIELD, **window))
    unit = random.random((4, 4))
    np.testing.assert_array_equal(pixels(unit, **window), pixels(unit))
    for given in ({}, {"intensity_window": "percentile"}):
        with pytest.raises(DataError, match=r"lie on \[0, 1\] .* intensity_window=\(center, width"):
            pixels(units, **given)
    units[0, 0] = np.nan
    with pytest.raises(DataError, match="1 of its values are NaN or infinite"):
        pixels(units, **window)


def test_the_slices_of_volumes_are_images_in_order() -> None:
    volumes = random.integers(0, 255, (2, 5, 12, 9)).astype(np.uint8)
    found = [image.pixels for image in decoded_images(SCHEMA, volumes)]
    assert len(found) == 10
    np.testing.assert_array_equal(found[7], volumes[1, 2].astype(np.uint16) * 257)
    first = [image.pixels for image in decoded_images(SCHEMA, volumes[0])]
    np.testing.assert_array_equal(first, found[:5])
    one_slice = decoded_images(SCHEMA, volumes[:, :1])
    assert len(list(one_slice)) == 2


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((20, 20, 3), "put a single image in colour into a list"),
        ((20, 20, 4), "put a single image in colour into a list"),
        ((5, 3, 20, 20), r"np.moveaxis\(X, 1, -1\), or for slices X.reshape"),
        ((5, 2, 20, 20), "may be channels or slices"),
        ((20, 20), "put a single image into a list"),
        ((1, 2, 5, 20, 20), r"expected|got \(1, 2, 5, 20, 20\)"),
    ],
)
def test_a_shape_that_may_mean_two_things_is_refused(shape: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        decoded_images(SCHEMA, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(2, 20, 20, 2), (2, 20, 20, 4)])
def test_channels_that_are_not_1_or_3_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"row 0: an image must be .* drop alpha"):
        prepare_images(SCHEMA, decoded_images(SCHEMA, np.zeros(shape, np.uint8)))


def test_a_list_of_volumes_is_refused_with_the_remedy() -> None:
    volumes = [np.zeros((5, 20, 20), np.uint8), np.zeros((7, 20, 20), np.uint8)]
    with pytest.raises(DataError, match=r"got \(5, 20, 20\); .* np.concatenate\(volumes\)"):
        prepare_images(SCHEMA, decoded_images(SCHEMA, volumes))


# ---------------------------------------------------------------- masked arrays


def brains() -> np.ma.MaskedArray:
    """Return four images of int16, of which a square counts, with rubbish outside."""
    images = random.integers(0, 100, (4, 16, 16)).astype(np.int16)
    outside = np.ones(images.shape, bool)
    outside[:, 4:12, 3:13] = False
    images[outside] = -32768
    return np.ma.masked_array(images, mask=outside)


OWN_SCHEMA = replace(SCHEMA, mask="own")


@pytest.mark.parametrize("given", [brains(), list(brains()), brains()[..., None]])
def test_masked_pixels_do_not_count(given: Any) -> None:
    encoded = prepare_images(OWN_SCHEMA, decoded_images(OWN_SCHEMA, given)).values[IMAGE]
    inside = encoded.reshape(4, 16, 16) >= 0
    assert inside[:, 4:12, 3:13].all()
    assert inside.sum() == 4 * 80


def test_the_values_of_masked_pixels_do_not_matter() -> None:
    images, other = brains(), brains()
    other.data[:] = np.where(other.mask, 32767, images.data)
    for one, two in zip(images, other, strict=True):
        np.testing.assert_array_equal(decoded_image(one).pixels, decoded_image(two).pixels)
    floats = images.astype(np.float32) / 100
    floats.data[floats.mask] = np.nan
    assert decoded_image(floats[0]).pixels.max() <= MAX_PIXEL


def test_a_channel_that_is_masked_masks_the_pixel() -> None:
    colours = np.ma.masked_array(random.random((8, 8, 3)))
    colours[2, 3, 1] = np.ma.masked
    mask = decoded_image(colours).mask
    assert mask is not None
    assert (~mask).nonzero() == (2, 3)


@pytest.mark.parametrize(
    ("schema", "given", "reason"),
    [
        (SCHEMA, brains(), r"its masked pixels would count; fit with mask='own', or give X.filled"),
        (OWN_SCHEMA, brains().data, "it has no mask, which the model needs; give a numpy masked"),
        (OWN_SCHEMA, np.ma.masked_all((1, 8, 8)), "all of its pixels are masked; leave it out"),
    ],
)
def test_masks_and_model_must_fit(schema: ImageSchema, given: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        prepare_images(schema, decoded_images(schema, given))


def test_a_masked_array_without_masked_pixels_is_an_array() -> None:
    images = np.ma.masked_array(random.random((2, 8, 8)))
    found = prepare_images(SCHEMA, decoded_images(SCHEMA, images)).values[IMAGE]
    plain = prepare_images(SCHEMA, decoded_images(SCHEMA, images.data)).values[IMAGE]
    np.testing.assert_array_equal(found, plain)
