"""Find regions in per-pixel score maps, and draw the maps over their scans.

A map (H, W) holds the score of each pixel, in nats or standard deviations, all finite. Maps are
smoothed before regions are found in them. All scans of a model are drawn on one `Scale`, fitted to
held-out normal scans, so that equal colours mean equal scores. Only numpy and Pillow are used,
which a service may import. Text is drawn with Pillow's own font, so that an image is the same on
every machine; the font covers ASCII only, so accents are dropped and other signs become ``?``.
"""

from __future__ import annotations

import io
import math
import textwrap
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

SMOOTHING_SIGMA = 1.0
"""Standard deviation of the smoothing filter, in pixels; noise is independent between neighbours
and averages out, lesions do not."""
REGION_QUANTILE = 0.995
"""Quantile of the smoothed pixels of normal scans above which a pixel belongs to a region."""
REGION_COLOUR = 1 / 4
"""Position of the region level on the colour map, from 0 to 1."""
MIN_REGION_AREA = 4
"""Minimum area of a region, in pixels."""
MAP_PIXELS_PER_REGION_PIXEL = 2000
"""Number of pixels of a map per pixel of minimum area; smaller regions in large maps are noise."""

# Nine anchors of matplotlib's plasma (van der Walt & Smith 2015, CC0): uniform in lightness, safe
# for the colour-blind, and never grey, so that heat does not look like tissue (cividis does).
ANCHORS = (
    (12, 7, 135), (77, 2, 163), (126, 3, 168), (170, 35, 149), (204, 71, 120),
    (230, 108, 92), (248, 149, 64), (253, 198, 38), (240, 249, 33),
)  # fmt: skip
MAX_OPACITY = 0.7
"""Opacity of the hottest pixel; opacity is proportional to heat."""

MIN_PANEL, MAX_PANEL = 256, 640
"""Side that small scans are enlarged to in an overlay, and its limit, in pixels."""
MIN_TILE, MAX_TILE = 112, 512
"""Side that small scans are enlarged to on a contact sheet, and its limit, in pixels."""
NO_LOCALIZATION = "this score does not localise"
"""Text in place of a heatmap that would not show where anomalies are."""
GAP, BAR = 10, 14
"""Distance between panels, and width of the colour bar, in pixels."""
SMALL, TEXT, TITLE = 11, 13, 16
"""Font sizes, in pixels."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
REPLACEMENTS = {"−": "-", "–": "-", "—": "-", "×": "x", "σ": "sd", "≥": ">=", "≤": "<=", "ß": "ss"}


# ---------------------------------------------------------------- maps


@dataclass(frozen=True)
class Scale:
    """The scale of a model's smoothed maps: both ends of the colour map and the region level.

    ``low`` ≤ ``region`` ≤ ``high`` and ``low`` < ``high``, all in ``unit``.
    """

    low: float
    high: float
    region: float
    unit: str = "nats per pixel"
    localizes: bool = True
    """Whether the maps show where anomalies are; if not, no heat is drawn. Not in the manifest's
    entry: it follows from the model's test."""
    expects: bool = True
    """Whether the model expects pixels, so that they are drawn; a model of features does not. Not
    in the manifest's entry either."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return {"low": self.low, "high": self.high, "region": self.region, "unit": self.unit}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scale:
        """Restore a scale from the content of the manifest."""
        low, high, region = (float(content[key]) for key in ("low", "high", "region"))
        return cls(low, high, region, str(content["unit"]))


def fit_scale(maps: Floats, unit: str = "nats per pixel") -> Scale:
    """Fit the scale to the maps (N, H, W) of held-out normal scans, N ≥ 1.

    Over all smoothed pixels, ``low`` is the median and ``region`` the 99.5% quantile, which one
    pixel in 200 of a normal scan exceeds. ``high`` is four times as far from ``low`` as
    ``region``. If the quantile is not above the median, ``region`` is the maximum; if the maximum
    is not above it either, ``region`` is one unit above the median.
    """
    values = np.stack([smoothed(np.asarray(heat, np.float32)) for heat in maps])
    low, region = (float(q) for q in np.quantile(values, (0.5, REGION_QUANTILE)))
    rounding = 1e-5 * abs(low)  # error of a constant map smoothed in float32
    steps = (region - low, float(values.max()) - low)
    step = next((step for step in steps if step > rounding), 1.0)
    return Scale(low, low + step / REGION_COLOUR, low + step, unit)


def smoothed(heat: Floats, sigma: float = SMOOTHING_SIGMA) -> Floats:
    """Smooth the last two axes (…, H, W) by a Gaussian, mirrored at the edges, cut at 4 sigma.

    Constants and totals are preserved; the result has the shape and type of ``heat``.
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

    ``peak`` is the largest smoothed value and ``total`` the sum of the unsmoothed values, both in
    the unit of the map.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    total: float


