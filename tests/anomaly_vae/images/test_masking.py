"""Check which pixels of an image count, and that the others change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.config.data import ImageData
from anomaly_vae.errors import ConfigError
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.masking import (
    ENCODED_OUTSIDE,
    NO_MASK,
    NOTHING,
    OUTSIDE,
    Region,
    foreground,
)
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage
from anomaly_vae.images.schema import ImageSchema

SIZE = 32


def head(background: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    """Return a bright disc with a dark hole on a dark background, (S, S) on [0, 1]."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    radius = np.hypot(x, y)
    noise = np.random.default_rng(seed).normal(0, 0.05, radius.shape)
    bright = (radius < 0.8) & (radius > 0.2)
    return np.where(bright, 0.7 + noise, background).clip(0, 1).astype(np.float32)


def decoded(grey: NDArray[np.float32]) -> DecodedImage:
    return DecodedImage((grey * MAX_PIXEL).astype(np.uint16), 0)


def test_the_foreground_keeps_holes_and_leaves_out_the_dark_border() -> None:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    np.testing.assert_array_equal(foreground(head()), np.hypot(x, y) < 0.8)
    assert foreground(np.full((8, 8), 0.5, np.float32)).all()
    assert not foreground(np.zeros((8, 8), np.float32)).any()


def test_what_lies_outside_changes_no_encoded_value() -> None:
    schema = ImageSchema(SIZE, 1, mask="foreground")
    encoding = ImageEncoding(ImageLayout(1, SIZE), "standardise", masked=True)
    clean, noisy = head(0.0), head(0.03)
    batches = schema.from_images([decoded(clean)]), schema.from_images([decoded(noisy)])
    first, second = (encoding.encode(batch) for batch in batches)
    assert (first == ENCODED_OUTSIDE).any()
    hole = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]).ravel() <= 0.2
    np.testing.assert_array_equal(first[0, ~hole] == ENCODED_OUTSIDE,
                                  second[0, ~hole] == ENCODED_OUTSIDE)  # fmt: skip
    inside = first[first > ENCODED_OUTSIDE]
    assert inside.mean() == pytest.approx(0.5, abs=1e-5)
    assert inside.std() == pytest.approx(0.25, abs=1e-5)
    assert encoding.pieces(first).min() > -2


def test_a_file_gives_a_region_for_all_images(tmp_path: Path) -> None:
    region = np.zeros((64, 64), np.uint8)
    region[:, 32:] = 255
    Image.fromarray(region).save(tmp_path / "region.png")
    data = ImageData(path="x", size=SIZE, mask=str(tmp_path / "region.png"))
    schema = ImageSchema.from_config(data)
    assert isinstance(schema.mask, Region)
    assert schema.mask.pixels[:, SIZE // 2 :].all()
    assert not schema.mask.pixels[:, : SIZE // 2].any()
    assert ImageSchema.from_json(schema.to_json()) == schema
    values = schema.from_images([decoded(head())]).values["image"][0, 0]
    assert (values[:, : SIZE // 2] == OUTSIDE).all()
    assert (values[:, SIZE // 2 :] >= 0).all()
    assert "mask" in data.unset  # the manifest has the region in place of the path


@pytest.mark.parametrize("content", ["black", "text", "absent"])
def test_a_mask_file_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "region.png"
    if content == "black":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    elif content == "text":
        path.write_text("white")
    with pytest.raises(ConfigError, match=r"data.mask '.*region.png'"):
        ImageSchema.from_config(ImageData(path="x", mask=str(path)))


def test_an_image_of_which_nothing_counts_is_refused() -> None:
    dot = np.zeros((SIZE, SIZE), np.float32)
    dot[0, 0] = 1
    (problem,) = ImageSchema(SIZE, 1, mask="foreground").from_images([decoded(dot)]).problems
    assert problem.reason == NOTHING


CORNER = Region.of(np.pad(np.ones((8, 8), bool), (0, SIZE - 8)))


@pytest.mark.parametrize("mask", [None, "foreground", "own", CORNER], ids=str)
@pytest.mark.parametrize("spacing", ["auto", 1.5])
def test_the_example_of_a_model_can_be_scored_by_it(mask: Any, spacing: Any) -> None:
    schema = ImageSchema(SIZE, 1, fit="pad", spacing=spacing, mask=mask)
    encoding = ImageEncoding(ImageLayout(1, SIZE), "standardise", masked=mask is not None)
    batch = schema.from_records([encoding.typical_record(schema)])
    assert not batch.problems


def test_an_image_brings_its_own_mask() -> None:
    schema = ImageSchema(SIZE, 1, fit="pad", mask="own")
    assert ImageSchema.from_json(schema.to_json()) == schema
    mask = np.zeros((SIZE, 2 * SIZE), bool)
    mask[:, : SIZE // 2] = True
    wide = np.hstack([head(seed=1), head(seed=2)])
    image = replace(decoded(wide), mask=mask)
    whole = ImageSchema(SIZE, 1, fit="pad").from_images([image]).values["image"][0, 0]
    values = schema.from_images([image]).values["image"][0, 0]
    inside = np.zeros((SIZE, SIZE), bool)
    inside[SIZE // 4 : 3 * SIZE // 4, : SIZE // 4] = True
    np.testing.assert_array_equal(values[inside], whole[inside])
    assert (values[~inside] == OUTSIDE).all()
    full = replace(image, mask=np.ones_like(mask))
    padding = schema.from_images([full]).values["image"][0, 0] == OUTSIDE
    assert padding[: SIZE // 4].all()
    assert padding.mean() == 0.5


def test_an_image_without_its_mask_is_refused() -> None:
    schema = ImageSchema(SIZE, 1, mask="own")
    missing, other, empty = (
        replace(decoded(head()), mask=mask)
        for mask in (None, np.ones((3, 3), bool), np.zeros((SIZE, SIZE), bool))
    )
    batch = schema.from_images([missing, other, empty])
    assert [one.reason for one in batch.problems] == [NO_MASK, NO_MASK, NOTHING]
    assert "mask" not in ImageData(path="x", mask="own").unset


def test_padding_is_no_foreground() -> None:
    schema = ImageSchema(SIZE, 1, fit="pad", mask="foreground")
    bright = np.full((SIZE, 2 * SIZE), 0.8, np.float32)
    bright[::2] = 0.6
    values = schema.from_images([decoded(bright)]).values["image"][0, 0]
    rows = np.flatnonzero((values >= 0).any(1))
    assert (rows[0], rows[-1]) == (SIZE // 4, 3 * SIZE // 4 - 1)
