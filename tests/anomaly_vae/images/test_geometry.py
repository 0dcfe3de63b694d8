"""Check how images of any shape are fitted into a square."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images import ImageSchema
from anomaly_vae.images.geometry import Geometry, aspect_of, central_square
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage
from anomaly_vae.types import Fit

PAD = Geometry(32, "pad", "auto")


def planes(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, np.float32)


def disc(height: int, width: int, aspect: float = 1.0) -> NDArray[np.float32]:
    """Return a plane (1, H, W) with a disc that is round if pixels are ``aspect`` times as high."""
    y = (np.arange(height)[:, None] + 0.5 - height / 2) * aspect
    x = np.arange(width) + 0.5 - width / 2
    radius = min(height * aspect, width) / 3
    return (np.hypot(y, x) < radius).astype(np.float32)[None]


def extent(square: NDArray[np.float32]) -> tuple[int, int]:
    """Return the height and width of what is bright in a plane (1, S, S)."""
    bright = square[0] > 0.5
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((1, 4, 4), slice(0, 4), slice(0, 4)),
        ((1, 3, 8), slice(0, 3), slice(2, 5)),
        ((1, 8, 3), slice(2, 5), slice(0, 3)),
        ((3, 5, 2), slice(1, 3), slice(0, 2)),
    ],
)
def test_the_centre_is_the_largest_square_in_the_middle(
    shape: tuple[int, ...], rows: slice, columns: slice
) -> None:
    content = planes(*shape)
    np.testing.assert_array_equal(central_square(content), content[:, rows, columns])


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_square_image_is_the_same_however_it_is_fitted(fit: Fit) -> None:
    content = planes(1, 50, 50)
    np.testing.assert_array_equal(Geometry(32, fit).apply(content), Geometry(32).apply(content))


@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.2, 5))
def test_padding_keeps_the_whole_image_at_its_proportions(
    height: int, width: int, aspect: float
) -> None:
    rows, columns = PAD.content(height, width, aspect)
    assert max(rows, columns) == 32
    assert abs(rows - 32 * min(1, height * aspect / width)) <= 1
    fitted = PAD.apply(np.ones((1, height, width), np.float32), aspect)
    np.testing.assert_allclose(fitted, 1, atol=1e-6)  # the border has the colour of the image


def test_padding_has_the_mean_of_the_border_of_each_channel() -> None:
    content = np.zeros((3, 10, 40), np.float32)
    content[:, 2:-2, 2:-2] = 1
    content[1] += 0.25
    fitted = Geometry(40, "pad").apply(content)
    np.testing.assert_allclose(fitted[:, 0, 0], [0, 0.25, 0], atol=1e-6)
    np.testing.assert_array_equal(fitted[:, 15:25], content)


@pytest.mark.parametrize("shape", [(1, 40, 200), (1, 200, 40)])
def test_a_mark_at_the_end_is_lost_by_cropping_alone(shape: tuple[int, int, int]) -> None:
    content = np.zeros(shape, np.float32)
    content[:, -8:, -8:] = 1
    assert Geometry(32, "crop").apply(content).max() == 0
    assert Geometry(32, "pad").apply(content).max() > 0.5
    assert Geometry(32, "stretch").apply(content).max() > 0.5


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(("height", "width", "aspect"), [(20, 100, 5.0), (100, 20, 0.2)])
def test_a_round_thing_stays_round_whatever_the_spacing(
    height: int, width: int, aspect: float, fit: Fit
) -> None:
    rows, columns = extent(Geometry(48, fit, "auto").apply(disc(height, width, aspect), aspect))
    assert abs(rows - columns) <= 2
    assert rows > 24


def test_spacing_is_ignored_on_request() -> None:
    content = planes(1, 20, 100)
    kept = Geometry(32, "pad", "ignore")
    np.testing.assert_array_equal(kept.apply(content, 5.0), kept.apply(content, 1.0))
    assert kept.removed(20, 100, 5.0) == pytest.approx(0.8)
    assert PAD.removed(20, 100, 5.0) == 0


@pytest.mark.parametrize(("fit", "long"), [("pad", 30_000), ("stretch", 30_000)])
def test_a_strip_needs_no_square_of_its_length_in_memory(fit: Fit, long: int) -> None:
    assert Geometry(32, fit).apply(np.ones((1, 1, long), np.float32)).shape == (1, 32, 32)


def test_spacing_that_no_scanner_has_is_one_reject_that_names_the_remedy() -> None:
    with pytest.raises(DataError, match=r"1000 × 1 mm .*data\.spacing: ignore"):
        aspect_of(1000.0, 1.0)
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = DecodedImage(pixels, 0, spacing=(1000.0, 1.0))
    (problem,) = ImageSchema(16, 1, fit="pad", spacing="auto").from_images([image]).problems
    assert "data.spacing: ignore" in problem.reason
    assert not ImageSchema(16, 1, fit="pad", spacing="ignore").from_images([image]).problems


def test_what_cropping_would_leave_out_is_counted() -> None:
    pixels = (planes(1, 20, 100)[0] * MAX_PIXEL).astype(np.uint16)
    images = [DecodedImage(pixels, 0), DecodedImage(pixels[:, :20], 0)]
    seen = ImageSchema(16, 1, fit="pad", spacing="auto").from_images(images).seen
    assert seen.oblong == 1
    assert seen.outside == pytest.approx(0.8)


def test_models_that_state_no_geometry_crop() -> None:
    original = ImageSchema(16, 1)
    assert set(original.to_json()) == {"size", "channels", "reading"}
    for schema in (original, ImageSchema(16, 1, fit="pad", spacing="auto")):
        assert ImageSchema.from_json(schema.to_json()) == schema


# ---------------------------------------------------------------- spacing in mm


def spaced(height: int, width: int, spacing: tuple[float, float] | None, in_mm: bool = True):
    pixels = np.full((height, width), MAX_PIXEL, np.uint16)
    pixels[0, 0] = 0
    return DecodedImage(pixels, 0, spacing=spacing, in_mm=in_mm)


@pytest.mark.parametrize(
    ("shape", "spacing", "extent_in_mm"),
    [
        ((20, 10), (1.0, 1.0), (20, 10)),
        ((20, 10), (0.5, 2.0), (10, 20)),
        ((4, 4), (5, 5), (20, 20)),
    ],
)
def test_images_of_the_same_extent_have_the_same_size_in_the_square(
    shape: tuple[int, int], spacing: tuple[float, float], extent_in_mm: tuple[int, int]
) -> None:
    schema = ImageSchema(32, 1, fit="pad", spacing=1.0)
    image = spaced(*shape, tuple(map(float, spacing)))
    aspect, scale = schema._pixel(image)
    assert Geometry(32, "pad", 1.0).content(*shape, aspect, scale) == extent_in_mm
    assert schema.from_images([image]).seen.reduced == 0
    heat = np.zeros((32, 32), np.float32)
    assert schema.to_source(heat, image).shape == shape


def test_an_image_that_is_too_large_for_the_spacing_is_reduced_and_counted() -> None:
    schema = ImageSchema(16, 1, fit="pad", spacing=1.0)
    batch = schema.from_images([spaced(20, 10, (1.0, 1.0)), spaced(10, 10, (1.0, 1.0))])
    assert (batch.seen.reduced, batch.problems) == (1, ())


@pytest.mark.parametrize("image", [spaced(9, 9, None), spaced(9, 9, (2.0, 1.0), in_mm=False)])
def test_an_image_without_a_distance_in_mm_is_refused_where_one_is_needed(
    image: DecodedImage,
) -> None:
    (problem,) = ImageSchema(16, 1, fit="pad", spacing=1.5).from_images([image]).problems
    assert "no distance between pixels in mm, which data.spacing 1.5 needs" in problem.reason
    assert not ImageSchema(16, 1, fit="pad", spacing="auto").from_images([image]).problems


def test_a_spacing_in_mm_survives_the_manifest() -> None:
    schema = ImageSchema(16, 1, fit="pad", spacing=1.5)
    assert ImageSchema.from_json(schema.to_json()) == schema


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    ends=st.tuples(*[st.integers(0, 31)] * 4),
)
def test_a_box_in_the_image_covers_the_pixels_of_a_map_that_are_hot(
    fit: Fit, height: int, width: int, ends: tuple[int, int, int, int]
) -> None:
    x0, x1, y0, y1 = (*sorted(ends[:2]), *sorted(ends[2:]))
    geometry, heat = Geometry(32, fit), np.zeros((32, 32), np.float32)
    heat[y0 : y1 + 1, x0 : x1 + 1] = 1
    found = geometry.box_to_source((x0, y0, x1 + 1, y1 + 1), height, width)
    left, top, right, bottom = found
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    hot = geometry.to_source(heat, height, width) > 0.75
    outside = hot.copy()
    outside[top:bottom, left:right] = False
    assert not outside.any()
