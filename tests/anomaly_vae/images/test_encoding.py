"""Small float images become the rows of the model's matrix, and images again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.encoding import (
    IMAGE,
    MAX_DEVIATION,
    STANDARDISED_MEAN,
    STANDARDISED_STD,
    ImageEncoding,
    ImageLayout,
    encode_png,
)
from anomaly_vae.images.pixels import DecodedImage, DecodeOptions
from anomaly_vae.images.schema import ImageSchema, image_batch
from anomaly_vae.images.tiling import Tiling
from tests.support.pixels import SCHEMA, deep, noise
from tests.support.scans import blobs, coloured


@pytest.mark.parametrize("pixels", [noise(9, 13), deep(coloured(blobs(1))[0])], ids=["grey", "rgb"])
def test_a_picture_written_as_png_reads_back_as_it_was(pixels: NDArray[np.uint16]) -> None:
    (picture,) = read_bytes(encode_png(DecodedImage(pixels, 0)), DecodeOptions())
    assert isinstance(picture, DecodedImage)
    np.testing.assert_array_equal(picture.pixels, pixels)


GREY, RGB = ImageLayout(1, 16), ImageLayout(3, 16)
STANDARDISE, UNIT = ImageEncoding(GREY, "standardise"), ImageEncoding(GREY, "unit")


def unit(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_standardised_images_have_the_mean_and_deviation_they_are_said_to_have() -> None:
    x = STANDARDISE.encode(image_batch(unit(5, 1, 16, 16) ** 2))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(1), STANDARDISED_MEAN, atol=1e-6)
    np.testing.assert_allclose(x.std(1), STANDARDISED_STD, atol=1e-6)


@given(st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 99))
def test_brightness_and_contrast_of_the_input_do_not_matter(
    gain: float, share: float, seed: int
) -> None:
    images = unit(1, 1, 16, 16, seed=seed)
    changed = gain * images + share * (1 - gain)
    before, after = (
        STANDARDISE.encode(image_batch(x.astype(np.float32))) for x in (images, changed)
    )
    np.testing.assert_allclose(before, after, atol=2e-5)


def test_a_speck_on_black_is_held_within_the_extreme() -> None:
    image = np.zeros((1, 1, 16, 16), np.float32)
    image[0, 0, 3, 4] = 1
    x = STANDARDISE.encode(image_batch(image)).reshape(16, 16)
    assert x[3, 4] == pytest.approx(STANDARDISED_MEAN + STANDARDISED_STD * MAX_DEVIATION)
    assert x.min() == pytest.approx(STANDARDISED_MEAN - STANDARDISED_STD / np.sqrt(255), rel=1e-4)


def test_unit_intensities_stay_as_they_are() -> None:
    images = unit(3, 3, 16, 16)
    x = ImageEncoding(RGB, "unit").encode(image_batch(images))
    np.testing.assert_array_equal(x, images.reshape(3, -1))


def test_an_encoded_image_is_shown_as_it_was() -> None:
    images = unit(2, 3, 16, 16)
    shown = ImageEncoding(RGB, "unit").to_images(images.reshape(2, -1))
    np.testing.assert_array_equal(shown, images)
    assert UNIT.to_images(np.array([[-1.0] * 128 + [2.0] * 128])).tolist() == [
        [[[0.0] * 16] * 8 + [[1.0] * 16] * 8]
    ]


@pytest.mark.parametrize("encoding", [STANDARDISE, UNIT], ids=["standardise", "unit"])
def test_no_images_have_no_rows(encoding: ImageEncoding) -> None:
    x = encoding.encode(SCHEMA.from_images([]))
    assert x.shape == (0, 256)
    assert encoding.per_column(x).shape == (0, 256)


def test_a_pixels_channels_are_summed_and_every_value_knows_its_pixel() -> None:
    nats = unit(2, 3 * 256).astype(np.float64)
    encoding = ImageEncoding(RGB, "unit")
    by_pixel = encoding.per_column(nats)
    for pixel in (0, 17, 255):
        np.testing.assert_allclose(
            by_pixel[:, pixel], nats[:, encoding.sources == pixel].sum(1), rtol=1e-12
        )
    np.testing.assert_allclose(by_pixel.sum(1), nats.sum(1))
    assert encoding.labels[17] == "pixel 1,1"
    assert len(encoding.labels) == 256


def test_a_pixel_is_named_by_row_and_column_and_shown_as_encoded() -> None:
    image = np.zeros((1, 1, 16, 16), np.float32)
    image[0, 0, 2, 5] = 0.75
    observed = UNIT.observed(image_batch(image))
    (pixel,) = [i for i, values in enumerate(observed) if values == [0.75]]
    assert UNIT.labels[pixel] == "pixel 2,5"
    assert UNIT.decode(image.reshape(1, -1)) == observed


@pytest.mark.parametrize("channels", [1, 3])
def test_the_typical_record_is_an_image_that_can_be_read(channels: int) -> None:
    schema = ImageSchema(24, channels)
    record = ImageEncoding(ImageLayout(channels, 24), "standardise").typical_record(schema)
    batch = schema.from_records([record])
    assert not batch.problems
    image = np.asarray(batch.values[IMAGE])[0]
    assert image[0, 12, 12] > 0.9
    assert image[0, 0, 0] < 0.1


def test_the_encoding_survives_json() -> None:
    for encoding in (STANDARDISE, ImageEncoding(RGB, "unit")):
        assert ImageEncoding.from_json(encoding.to_json()) == encoding


@pytest.mark.parametrize("spacing", [None, (5.0, 0.9375000001), (1 / 3, 1e-3)])
def test_a_png_keeps_the_spacing_to_the_last_bit(spacing: tuple[float, float] | None) -> None:
    content = encode_png(DecodedImage(noise(9, 13), 0, spacing=spacing))
    (image,) = read_bytes(content, DecodeOptions())
    assert isinstance(image, DecodedImage)
    assert image.spacing == spacing


@pytest.mark.parametrize("text", ["", "wide", "1", "1 2 3", "nan 1", "0 1", "-1 1", "inf 1"])
def test_a_png_whose_spacing_is_no_distance_has_none(text: str) -> None:
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text("PixelSpacing", text)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(buffer, "PNG", pnginfo=info)
    (image,) = read_bytes(buffer.getvalue(), DecodeOptions())
    assert isinstance(image, DecodedImage)
    assert image.spacing is None


def test_pieces_are_standardised_if_each_is_a_whole_image_of_which_all_counts() -> None:
    layout, tiling = ImageLayout(1, 64), Tiling(64, 32, 0.25)
    assert ImageEncoding(layout, "standardise").standardises_pieces
    assert not ImageEncoding(layout, "unit").standardises_pieces
    assert not ImageEncoding(layout, "standardise", tiling).standardises_pieces
    assert not ImageEncoding(layout, "standardise", masked=True).standardises_pieces
