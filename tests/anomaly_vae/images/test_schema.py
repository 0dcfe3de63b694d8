"""Images of every kind become small float images of one shape."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.config.data import ImageData
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import (
    IMAGE,
)
from anomaly_vae.images.pixels import (
    CT_WINDOWS,
    MAX_PIXEL,
    DecodedImage,
    DecodeFailure,
    DecodeOptions,
)
from anomaly_vae.images.schema import ImageSchema, crop_and_resize, is_in_colour
from anomaly_vae.types import WindowPreset
from tests.support.pixels import SCHEMA, deep, noise
from tests.support.scans import blobs


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
    assert ImageSchema.from_config(ImageData(path="x")).options == DecodeOptions()
    assert DecodeOptions().max_seconds == 120


def test_the_schema_survives_json_and_says_what_the_configuration_does() -> None:
    data = ImageData(
        path="x", size=32, channels=3, intensity_window=(40.0, 80.0), axis=1, max_pixels=99,
        max_bytes=999, max_frames=9, max_seconds=3.0,
    )  # fmt: skip
    schema = ImageSchema.from_config(data)
    reading = DecodeOptions((40.0, 80.0), 1, 999, 99, max_frames=9, max_seconds=3.0)
    assert schema == ImageSchema(32, 3, reading, "pad", "auto")
    assert ImageSchema.from_json(schema.to_json()) == schema
    as_read = {
        **schema.to_json(),
        "reading": {**schema.to_json()["reading"], "intensity_window": [40, 80]},
    }
    assert ImageSchema.from_json(as_read) == schema


@pytest.mark.parametrize("name", get_args(WindowPreset))
def test_a_window_by_name_is_recorded_by_its_values(name: WindowPreset) -> None:
    schema = ImageSchema.from_config(ImageData(path="x", intensity_window=name))
    assert schema.options.intensity_window == CT_WINDOWS[name]
    assert ImageSchema.from_json(schema.to_json()) == schema


# ---------------------------------------------------------------- what an image shows

WINDOW = "the window in the file (center 30, width 100)"


def test_an_image_that_a_window_hides_names_the_window_and_the_remedy() -> None:
    white = np.full((20, 20), MAX_PIXEL, np.uint16)
    white[0, 0] = 0
    batch = SCHEMA.from_images([DecodedImage(white[1:], 0, WINDOW), DecodedImage(white[1:], 1)])
    assert [problem.reason for problem in batch.problems] == [
        f"{WINDOW} makes its pixels black or white, so that the image shows nothing; remove it "
        "from the file or train with data.intensity_window: percentile",
        "all pixels are alike: the image shows nothing",
    ]
    grey = np.full((20, 20), 99, np.uint16)
    [problem] = SCHEMA.from_images([DecodedImage(grey, 0, WINDOW)]).problems
    assert problem.reason == "all pixels are alike: the image shows nothing"


def test_images_that_a_window_hides_nearly_are_counted() -> None:
    hidden = np.zeros((200, 300), np.uint16)
    hidden[:100] = MAX_PIXEL
    shown = noise(200, 300)
    images = [
        DecodedImage(hidden, 0, WINDOW),
        DecodedImage(hidden, 1),
        DecodedImage(shown, 2, WINDOW),
    ]
    batch = SCHEMA.from_images(images)
    assert (batch.seen.saturated, len(batch.problems)) == (1, 0)


def test_images_in_colour_are_counted() -> None:
    grey = np.repeat(noise(40, 30)[..., None], 3, -1)
    tinted = grey.copy()
    tinted[3, 4] = (0, 30_000, 0)
    compressed = np.clip(grey.astype(int) + np.array([0, 2000, 0]), 0, MAX_PIXEL).astype(np.uint16)
    for image, expected in ((grey, 0), (grey[..., 0], 0), (tinted, 1), (compressed, 0)):
        assert SCHEMA.from_images([DecodedImage(image, 0)]).seen.in_colour == expected
        assert is_in_colour(image) == bool(expected)
