"""Maps, regions and drawings agree with scipy, matplotlib and the pixels themselves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly_vae.images import heatmaps
from anomaly_vae.images.heatmaps import (
    GAP,
    Region,
    Scale,
    colours,
    fit_scale,
    overlay,
    png,
    region_pixels,
    regions,
    sheet,
    smoothed,
)

Maps = NDArray[np.float64]
SCALE = Scale(low=0.0, high=4.0, region=1.0)
MAPS = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(-3, 9)
).map(lambda ints: ints * 1.7)


def blob(x: int, y: int, radius: float, height: float, size: int = 64) -> Maps:
    ys, xs = np.mgrid[:size, :size]
    return height * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))


def gamma(*shape: int) -> Maps:
    return np.random.default_rng(0).gamma(0.5, 2.0, shape)


# ---------------------------------------------------------------- smoothing


@given(MAPS, st.floats(0.4, 2.5))
def test_smoothing_is_scipys_gaussian_filter(heat: Maps, sigma: float) -> None:
    reach = int(np.ceil(4 * sigma))
    expected = ndimage.gaussian_filter(heat, sigma, mode="reflect", radius=reach)
    assert np.allclose(smoothed(heat, sigma), expected, atol=1e-12)


@given(MAPS)
def test_smoothing_keeps_totals_and_bounds(heat: Maps) -> None:
    smooth = smoothed(heat)
    assert np.isclose(smooth.sum(), heat.sum())
    assert smooth.min() >= heat.min() - 1e-9
    assert smooth.max() <= heat.max() + 1e-9


def test_maps_are_smoothed_one_by_one_in_their_own_type() -> None:
    maps = gamma(2, 3, 9, 7).astype(np.float32)
    smooth = smoothed(maps)
    assert smooth.dtype == np.float32
    assert np.array_equal(smooth[1, 2], smoothed(maps[1, 2]))


# ---------------------------------------------------------------- the scale


def test_the_scale_is_read_off_the_smoothed_pixels_of_all_normals() -> None:
    maps = gamma(40, 24, 20)
    scale = fit_scale(maps, "standard deviations per pixel")
    values = np.concatenate([ndimage.gaussian_filter(m, 1.0, mode="reflect").ravel() for m in maps])
    assert scale.low == pytest.approx(np.median(values), rel=1e-5)
    assert scale.region == pytest.approx(np.quantile(values, 0.995), rel=1e-5)
    assert scale.high - scale.low == pytest.approx(4 * (scale.region - scale.low))
    assert np.mean(values > scale.region) == pytest.approx(0.005, abs=1e-4)
    assert scale.unit == "standard deviations per pixel"


def test_the_order_of_the_normals_does_not_change_the_scale() -> None:
    maps = gamma(12, 16, 16)
    assert fit_scale(maps) == fit_scale(maps[::-1])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_constant_maps_have_a_scale_on_which_they_are_cold(value: float) -> None:
    maps = np.full((3, 16, 16), value)
    scale = fit_scale(maps)
    assert scale.low < scale.region < scale.high
    assert scale.low == pytest.approx(value, rel=1e-5, abs=1e-9)
    assert not regions(maps[0], scale, min_area=1)


def test_maps_that_hardly_ever_leave_zero_put_the_level_at_their_maximum() -> None:
    maps = np.zeros((10, 64, 64))
    maps[3, 30, 30] = 5.0
    scale = fit_scale(maps)
    assert scale.region == pytest.approx(smoothed(maps[3]).max(), rel=1e-5)
    assert not regions(maps[3] * 0.99, scale, min_area=1)
    assert regions(maps[3] * 1.01, scale, min_area=1)


def test_a_scale_survives_json() -> None:
    scale = fit_scale(gamma(5, 12, 12))
    assert Scale.from_json(json.loads(json.dumps(scale.to_json()))) == scale


# ---------------------------------------------------------------- regions


def labelled(heat: Maps, level: float) -> set[tuple[Any, ...]]:
    """Find regions with scipy."""
    smooth = smoothed(heat)
    label, count = ndimage.label(smooth > level, np.ones((3, 3)))
    found = set()
    for one, box in zip(range(1, count + 1), ndimage.find_objects(label), strict=True):
        inside = label == one
        rows, columns = box
        size = (columns.stop - columns.start, rows.stop - rows.start)
        values = (round(smooth[inside].max(), 6), round(heat[inside].sum(), 6))
        found.add((columns.start, rows.start, *size, int(inside.sum()), *values))
    return found


def as_tuple(one: Region) -> tuple[Any, ...]:
    values = (round(one.peak, 6), round(one.total, 6))
    return (one.x, one.y, one.width, one.height, one.area, *values)


@given(MAPS, st.sampled_from([-1.0, 1.0, 3.0]))
@settings(max_examples=200)
def test_regions_are_the_connected_pixels_above_the_level(heat: Maps, level: float) -> None:
    found = regions(heat, Scale(-9.0, 9.0, level), limit=400, min_area=1)
    assert {as_tuple(one) for one in found} == labelled(heat, level)


@given(arrays(np.bool_, (12, 17)))
def test_any_pattern_falls_into_the_right_components(hot: NDArray[np.bool_]) -> None:
    ys, xs = np.nonzero(hot)
    label, _ = ndimage.label(hot, np.ones((3, 3)))
    first = {
        int(one): int(np.flatnonzero(label[ys, xs] == one)[0]) for one in np.unique(label[hot])
    }
    expected = [first[int(one)] for one in label[ys, xs]]
    assert heatmaps.components(xs, ys).tolist() == expected


def test_a_long_thin_snake_is_one_region() -> None:
    snake = np.zeros((41, 41), np.bool_)
    snake[::4] = True
    snake[1:4:8, -1] = snake[2::8, -1] = snake[3::8, -1] = snake[1::8, -1] = True
    snake[5::8, 0] = snake[6::8, 0] = snake[7::8, 0] = True
    ys, xs = np.nonzero(snake)
    assert set(heatmaps.components(xs, ys)) == {0}


def test_regions_come_largest_first_and_no_more_than_asked() -> None:
    heat = blob(12, 12, 2, 30) + blob(45, 20, 5, 30) + blob(20, 50, 3, 30)
    found = regions(heat, SCALE)
    assert [one.total for one in found] == sorted((one.total for one in found), reverse=True)
    assert [(one.x <= x < one.x + one.width) for one, x in zip(found, (45, 20, 12), strict=True)]
    assert regions(heat, SCALE, limit=2) == found[:2]
    assert regions(heat, SCALE, limit=0) == ()


@given(MAPS)
def test_the_pixels_in_regions_are_as_many_as_their_areas(heat: Maps) -> None:
    found, inside = regions(heat, SCALE, limit=None), region_pixels(heat, SCALE)
    assert inside.sum() == sum(one.area for one in found)
    boxes = np.zeros(heat.shape, bool)
    for one in found:
        boxes[one.y : one.y + one.height, one.x : one.x + one.width] = True
    assert not (inside & ~boxes).any()


def test_a_negative_level_does_not_put_the_smallest_region_first() -> None:
    heat = np.full((64, 64), -9.0) + blob(12, 12, 2, 7) + blob(45, 40, 8, 7)
    small_scale = Scale(-9.0, 0.0, -6.0)
    first, second = regions(heat, small_scale)
    assert first.area > second.area
    assert first.total < second.total < 0


def test_specks_are_left_out_and_larger_ones_in_larger_maps() -> None:
    speck = np.zeros((200, 200))
    speck[10, 10] = 20.0  # smoothed, 9 pixels above the level
    assert regions(speck[:64, :64], SCALE)[0].area == 9
    assert regions(speck, SCALE) == ()
    assert regions(speck, SCALE, min_area=9) == regions(speck[:64, :64], SCALE)
    assert regions(speck[:64, :64], SCALE, min_area=10) == ()


def test_a_map_hot_all_over_is_one_region_and_a_cold_one_none() -> None:
    (whole,) = regions(np.full((30, 20), 5.0), SCALE)
    assert whole == Region(0, 0, 20, 30, 600, pytest.approx(5.0), pytest.approx(3000.0))
    assert regions(np.zeros((30, 20)), SCALE) == ()


# ---------------------------------------------------------------- colours


def test_the_colours_are_those_of_plasma() -> None:
    values = np.linspace(0, 1, 256)[None]
    theirs = colormaps["plasma"](values)[..., :3] * 255
    assert np.abs(colours(values).astype(float) - theirs).max() < 6


def test_colours_grow_lighter_and_are_never_grey() -> None:
    levels = colours(np.linspace(0, 1, 256)[None])[0].astype(float)
    light = (levels / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).mean() > 0.95
    assert np.ptp(levels, axis=1).min() > 100


def test_values_beyond_the_ends_have_the_colours_of_the_ends() -> None:
    assert np.array_equal(colours(np.array([[-3.0, 7.0]])), colours(np.array([[0.0, 1.0]])))


# ---------------------------------------------------------------- the overlay


def panels(page: Image.Image, size: int, top: int = GAP) -> list[NDArray[np.uint8]]:
    """Return the three panels of a page."""
    pixels = np.asarray(page)
    lefts = [GAP + i * (size + GAP) for i in range(3)]
    return [pixels[top : top + size, left : left + size] for left in lefts]


SCAN = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def drawn(heat: Maps, found: tuple[Region, ...] = (), zoom: int = 1) -> Image.Image:
    return overlay(SCAN, SCAN[::-1], heat, found, SCALE, zoom=zoom)


def test_the_panels_show_the_scan_what_was_expected_and_the_scan_again_where_it_is_cold() -> None:
    scan, expected, hot = panels(drawn(np.zeros((64, 64))), 64)
    levels = np.rint(SCAN * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.array_equal(scan, levels)
    assert np.array_equal(expected, levels[::-1])
    assert np.array_equal(hot, levels)


def test_heat_covers_the_scan_in_proportion() -> None:
    _, _, hot = panels(drawn(np.full((64, 64), 2.0)), 64)
    mixed = SCAN[..., None] * 255 * (1 - 0.35) + 0.35 * colours(np.array([[0.5]]))
    assert np.abs(hot - mixed).max() <= 1
    _, _, hottest = panels(drawn(np.full((64, 64), 99.0)), 64)
    assert np.ptp(hottest[..., 0].astype(int)) > 70, "the anatomy stays visible"


def test_regions_are_outlined_and_nothing_else() -> None:
    heat = blob(20, 20, 3, 30) + blob(45, 40, 3, 30)
    found = regions(heat, SCALE)
    _, _, without = panels(drawn(heat), 64)
    _, _, outlined = panels(drawn(heat, found[:1]), 64)
    changed = (without != outlined).any(-1)
    ys, xs = np.nonzero((outlined == 255).all(-1) & changed)
    one = found[0]
    edge = (xs == one.x) | (xs == one.x + one.width - 1) | (ys == one.y)
    assert edge.any()
    other = found[1]
    assert not changed[other.y : other.y + other.height, other.x : other.x + other.width].any()


def test_outlines_run_along_the_level() -> None:
    heat = blob(32, 32, 6, 30)
    (one,) = regions(heat, SCALE)
    _, _, outlined = panels(drawn(heat, (one,)), 64)
    above = smoothed(heat) > SCALE.region
    edge = above & ~ndimage.binary_erosion(above)
    assert (outlined[edge] == 255).all()
    around = ndimage.binary_dilation(above) & ~above
    around[:, one.x + one.width :] = False  # its number stands there
    assert (outlined[around] == 0).all()


def test_a_map_hot_to_its_edges_and_one_without_a_region_are_drawn() -> None:
    hot = np.full((64, 64), 99.0)
    for heat in (hot, np.zeros((64, 64)), -hot):
        assert drawn(heat, regions(heat, SCALE)).size == drawn(heat).size


@pytest.mark.parametrize(("side", "panel"), [(28, 280), (64, 256), (224, 448), (256, 256)])
def test_small_scans_are_enlarged_by_an_integer(side: int, panel: int) -> None:
    heat = np.zeros((side, side))
    page = overlay(heat, heat, heat, (), SCALE)
    assert all((square == 0).all() for square in panels(page, panel))
    assert (np.asarray(page)[GAP - 1] == 255).all()
    assert (np.asarray(page)[GAP + panel, : GAP + 3 * panel] == 255).all()


def test_long_scans_do_not_make_endless_pages() -> None:
    heat = np.zeros((10, 300))
    assert overlay(heat, heat, heat, (), SCALE).width < 2500


def test_colour_scans_keep_their_colour_everywhere_but_under_the_heat() -> None:
    scan = np.stack([SCAN, 1 - SCAN, SCAN.T])
    page = overlay(scan, scan, np.zeros((64, 64)), (), SCALE, zoom=1)
    first, second, hot = panels(page, 64)
    assert np.array_equal(first, np.rint(np.moveaxis(scan, 0, -1) * 255))
    assert np.array_equal(second, first)
    assert (np.ptp(hot, axis=-1) == 0).all()


def test_one_channel_is_as_good_as_none() -> None:
    heat = blob(20, 20, 3, 30)
    page = overlay(SCAN[None], SCAN[None], heat, (), SCALE, "title")
    assert png(page) == png(overlay(SCAN, SCAN, heat, (), SCALE, "title"))


def test_equal_heat_has_equal_colours_in_every_scan() -> None:
    """The colour must not depend on the rest of the map."""
    spot = blob(20, 20, 3, 2)
    _, _, alone = panels(drawn(spot), 64)
    _, _, beside = panels(drawn(spot + blob(50, 50, 3, 90)), 64)
    assert np.array_equal(alone[10:30, 10:30], beside[10:30, 10:30])


def titled(title: str) -> NDArray[np.uint8]:
    return np.asarray(overlay(SCAN, SCAN, np.zeros((64, 64)), (), SCALE, title))


def test_titles_are_drawn_above_and_cut_to_the_page() -> None:
    short, long = titled("a.png"), titled("a" + "long " * 500 + "b.png")
    assert short.shape == long.shape
    assert not np.array_equal(short, titled("b.png"))
    assert (short[:GAP] == 255).all()
    assert (long[:, -GAP:] == 255).all()
    assert short.shape[0] > titled("").shape[0]


@pytest.mark.parametrize(
    ("title", "drawn_as"),
    [("Schädel n°3", "Schadel n°3"), ("p ≤ 0.05 − 2σ × 3", "p <= 0.05 - 2sd x 3"),
     ("肺.png", "?.png"), ("two\nlines\t\x00", "two?lines??")],
)  # fmt: skip
def test_titles_are_spelled_in_the_signs_of_the_font(title: str, drawn_as: str) -> None:
    spelled = drawn_as.replace("°", "?")
    assert np.array_equal(titled(title), titled(spelled))


def test_texts_are_cut_in_the_middle_to_what_fits() -> None:
    text = "scan_0001_of_the_second_series.png"
    short = heatmaps._shorten(text, 100, heatmaps.TEXT)
    head, tail = short.split("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    length = heatmaps._font(heatmaps.TEXT).getlength
    assert 70 < length(short) <= 100
    assert heatmaps._shorten(text, 1000, heatmaps.TEXT) == text


def test_the_colour_bar_tells_the_scale() -> None:
    pages = [
        np.asarray(overlay(SCAN, SCAN, SCAN, (), scale))
        for scale in (SCALE, Scale(0.0, 8.0, 1.0), Scale(0.0, 4.0, 1.0, "sd per pixel"))
    ]
    left = GAP + 3 * (256 + GAP)
    bar = pages[0][GAP : GAP + 256, left + 2]
    ticks = (bar == 0).all(-1)
    assert np.flatnonzero(ticks).tolist() == [0, 191, 255], "the level is at a quarter"
    expected = colours(np.linspace(1, 0, 256)[:, None])[:, 0]
    assert np.array_equal(bar[~ticks], expected[~ticks])
    assert len({page.tobytes() for page in pages}) == 3


# ---------------------------------------------------------------- contact sheets


def tiles(page: Image.Image, side: int, columns: int, count: int, line: int) -> list[Maps]:
    pixels = np.asarray(page)
    corners = [
        (i // columns * (side + GAP + line), i % columns * (side + GAP)) for i in range(count)
    ]
    return [
        pixels[GAP + y : GAP + y + side, GAP + x : GAP + x + side].astype(float) for y, x in corners
    ]


def test_a_sheet_shows_every_image_in_its_place() -> None:
    images = gamma(7, 120, 120) % 1
    page = sheet(images, columns=3)
    assert page.size == (GAP + 3 * (120 + GAP), GAP + 3 * (120 + GAP))
    for image, tile in zip(images, tiles(page, 120, 3, 7, 0), strict=True):
        assert np.array_equal(tile, np.rint(image * 255)[..., None].repeat(3, 2))
    assert (np.asarray(page)[-120 - GAP :, -2 * (120 + GAP) :] == 255).all(), "the rest is white"


def test_a_sheet_is_about_square_unless_it_has_rows() -> None:
    images = np.zeros((12, 120, 120))
    assert sheet(images).size == (GAP + 4 * (120 + GAP), GAP + 3 * (120 + GAP))
    wide = sheet(images, rows=["z1", "z2"])
    assert wide.height == GAP + 2 * (120 + GAP)
    assert wide.width > GAP + 6 * (120 + GAP)


def test_small_images_are_enlarged_on_a_sheet_and_colours_kept() -> None:
    images = np.broadcast_to(np.array([1.0, 0.5, 0.0]), (2, 28, 28, 3))
    first, second = tiles(sheet(images, columns=2), 112, 2, 2, 0)
    assert np.array_equal(np.unique(first.reshape(-1, 3), axis=0), [[255, 128, 0]])
    assert np.array_equal(first, second)


def test_captions_stand_below_their_images() -> None:
    images = np.zeros((2, 120, 120))
    blank = np.asarray(sheet(images, ["", ""]))
    named = np.asarray(sheet(images, ["", "a very long caption that does not fit.png"]))
    ys, xs = np.nonzero((blank != named).any(-1))
    assert ys.min() >= GAP + 120
    assert xs.min() >= 2 * GAP + 120
    assert xs.max() < 2 * GAP + 240


def test_row_captions_stand_on_the_left_of_their_rows() -> None:
    images = np.ones((4, 120, 120))
    page = np.asarray(sheet(images, rows=["one", "two"]))
    ys, xs = np.nonzero((page != 255).any(-1))
    assert xs.max() < page.shape[1] - 2 * (120 + GAP)
    assert (ys < GAP + 120).any()
    assert (ys > 2 * GAP + 120).any()


def test_as_many_captions_as_images_or_none() -> None:
    with pytest.raises(ValueError, match="shorter"):
        sheet(np.zeros((2, 28, 28)), ["one"])
    assert sheet(np.zeros((0, 28, 28))).size == (GAP + 112 + GAP, GAP)


# ---------------------------------------------------------------- bytes


def test_the_same_picture_has_the_same_bytes_and_they_hold_its_pixels() -> None:
    heat = blob(20, 20, 3, 30)
    page = drawn(heat, regions(heat, SCALE), zoom=2)
    again = drawn(heat, regions(heat, SCALE), zoom=2)
    assert png(page) == png(again)
    with Image.open(io.BytesIO(png(page))) as back:
        assert np.array_equal(np.asarray(back), np.asarray(page))
        assert not back.info


def test_a_score_that_does_not_localise_says_so_and_has_no_heat() -> None:
    hot = np.zeros((64, 64))
    hot[20:40, 20:40] = 100
    useless = replace(SCALE, localizes=False)
    page = np.asarray(overlay(SCAN, SCAN, hot, regions(hot, SCALE), useless, "title"))
    assert (page[..., 0] == page[..., 2]).all()  # grey: neither colours nor a bar
    np.testing.assert_array_equal(page, overlay(SCAN, SCAN, 0 * hot, (), useless, "title"))
    drawn = np.asarray(overlay(SCAN, SCAN, hot, (), SCALE, "title"))
    assert page.shape == drawn.shape
    panel = page[40:-40, -300:-100]
    assert 0 < (panel < 128).mean() < 0.05  # a line of text on white