def regions(
    heat: Floats, scale: Scale, limit: int | None = 10, min_area: int | None = None
) -> tuple[Region, ...]:
    """Find the regions of a map (H, W), largest total first.

    Pixels that touch at an edge or a corner are connected. If the region level is negative, which
    log densities allow, totals are measured from that level; otherwise small regions would come
    first.

    Args:
        heat: The map, not smoothed.
        scale: The model's scale.
        limit: Maximum number of regions; None: all of them.
        min_area: Minimum area of a region, in pixels; None: 4, or 1/2000 of a larger map.
    """
    default_area = _default_area(heat)
    smooth = smoothed(heat)
    ys, xs = np.nonzero(smooth > scale.region)
    found = _measure(heat[ys, xs], smooth[ys, xs], xs, ys)
    min_area = default_area if min_area is None else min_area
    large = [region for region in found if region.area >= min_area]
    floor = min(scale.region, 0.0)
    return tuple(sorted(large, key=lambda region: floor * region.area - region.total)[:limit])


def region_pixels(heat: Floats, scale: Scale) -> NDArray[np.bool_]:
    """Return which pixels (H, W) of a map are in any of its `regions`."""
    inside = smoothed(heat) > scale.region
    ys, xs = np.nonzero(inside)
    _, of, area = np.unique(components(xs, ys), return_inverse=True, return_counts=True)
    inside[ys, xs] = area[of] >= _default_area(heat)
    return inside


