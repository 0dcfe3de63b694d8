"""From per-pixel maps to regions and pictures; numpy and Pillow only, so that serving can draw.

A map holds the score's nats (or standard deviations) pixel by pixel, (H, W), finite. It is smoothed
before anything is read off it, and every scan of a model is drawn on the same `Scale`, made from
held-out normals, so that equal colours mean equal evidence. Text is drawn with the font inside
Pillow, which makes a picture the same on every machine; the font knows ASCII and little more, so
letters lose their accents and other signs become ``?``.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

SIGMA = 1.0
"""Pixels; residuals of neighbours are nearly independent, lesions are not."""
REGION_QUANTILE = 0.995
REGION_COLOUR = 1 / 4
"""Where on the colour map the region level lies."""
SMALLEST_REGION = 4
PIXELS_PER_REGION_PIXEL = 2000
"""A region has at least this share of a large map: smaller specks are what noise leaves."""

# Nine anchors of matplotlib's plasma (van der Walt & Smith 2015, CC0): uniform in lightness, safe
# for the colour-blind, and nowhere grey, so that heat never looks like tissue (cividis does).
ANCHORS = (
    (12, 7, 135), (77, 2, 163), (126, 3, 168), (170, 35, 149), (204, 71, 120),
    (230, 108, 92), (248, 149, 64), (253, 198, 38), (240, 249, 33),
)  # fmt: skip
OPACITY = 0.7
"""Of the hottest pixel; less heat is more transparent, in proportion."""

PANEL, PANEL_MOST, TILE, TILE_MOST = 256, 640, 112, 512
"""Pixels that a small scan is enlarged to, and not beyond, in an overlay and on a sheet."""
GAP, BAR = 10, 14
SMALL, TEXT, TITLE = 11, 13, 16
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SIGNS = {"−": "-", "–": "-", "—": "-", "×": "x", "σ": "sd", "≥": ">=", "≤": "<=", "ß": "ss"}


# ---------------------------------------------------------------- maps


@dataclass(frozen=True)
class Scale:
    """What a model's smoothed map values mean: the ends of the colour map and the region level.

    ``low`` ≤ ``region`` ≤ ``high`` and ``low`` < ``high``, all in ``unit``.
    """

    low: float
    high: float
    region: float
    unit: str = "nats per pixel"

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {"low": self.low, "high": self.high, "region": self.region, "unit": self.unit}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scale:
        """The inverse of `to_json`."""
        low, high, region = (float(content[key]) for key in ("low", "high", "region"))
        return cls(low, high, region, str(content["unit"]))


def fit_scale(maps: Floats, unit: str = "nats per pixel") -> Scale:
    """Learn the scale from the maps (N, H, W) of held-out normals, N ≥ 1.

    Over all smoothed pixels of all normals, ``low`` is the median and ``region`` the 99.5%
    quantile: one pixel in 200 of a normal scan lies above it. ``high`` is four times as far from
    ``low``. Maps that hardly ever leave their median put ``region`` at their maximum; where that
    is the median too, one unit above it.
    """
    values = np.stack([smoothed(np.asarray(one, np.float32)) for one in maps])
    low, region = (float(q) for q in np.quantile(values, (0.5, REGION_QUANTILE)))
    ripple = 1e-5 * abs(low)  # what smoothing makes of a constant map in float32
    above = (region - low, float(values.max()) - low)
    step = next((step for step in above if step > ripple), 1.0)
    return Scale(low, low + step / REGION_COLOUR, low + step, unit)


def smoothed(heat: Floats, sigma: float = SIGMA) -> Floats:
    """Gaussian filter over the last two axes (…, H, W), mirrored at the edges, cut at 4 sigma.

    Constants and totals stay; the result has the shape and type of ``heat``.
    """
    reach = math.ceil(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(heat.dtype)
    return _filtered(_filtered(heat, weights, -1), weights, -2)


def _filtered(heat: Floats, weights: Floats, axis: int) -> Floats:
    moved = np.moveaxis(heat, axis, -1)
    reach, length = len(weights) // 2, moved.shape[-1]
    padded = np.pad(moved, [(0, 0)] * (heat.ndim - 1) + [(reach, reach)], mode="symmetric")
    result = np.zeros_like(moved)
    for offset, weight in enumerate(weights):
        result += weight * padded[..., offset : offset + length]
    return np.moveaxis(result, -1, axis)


# ---------------------------------------------------------------- regions


@dataclass(frozen=True)
class Region:
    """Connected pixels above the region level; x to the right, y down, in pixels of the map.

    ``peak`` is the largest smoothed value, ``total`` the sum of the map itself, both in its unit.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    total: float


