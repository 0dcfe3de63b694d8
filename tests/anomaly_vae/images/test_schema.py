"""Images of every kind become small float images of one shape, and then the model's matrix."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.config.data import ImageData
from anomaly_vae.errors import DataError
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
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeFailure, DecodeOptions
from anomaly_vae.images.schema import ImageSchema, central_square, crop_and_resize, image_batch
from tests.support.scans import blobs, coloured

SCHEMA = ImageSchema(size=16, channels=1)


def deep(pixels: NDArray[Any]) -> NDArray[np.uint16]:
    """Convert 8 bits to 16 as the decoders do."""
    return pixels.astype(np.uint16) * 257


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, MAX_PIXEL + 1, shape).astype(np.uint16)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def resized(plane: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Resize naively: each new pixel is a mean weighted by a triangle twice its width."""

    def weights(old: int) -> NDArray[np.float64]:
        scale = old / size
        places = np.arange(old) + 0.5
        centres = (np.arange(size)[:, None] + 0.5) * scale
        triangle = np.maximum(0, 1 - np.abs(places - centres) / max(scale, 1))
        return triangle / triangle.sum(1, keepdims=True)

    height, width = plane.shape
    return weights(height) @ plane @ weights(width).T


# ---------------------------------------------------------------- cropping and resizing


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((4, 4), slice(0, 4), slice(0, 4)),
        ((3, 7), slice(0, 3), slice(2, 5)),
        ((8, 3), slice(2, 5), slice(0, 3)),
        ((5, 2, 3), slice(1, 3), slice(0, 2)),
    ],
)
def test_the_centre_is_the_largest_square_in_the_middle(
    shape: tuple[int, ...], rows: slice, columns: slice
) -> None:
    pixels = noise(*shape)
    np.testing.assert_array_equal(central_square(pixels), pixels[rows, columns])


@pytest.mark.parametrize("side", [16, 32, 48, 20, 23, 9])
def test_resizing_is_a_mean_under_a_triangle(side: int) -> None:
    pixels = noise(side, side, seed=side)
    expected = resized(pixels / MAX_PIXEL, 16)
    np.testing.assert_allclose(crop_and_resize(pixels, 16, 1)[0], expected, atol=2e-6)


@given(st.integers(0, 65_535), st.integers(3, 70), st.integers(3, 70))
def test_one_grey_stays_that_grey(value: int, height: int, width: int) -> None:
    fitted = crop_and_resize(np.full((height, width), value, np.uint16), 16, 1)
    np.testing.assert_allclose(fitted, value / MAX_PIXEL, atol=1e-6)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    pixels = noise(16, 16)
    np.testing.assert_array_equal(
        crop_and_resize(pixels, 16, 1)[0], pixels.astype(np.float32) / MAX_PIXEL
    )


def test_resizing_keeps_what_is_above_above_and_what_is_left_left() -> None:
    pixels = np.zeros((64, 64), np.uint16)
    pixels[:32, :16] = MAX_PIXEL
    fitted = crop_and_resize(pixels, 16, 1)[0]
    assert fitted[:7, :3].min() > 0.95
    assert fitted[9:].max() < 0.05
    assert fitted[:, 5:].max() < 0.05


def test_grey_of_colour_is_its_luma_and_colour_of_grey_is_grey() -> None:
    colours = noise(16, 16, 3)
    luma = colours / MAX_PIXEL @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(crop_and_resize(colours, 16, 1)[0], luma, atol=1e-6)
    grey = noise(16, 16)
    np.testing.assert_array_equal(
        crop_and_resize(grey, 16, 3), np.repeat(crop_and_resize(grey, 16, 1), 3, axis=0)
    )


def test_the_channels_of_colour_stay_apart() -> None:
    colours = noise(32, 32, 3)
    fitted = crop_and_resize(colours, 16, 3)
    for channel in range(3):
        np.testing.assert_allclose(
            fitted[channel], crop_and_resize(colours[..., channel], 16, 1)[0], atol=1e-6
        )


# ---------------------------------------------------------------- what comes from outside


def test_what_cannot_be_read_and_what_shows_nothing_are_problems_of_their_rows() -> None:
    flat = DecodedImage(np.full((20, 20), 777, np.uint16), 0)
    good = DecodedImage(noise(20, 20), 0)
    batch = SCHEMA.from_images([good, DecodeFailure("it is torn", None), flat, good])
    assert [(p.row, p.column) for p in batch.problems] == [(1, IMAGE), (2, IMAGE)]
    assert batch.problems[0].reason == "it is torn"
    assert "all pixels are alike" in batch.problems[1].reason
    assert batch.usable.tolist() == [True, False, False, True]
    assert np.asarray(batch.values[IMAGE]).shape == (4, 1, 16, 16)