def _default_area(heat: Floats) -> int:
    return max(MIN_REGION_AREA, heat.size // MAP_PIXELS_PER_REGION_PIXEL)


def _measure(
    heat: Floats, smooth: Floats, xs: NDArray[np.intp], ys: NDArray[np.intp]
) -> list[Region]:
    """Return the regions of n pixels, given their values and positions (n,) in row-major order."""
    root = components(xs, ys)
    order = np.argsort(root, kind="stable")
    _, starts, area = np.unique(root[order], return_index=True, return_counts=True)
    left, top = (np.minimum.reduceat(axis[order], starts) for axis in (xs, ys))
    right, bottom = (np.maximum.reduceat(axis[order], starts) for axis in (xs, ys))
    peak = np.maximum.reduceat(smooth[order], starts)
    total = np.add.reduceat(heat[order].astype(np.float64), starts)
    columns = (left, top, right - left + 1, bottom - top + 1, area, peak, total)
    return [Region(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def components(xs: NDArray[np.intp], ys: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each pixel the first pixel of its component, in row-major order, (n,).

    Trees of pixels are hooked onto smaller roots and flattened, all in parallel, until no edge
    connects two trees: O(log n) rounds (Shiloach & Vishkin 1982).
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
    """Return the pairs of indices of pixels that touch, each pair once."""
    index = np.full((ys.max(initial=0) + 2, xs.max(initial=0) + 3), -1)
    index[ys, xs + 1] = np.arange(len(xs))
    ahead = ((0, 1), (1, -1), (1, 0), (1, 1))
    other = np.stack([index[ys + down, xs + 1 + right] for down, right in ahead])
    _, here = np.nonzero(other >= 0)
    return here, other[other >= 0]


# ---------------------------------------------------------------- images


def colours(values: Floats) -> Pixels:
    """Colour values (H, W), clipped to [0, 1], from dark blue to yellow; returns (H, W, 3)."""
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
    """Draw three panels: the scan, the model's expectation, and the scan under its heatmap.

    The second is left out if the model expects features and no pixels. Opacity is proportional to
    heat. Regions are outlined and numbered in the order of ``found``. Under the heat, colour scans
    are grey. If the model's maps do not localise, the last panel says so instead.

    Args:
        scan: The scan, (C, H, W) with C 1 or 3, or (H, W), in [0, 1].
        expected: The model's expectation, of the same shape.
        heat: The map (H, W), not smoothed.
        found: Its `regions`.
        scale: The model's scale.
        title: Text above the panels, shortened in the middle if it is too long.
        zoom: Integer enlargement; None: small scans are enlarged to about 256 pixels.
    """
    height, width = heat.shape
    zoom = zoom or _zoom(height, width, MIN_PANEL, MAX_PANEL)
    shown = {"image": scan} | ({"expected by the model": expected} if scale.expects else {})
    panels = [_enlarge(_to_rgb(image), zoom) for image in shown.values()]
    if scale.localizes:
        last, caption = _heated(scan, heat, found, scale, zoom), f"heat, {scale.unit}"
    else:
        last, caption = _stated(NO_LOCALIZATION, panels[0].shape), "no heat"
    captions = (*shown, caption)
    return _page([*map(Image.fromarray, panels), last], captions, title, scale)


def _heated(
    scan: Floats, heat: Floats, found: Sequence[Region], scale: Scale, zoom: int
) -> Image.Image:
    """Draw the scan in grey under its heatmap, with its regions."""
    background = _enlarge(_grey(_to_rgb(scan)), zoom)
    smooth = _enlarge_map(smoothed(heat), zoom)
    blended = _blend(background, smooth, scale)
    heated = Image.fromarray(_outline(blended, smooth, found, scale, zoom))
    _number_regions(heated, found, zoom)
    return heated


def _stated(text: str, shape: tuple[int, ...]) -> Image.Image:
    """Draw a text on an empty panel (H, W, 3), in lines that fit."""
    panel = Image.new("RGB", (shape[1], shape[0]), WHITE)
    lines = textwrap.wrap(text, max(8, int(shape[1] / _font(TEXT).getlength("n"))))
    for i, line in enumerate(lines):
        y = shape[0] // 2 + (i - len(lines) // 2) * _line(TEXT)
        _draw_text(panel, (shape[1] // 2, y), line, TEXT, "mm")
    return panel


def sheet(
    images: Floats,
    captions: Sequence[str] = (),
    columns: int | None = None,
    rows: Sequence[str] = (),
) -> Image.Image:
    """Draw a contact sheet of images, row by row, on white.

    Args:
        images: (N, H, W) or (N, H, W, 3) in [0, 1].
        captions: Empty, or N texts below the images, shortened in the middle if they are too long.
        columns: Number of images in a row; None: N / len(rows), or about a square.
        rows: Empty, or one text for each row, on its left.
    """
    count, height, width = images.shape[:3]
    zoom = _zoom(height, width, MIN_TILE, MAX_TILE)
    columns = columns or max(1, count // len(rows) if rows else math.ceil(math.sqrt(count)))
    left = GAP + max(
        (math.ceil(_font(TEXT).getlength(_to_ascii(r))) + GAP for r in rows), default=0
    )
    step = (width * zoom + GAP, height * zoom + GAP + (_line(SMALL) if captions else 0))
    size = (left + columns * step[0], GAP + math.ceil(count / columns) * step[1])
    page = Image.new("RGB", size, WHITE)
    for i, (image, caption) in enumerate(zip(images, captions or [""] * count, strict=True)):
        at = (left + i % columns * step[0], GAP + i // columns * step[1])
        page.paste(Image.fromarray(_enlarge(_to_bytes(image), zoom)), at)
        _draw_centred(page, caption, (at[0], at[1] + height * zoom), width * zoom, SMALL)
    for i, caption in enumerate(rows):
        _draw_text(page, (GAP, GAP + i * step[1] + height * zoom // 2), caption, TEXT, "lm")
    return page


def png(image: Image.Image) -> bytes:
    """Encode an image as PNG; equal images give equal bytes."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


def to_picture(image: Floats) -> Image.Image:
    """Convert an image (C, H, W) in [0, 1], of one or three channels, to a picture in RGB."""
    return Image.fromarray(_to_rgb(image))


# ---------------------------------------------------------------- panels


def _to_rgb(image: Floats) -> Pixels:
    """Convert (C, H, W) or (H, W) in [0, 1] to (H, W, 3)."""
    return _to_bytes(np.moveaxis(image, 0, -1) if image.ndim == 3 else image)


def _to_bytes(image: Floats) -> Pixels:
    """Convert (H, W), (H, W, 1) or (H, W, 3), clipped to [0, 1], to (H, W, 3)."""
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(levels.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))


def _grey(image: Pixels) -> Pixels:
    return _to_bytes(np.asarray(Image.fromarray(image).convert("L")) / 255)


def _zoom(height: int, width: int, target: int, limit: int) -> int:
    """Return the factor that enlarges the short side to ``target``, the long one to ``limit``."""
    return max(1, min(math.ceil(target / min(height, width)), limit // max(height, width)))


def _enlarge(image: Pixels, zoom: int) -> Pixels:
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _enlarge_map(smooth: Floats, zoom: int) -> Floats:
    size = (smooth.shape[1] * zoom, smooth.shape[0] * zoom)
    image = Image.fromarray(smooth.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)


def _blend(background: Pixels, smooth: Floats, scale: Scale) -> Pixels:
    """Blend pixels (H, W, 3) with the colours of a smoothed map (H, W)."""
    value = np.clip((smooth - scale.low) / (scale.high - scale.low), 0, 1)
    opacity = MAX_OPACITY * value[..., None]
    blended: Floats = background * (1 - opacity) + colours(value) * opacity
    return np.rint(blended).astype(np.uint8)


def _outline(
    image: Pixels, smooth: Floats, found: Sequence[Region], scale: Scale, zoom: int
) -> Pixels:
    """Draw a white line with a black border along the region level."""
    inside = np.zeros(smooth.shape, np.bool_)
    for region in found:
        box = np.s_[region.y * zoom : (region.y + region.height) * zoom,
                    region.x * zoom : (region.x + region.width) * zoom]  # fmt: skip
        inside[box] = smooth[box] > scale.region
    line = np.pad(inside, 1)
    result = image.copy()
    result[_border(~line)[1:-1, 1:-1]] = WHITE
    result[_border(line)[1:-1, 1:-1]] = BLACK
    return result


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels outside the mask (H, W) that touch it at an edge."""
    near = np.zeros_like(mask)
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    return near & ~mask


def _number_regions(image: Image.Image, found: Sequence[Region], zoom: int) -> None:
    """Draw the rank of each region on its right, within the image."""
    draw = ImageDraw.Draw(image)
    for rank, region in enumerate(found, 1):
        rightmost = image.width - 3 - math.ceil(_font(TEXT).getlength(str(rank)))
        x = min((region.x + region.width) * zoom + 4, rightmost)
        y = round((region.y + region.height / 2) * zoom)
        y = min(max(y, TEXT // 2 + 2), image.height - TEXT // 2 - 2)
        draw.text((x, y), str(rank), WHITE, _font(TEXT), "lm", stroke_width=2, stroke_fill=BLACK)


def _page(
    panels: Sequence[Image.Image], captions: Sequence[str], title: str, scale: Scale
) -> Image.Image:
    """Arrange the panels side by side, with the colour bar on the right and the title above."""
    width, height = panels[0].size
    top = GAP + (_line(TITLE) if title else 0)
    bar = BAR + 6 + math.ceil(max(_font(TEXT).getlength(label) for _, label in _ticks(scale)))
    size = (GAP + len(panels) * (width + GAP) + bar + GAP, top + height + _line(TEXT) + GAP)
    page = Image.new("RGB", size, WHITE)
    for i, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        page.paste(panel, (GAP + i * (width + GAP), top))
        _draw_centred(page, caption, (GAP + i * (width + GAP), top + height), width, TEXT)
    if scale.localizes:
        _draw_colour_bar(page, scale, (page.width - GAP - bar, top), height)
    _draw_text(page, (GAP, GAP), _shorten(title, page.width - 2 * GAP, TITLE), TITLE, "la")
    return page


def _draw_colour_bar(page: Image.Image, scale: Scale, at: tuple[int, int], height: int) -> None:
    left, top = at
    values = np.linspace(1, 0, height)[:, None].repeat(BAR, 1)
    page.paste(Image.fromarray(colours(values)), at)
    for position, label in _ticks(scale):
        y = top + round((1 - position) * (height - 1))
        ImageDraw.Draw(page).line((left, y, left + BAR + 2, y), BLACK)
        y = min(max(y, top + TEXT // 2), top + height - TEXT // 2)
        _draw_text(page, (left + BAR + 6, y), label, TEXT, "lm")


def _ticks(scale: Scale) -> tuple[tuple[float, str], ...]:
    """Return positions on the colour bar, from 0 to 1, and their labels."""
    region = (scale.region - scale.low) / (scale.high - scale.low)
    return (
        (0.0, f"<{scale.low:.3g}"),
        (region, f"{scale.region:.3g} region"),
        (1.0, f">{scale.high:.3g}"),
    )


# ---------------------------------------------------------------- text


def _draw_centred(page: Image.Image, text: str, at: tuple[int, int], width: int, size: int) -> None:
    """Draw one line of text, centred below an image of this width."""
    middle = (at[0] + width // 2, at[1] + _line(size) // 2 + 1)
    _draw_text(page, middle, _shorten(text, width - 2, size), size, "mm")


def _draw_text(page: Image.Image, at: tuple[int, int], text: str, size: int, anchor: str) -> None:
    ImageDraw.Draw(page).text(at, _to_ascii(text), BLACK, _font(size), anchor)


def _shorten(text: str, width: int, size: int) -> str:
    """Cut text in the middle to fit the width: file names often differ at their ends."""
    font, text = _font(size), _to_ascii(text)
    short, kept = text, len(text)
    while kept and (length := font.getlength(short)) > width:
        kept = min(kept - 1, int(kept * width / length))
        short = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
    return short


def _to_ascii(text: str) -> str:
    """Return text on one line, in characters that the font has."""
    for sign, replacement in REPLACEMENTS.items():
        text = text.replace(sign, replacement)
    parts = unicodedata.normalize("NFKD", text)
    kept = (c for c in parts if not unicodedata.combining(c))
    return "".join(c if c == "…" or " " <= c <= "~" else "?" for c in kept)


def _line(size: int) -> int:
    """Return the height of a line of text, in pixels."""
    return size + 7


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def _table() -> Pixels:
    """Interpolate the colour map (256, 3) between the anchors."""
    at, anchors = np.linspace(0, 1, len(ANCHORS)), np.array(ANCHORS)
    steps = np.linspace(0, 1, 256)
    return np.stack([np.rint(np.interp(steps, at, c)) for c in anchors.T], -1).astype(np.uint8)