def regions(
    heat: Floats, scale: Scale, most: int = 10, min_area: int | None = None
) -> tuple[Region, ...]:
    """The regions of a map (H, W), largest total first.

    Pixels belong together that touch at an edge or a corner. Where the region level is negative,
    as a density's can be, totals are compared from that level, or the smallest would come first.

    Args:
        heat: the map, not smoothed.
        scale: the model's.
        most: how many to return.
        min_area: the fewest pixels of a region; None: 4, or 1 in 2,000 of a larger map.
    """
    smallest = max(SMALLEST_REGION, heat.size // PIXELS_PER_REGION_PIXEL)
    smooth = smoothed(heat)
    ys, xs = np.nonzero(smooth > scale.region)
    found = _measured(heat[ys, xs], smooth[ys, xs], xs, ys)
    large = [one for one in found if one.area >= (smallest if min_area is None else min_area)]
    floor = min(scale.region, 0.0)
    return tuple(sorted(large, key=lambda one: floor * one.area - one.total)[:most])


def _measured(
    heat: Floats, smooth: Floats, xs: NDArray[np.intp], ys: NDArray[np.intp]
) -> list[Region]:
    """The regions of n hot pixels, given their values and places (n,) in reading order."""
    root = _components(xs, ys)
    order = np.argsort(root, kind="stable")
    _, starts, area = np.unique(root[order], return_index=True, return_counts=True)
    left, top = (np.minimum.reduceat(place[order], starts) for place in (xs, ys))
    right, bottom = (np.maximum.reduceat(place[order], starts) for place in (xs, ys))
    peak = np.maximum.reduceat(smooth[order], starts)
    total = np.add.reduceat(heat[order].astype(np.float64), starts)
    columns = (left, top, right - left + 1, bottom - top + 1, area, peak, total)
    return [Region(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _components(xs: NDArray[np.intp], ys: NDArray[np.intp]) -> NDArray[np.intp]:
    """(n,) for each pixel the first pixel, in reading order, that it is connected with.

    Trees of pixels are hooked onto smaller roots and flattened, all at once, until every edge
    stays within a tree: O(log n) rounds (Shiloach & Vishkin 1982).
    """
    root = np.arange(len(xs))
    a, b = _edges(xs, ys)
    while (root[a] != root[b]).any():
        least = np.minimum(root[a], root[b])
        np.minimum.at(root, root[a], least)
        np.minimum.at(root, root[b], least)
        while (root != root[root]).any():
            root = root[root]
    return root


def _edges(xs: NDArray[np.intp], ys: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of pixels that touch, each once, as indices."""
    index = np.full((ys.max(initial=0) + 2, xs.max(initial=0) + 3), -1)
    index[ys, xs + 1] = np.arange(len(xs))
    ahead = ((0, 1), (1, -1), (1, 0), (1, 1))
    other = np.stack([index[ys + down, xs + 1 + right] for down, right in ahead])
    _, here = np.nonzero(other >= 0)
    return here, other[other >= 0]


# ---------------------------------------------------------------- pictures


def colours(values: Floats) -> Pixels:
    """(H, W) in [0, 1], clipped → (H, W, 3), dark blue to yellow."""
    rows: Pixels = _table()[np.rint(np.clip(values, 0, 1) * 255).astype(np.intp)]
    return rows


def overlay(
    scan: Floats,
    expected: Floats,
    heat: Floats,
    found: Sequence[Region],
    scale: Scale,
    title: str = "",
    zoom: int | None = None,
) -> Image.Image:
    """Three panels: the scan, what the model expected, and the heat over the scan, with its scale.

    The more heat, the less transparent; regions are outlined and numbered in the order of
    ``found``. Colour scans lose their colour under the heat.

    Args:
        scan: (C, H, W) with C 1 or 3, or (H, W), in [0, 1].
        expected: the same.
        heat: the map (H, W), not smoothed.
        found: `regions` of it.
        scale: the model's.
        title: drawn above; cut in the middle where it is too long.
        zoom: integer enlargement; None: small scans up to about 256 pixels.
    """
    height, width = heat.shape
    zoom = zoom or _zoom(height, width, PANEL, PANEL_MOST)
    under = _enlarged(_grey(_pixels(scan)), zoom)
    smooth = _enlarged_map(smoothed(heat), zoom)
    hot = Image.fromarray(_outlined(_heated(under, smooth, scale), smooth, found, scale, zoom))
    _number(hot, found, zoom)
    panels = [_enlarged(_pixels(image), zoom) for image in (scan, expected)]
    captions = ("scan", "expected by the model", f"heat, {scale.unit}")
    return _page([*map(Image.fromarray, panels), hot], captions, title, scale)


def sheet(
    images: Floats,
    captions: Sequence[str] = (),
    columns: int | None = None,
    rows: Sequence[str] = (),
) -> Image.Image:
    """A contact sheet, row by row, white between the images.

    Args:
        images: (N, H, W) or (N, H, W, 3) in [0, 1].
        captions: none, or N, drawn below the images; cut in the middle where they are too long.
        columns: how many images beside each other; None: N / len(rows), or about a square.
        rows: none, or one caption for each row, drawn on its left.
    """
    count, height, width = images.shape[:3]
    zoom = _zoom(height, width, TILE, TILE_MOST)
    columns = columns or max(1, count // len(rows) if rows else math.ceil(math.sqrt(count)))
    left = GAP + max((math.ceil(_font(TEXT).getlength(_plain(r))) + GAP for r in rows), default=0)
    step = (width * zoom + GAP, height * zoom + GAP + (_line(SMALL) if captions else 0))
    size = (left + columns * step[0], GAP + math.ceil(count / columns) * step[1])
    page = Image.new("RGB", size, WHITE)
    for i, (image, caption) in enumerate(zip(images, captions or [""] * count, strict=True)):
        at = (left + i % columns * step[0], GAP + i // columns * step[1])
        page.paste(Image.fromarray(_enlarged(_bytes(image), zoom)), at)
        _centred(page, caption, (at[0], at[1] + height * zoom), width * zoom, SMALL)
    for i, caption in enumerate(rows):
        _text(page, (GAP, GAP + i * step[1] + height * zoom // 2), caption, TEXT, "lm")
    return page


def png(image: Image.Image) -> bytes:
    """The same bytes for the same picture."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


# ---------------------------------------------------------------- panels


def _pixels(image: Floats) -> Pixels:
    """(C, H, W) or (H, W) in [0, 1] → (H, W, 3)."""
    return _bytes(np.moveaxis(image, 0, -1) if image.ndim == 3 else image)


def _bytes(image: Floats) -> Pixels:
    """(H, W), (H, W, 1) or (H, W, 3) in [0, 1], clipped → (H, W, 3)."""
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(levels.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))


def _grey(image: Pixels) -> Pixels:
    return _bytes(np.asarray(Image.fromarray(image).convert("L")) / 255)


def _zoom(height: int, width: int, least: int, most: int) -> int:
    """The integer that takes the short side to ``least``, unless the long one exceeds ``most``."""
    return max(1, min(math.ceil(least / min(height, width)), most // max(height, width)))


def _enlarged(image: Pixels, zoom: int) -> Pixels:
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _enlarged_map(smooth: Floats, zoom: int) -> Floats:
    size = (smooth.shape[1] * zoom, smooth.shape[0] * zoom)
    picture = Image.fromarray(smooth.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32)


def _heated(under: Pixels, smooth: Floats, scale: Scale) -> Pixels:
    """Lay the colours over the pixels, both (H, W, …)."""
    value = np.clip((smooth - scale.low) / (scale.high - scale.low), 0, 1)
    opacity = OPACITY * value[..., None]
    mixed: Floats = under * (1 - opacity) + colours(value) * opacity
    return np.rint(mixed).astype(np.uint8)


def _outlined(
    image: Pixels, smooth: Floats, found: Sequence[Region], scale: Scale, zoom: int
) -> Pixels:
    """A white line with a black one around it, along the region level."""
    inside = np.zeros(smooth.shape, np.bool_)
    for one in found:
        box = np.s_[one.y * zoom : (one.y + one.height) * zoom,
                    one.x * zoom : (one.x + one.width) * zoom]  # fmt: skip
        inside[box] = smooth[box] > scale.region
    line = np.pad(inside, 1)
    result = image.copy()
    result[_beside(~line)[1:-1, 1:-1]] = WHITE
    result[_beside(line)[1:-1, 1:-1]] = BLACK
    return result


def _beside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels outside the mask (H, W) with a neighbour in it, above, below, left or right."""
    near = np.zeros_like(mask)
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return near & ~mask


def _number(image: Image.Image, found: Sequence[Region], zoom: int) -> None:
    """Each region's rank on its right, moved inwards where that is outside the picture."""
    draw = ImageDraw.Draw(image)
    for rank, one in enumerate(found, 1):
        room = image.width - 3 - math.ceil(_font(TEXT).getlength(str(rank)))
        x = min((one.x + one.width) * zoom + 4, room)
        y = round((one.y + one.height / 2) * zoom)
        y = min(max(y, TEXT // 2 + 2), image.height - TEXT // 2 - 2)
        draw.text((x, y), str(rank), WHITE, _font(TEXT), "lm", stroke_width=2, stroke_fill=BLACK)


def _page(
    panels: Sequence[Image.Image], captions: Sequence[str], title: str, scale: Scale
) -> Image.Image:
    """The panels beside each other, the colour bar on the right, the title above."""
    width, height = panels[0].size
    top = GAP + (_line(TITLE) if title else 0)
    bar = BAR + 6 + math.ceil(max(_font(TEXT).getlength(label) for _, label in _ticks(scale)))
    size = (GAP + len(panels) * (width + GAP) + bar + GAP, top + height + _line(TEXT) + GAP)
    page = Image.new("RGB", size, WHITE)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        page.paste(panel, (GAP + i * (width + GAP), top))
        _centred(page, caption, (GAP + i * (width + GAP), top + height), width, TEXT)
    _colour_bar(page, scale, (page.width - GAP - bar, top), height)
    _text(page, (GAP, GAP), _fitted(title, page.width - 2 * GAP, TITLE), TITLE, "la")
    return page


def _colour_bar(page: Image.Image, scale: Scale, at: tuple[int, int], height: int) -> None:
    left, top = at
    values = np.linspace(1, 0, height)[:, None].repeat(BAR, 1)
    page.paste(Image.fromarray(colours(values)), at)
    for place, label in _ticks(scale):
        y = top + round((1 - place) * (height - 1))
        ImageDraw.Draw(page).line((left, y, left + BAR + 2, y), BLACK)
        y = min(max(y, top + TEXT // 2), top + height - TEXT // 2)
        _text(page, (left + BAR + 6, y), label, TEXT, "lm")


def _ticks(scale: Scale) -> tuple[tuple[float, str], ...]:
    """Places on the colour bar, 0 to 1, and what stands there."""
    region = (scale.region - scale.low) / (scale.high - scale.low)
    return (
        (0.0, f"<{scale.low:.3g}"),
        (region, f"{scale.region:.3g} region"),
        (1.0, f">{scale.high:.3g}"),
    )


# ---------------------------------------------------------------- text


def _centred(page: Image.Image, text: str, at: tuple[int, int], width: int, size: int) -> None:
    """One line below a picture of this width."""
    middle = (at[0] + width // 2, at[1] + _line(size) // 2 + 1)
    _text(page, middle, _fitted(text, width - 2, size), size, "mm")


def _text(page: Image.Image, at: tuple[int, int], text: str, size: int, anchor: str) -> None:
    ImageDraw.Draw(page).text(at, _plain(text), BLACK, _font(size), anchor)


def _fitted(text: str, width: int, size: int) -> str:
    """What fits into the width, cut in the middle: names differ at their ends."""
    font, text = _font(size), _plain(text)
    short, keep = text, len(text)
    while keep and (length := font.getlength(short)) > width:
        keep = min(keep - 1, int(keep * width / length))
        short = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
    return short


def _plain(text: str) -> str:
    """In the signs that the font has, on one line."""
    for sign, spelled in SIGNS.items():
        text = text.replace(sign, spelled)
    parts = unicodedata.normalize("NFKD", text)
    kept = (c for c in parts if not unicodedata.combining(c))
    return "".join(c if c == "…" or " " <= c <= "~" else "?" for c in kept)


def _line(size: int) -> int:
    return size + 7


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def _table() -> Pixels:
    """(256, 3) from the anchors."""
    at, anchors = np.linspace(0, 1, len(ANCHORS)), np.array(ANCHORS)
    steps = np.linspace(0, 1, 256)
    return np.stack([np.rint(np.interp(steps, at, c)) for c in anchors.T], -1).astype(np.uint8)