def test_paths_and_bytes_give_the_same_images(tmp_path: Path) -> None:
    contents = [png(image) for image in blobs(3)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    tables = [
        pa.table({IMAGE: pa.array(cells, kind)})
        for cells, kind in (
            (paths, pa.string()),
            (paths, pa.large_string()),
            (contents, pa.binary()),
            (contents, pa.large_binary()),
        )
    ]
    tables.append(pa.table({IMAGE: pa.array(contents).dictionary_encode()}))
    truth = SCHEMA.from_images([DecodedImage(deep(image), 0) for image in blobs(3)])
    for table in tables:
        batch = SCHEMA.from_arrow(table)
        assert not batch.problems
        np.testing.assert_array_equal(batch.values[IMAGE], truth.values[IMAGE])


def test_a_missing_cell_is_a_problem_and_other_columns_are_ignored() -> None:
    cells = pa.array([png(blobs(1)[0]), None], pa.binary())
    batch = SCHEMA.from_arrow(pa.table({IMAGE: cells, "age": [1, 2]}))
    assert [(p.row, p.reason) for p in batch.problems] == [(1, "no image is given")]
    assert batch.ignored == ("age",)
    assert len(SCHEMA.from_arrow(pa.table({IMAGE: pa.nulls(2)})).problems) == 2
    assert len(SCHEMA.from_arrow(pa.table({IMAGE: pa.nulls(0)}))) == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"path": ["a.png"]}), "expected a column 'image' .*found 'path'"),
        (pa.table({IMAGE: [1.5]}), "column 'image': expected paths or bytes, found double"),
    ],
)
def test_a_table_without_images_is_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        SCHEMA.from_arrow(table)
    assert caught.value.column == IMAGE


def test_a_record_cannot_name_a_file_of_the_machine_that_reads_it(tmp_path: Path) -> None:
    content = png(blobs(1)[0])
    path = tmp_path / "scan.png"
    path.write_bytes(content)
    batch = SCHEMA.from_records([{IMAGE: content}, {IMAGE: str(path)}, {IMAGE: path}, {}])
    assert batch.usable.tolist() == [True, False, False, False]
    assert {p.reason for p in batch.problems} == {"expected the bytes of an image file"}


def test_a_file_of_several_images_is_refused_where_one_is_wanted() -> None:
    buffer = io.BytesIO()
    first, second = map(Image.fromarray, blobs(2))
    first.save(buffer, "TIFF", save_all=True, append_images=[second])
    batch = SCHEMA.from_records([{IMAGE: buffer.getvalue()}])
    assert "several images" in batch.problems[0].reason


def test_no_pictures_make_an_empty_batch() -> None:
    batch = SCHEMA.from_images([])
    assert len(batch) == 0
    assert np.asarray(batch.values[IMAGE]).shape == (0, 1, 16, 16)


def test_the_limits_of_a_configuration_are_those_of_decoding() -> None:
    assert ImageSchema.of(ImageData(path="x")).reading == DecodeOptions()
    assert DecodeOptions().max_seconds == 120


def test_the_schema_survives_json_and_says_what_the_configuration_does() -> None:
    data = ImageData(
        path="x", size=32, channels=3, intensity_window=(40.0, 80.0), axis=1, max_pixels=99,
        max_bytes=999, max_frames=9, max_seconds=3.0,
    )  # fmt: skip
    schema = ImageSchema.from_config(data)
    reading = DecodeOptions((40.0, 80.0), 1, 999, 99, max_frames=9, max_seconds=3.0)
    assert schema == ImageSchema(32, 3, reading)
    assert ImageSchema.from_json(schema.to_json()) == schema
    as_read = {
        **schema.to_json(),
        "reading": {**schema.to_json()["reading"], "intensity_window": [40, 80]},
    }
    assert ImageSchema.from_json(as_read) == schema


@pytest.mark.parametrize("pixels", [noise(9, 13), deep(coloured(blobs(1))[0])], ids=["grey", "rgb"])
def test_a_picture_written_as_png_reads_back_as_it_was(pixels: NDArray[np.uint16]) -> None:
    (picture,) = read_bytes(encode_png(DecodedImage(pixels, 0)), DecodeOptions())
    assert isinstance(picture, DecodedImage)
    np.testing.assert_array_equal(picture.pixels, pixels)


# ---------------------------------------------------------------- the matrix

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
