"""Decode TIFF, whose pages are frames, except reduced copies of another page.

tifffile reads the structure of the file and those pages that Pillow refuses or misreads: signed and
floating-point numbers, 16 bits in other byte orders or planes, and big-endian BigTIFF. Pillow reads
the others, so that JPEG, fax and CMYK pages need no second implementation. Values without a fixed
range (float, signed or more than 16 bits) are mapped by the window of the options, or by
percentiles, and their alpha is ignored. Only codecs that survive damaged input are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffFileError, TiffPage

from anomaly_vae.errors import DataError
from anomaly_vae.images.decoders.netpbm import blended
from anomaly_vae.images.decoders.raster import (
    ORIENTATIONS,
    open_with_pillow,
    pillow_pixels,
    windowed,
)
from anomaly_vae.images.pixels import MAX_PIXEL, TRUNCATED, DecodeOptions, Frames, Pixels

LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
"""Compressions of pages that tifffile may decode: none, LZW, Deflate, PackBits, LZMA, Zstandard."""
PILLOW = LOSSLESS | {2, 3, 4, 6, 7}
"""Compressions of pages that Pillow may decode: also three kinds of fax, and two of JPEG."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
"""Photometric interpretations; tifffile may decode all but the last."""
UNSIGNED = {1, 4}
"""Sample formats of unsigned integers; 4 is undefined."""
PREMULTIPLIED, ALPHA = 1, 2
"""Kinds of alpha: the colours are multiplied by it already, or not."""
ORIENTATION = 274
"""TIFF tag."""


def open_tiff(content: bytes, options: DecodeOptions) -> Frames:
    """Open a TIFF or BigTIFF file.

    Raises:
        DataError: The file exceeds a limit or is truncated.
        Exception: tifffile raises other errors on damaged bytes.
    """
    try:
        file = TiffFile(BytesIO(content))
    except TiffFileError:
        raise DataError(TRUNCATED) from None
    tiff = Tiff(content, _pages(file, options), options)
    return Frames(tuple(tiff.pages), tiff.decode)


def _pages(file: TiffFile, options: DecodeOptions) -> dict[int, TiffPage]:
    """Return the pages by number, counting to the limit only: empty pages cost few bytes."""
    pages: dict[int, TiffPage] = {}
    offsets: set[int] = set()
    for number in range(options.max_frames + 1):
        try:
            page = file.pages[number]
        except IndexError:
            break
        if page.offset in offsets:  # the last page leads back to an earlier one
            break
        offsets.add(page.offset)
        if isinstance(page, TiffPage) and not (number and page.is_reduced):
            pages[number] = page
    else:
        options.check_frames(options.max_frames + 1)
    options.check_frames(len(pages))
    return pages


@dataclass(frozen=True)
class Tiff:
    """The content of a file and its pages by number."""

    content: bytes
    pages: dict[int, TiffPage]
    options: DecodeOptions

    def decode(self, number: int) -> Pixels:
        """Return the pixels of a page, (H, W) or (H, W, 3).

        Raises:
            DataError: The page exceeds a limit, is truncated, or is of a kind that is not read.
        """
        page = self.pages[number]
        self.options.check_size(page.imagelength, page.imagewidth)
        if page.is_tiled:
            self.options.check_size(page.tilelength, page.tilewidth)
        if page.compression not in PILLOW:
            name = _name(COMPRESSION, page.compression)
            raise DataError(f"its compression is {name}, which is not read; save it with Deflate")
        if _suits_pillow(page):
            self._pillow.seek(number)
            return pillow_pixels(self._pillow)  # Pillow has applied its orientation
        if _end(page) > len(self.content):
            raise DataError(TRUNCATED)
        pixels = _pixels(page, self.options)
        upright = ORIENTATIONS.get(page.tags.valueof(ORIENTATION, 1))
        return upright(pixels) if upright else pixels

    @cached_property
    def _pillow(self) -> Image.Image:
        return open_with_pillow(self.content, self.options, "TIFF")


def _name(kinds: type[COMPRESSION] | type[PHOTOMETRIC], value: int) -> str:
    return kinds(value).name if value in {*kinds} else f"number {value}"


def _end(page: TiffPage) -> int:
    """Return where the data of a page end; writers often declare too many bytes."""
    segments = zip(page.dataoffsets, page.databytecounts, strict=False)
    return max((offset + min(count, page.nbytes) for offset, count in segments), default=0)


def _suits_pillow(page: TiffPage) -> bool:
    """Return whether Pillow reads a page as it is meant."""
    big_endian_bigtiff = page.parent.is_bigtiff and page.parent.byteorder == ">"
    if big_endian_bigtiff or page.sampleformat not in UNSIGNED or page.imagedepth > 1:
        return False
    if page.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO} and page.samplesperpixel > 2:
        return False  # several channels, which are refused by name
    colours = page.photometric in {RGB, CMYK} and page.planarconfig == 1
    return page.bitspersample in {1, 2, 4, 8} or (page.bitspersample == 16 and colours)


def _pixels(page: TiffPage, options: DecodeOptions) -> Pixels:
    """Decode a page with tifffile and map its values to pixels."""
    kind = page.photometric
    if kind not in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE} or page.compression not in LOSSLESS:
        colours = f"{_name(PHOTOMETRIC, kind)} in {page.bitspersample} bits"
        raise DataError(f"its pixels are {colours}, which are not read; save them as 8 bits")
    if page.dtype is None or page.dtype.kind not in "uif":
        raise DataError("its pixels are complex numbers, which are not read; save them as floats")
    channels = page.samplesperpixel
    if page.imagedepth > 1:
        raise DataError(f"its pages are volumes of {page.imagedepth} slices; save a page for each")
    if not _has_known_channels(page):
        raise DataError(f"its pages have {channels} channels; save a page for each")
    values = page.asarray(maxworkers=1)
    values = np.moveaxis(values, 0, -1) if channels > 1 and page.planarconfig == 2 else values
    values = values.reshape(page.imagelength, page.imagewidth, channels)
    pixels = _mapped(values, page, options)
    return MAX_PIXEL - pixels if kind == WHITE_IS_ZERO else pixels


def _has_known_channels(page: TiffPage) -> bool:
    """Return whether a page has one channel or three, and at most alpha beside."""
    extra = page.extrasamples
    colours = page.samplesperpixel - len(extra)
    if page.photometric == RGB:
        return colours == 3 and len(extra) < 2
    return colours == 1 and extra in {(), (PREMULTIPLIED,), (ALPHA,)}


def _mapped(layers: NDArray[Any], page: TiffPage, options: DecodeOptions) -> Pixels:
    """Map values (H, W, C) to pixels, (H, W) or (H, W, 3)."""
    colours = page.samplesperpixel - len(page.extrasamples)
    if page.photometric == PALETTE:
        colours_of_index = (np.asarray(page.colormap, np.uint16) >> 8) * 257
        return np.moveaxis(colours_of_index[:, layers[..., 0]], 0, -1).astype(np.uint16)
    if page.sampleformat not in UNSIGNED or page.bitspersample > 16:
        plain = layers[..., 0] if colours == 1 else layers[..., :colours]
        return windowed(plain.astype(np.float64), options)
    kept = layers[..., : colours + (page.extrasamples[:1] == (ALPHA,))]
    if colours == 3 and page.bitspersample == 16:  # as Pillow reads them if interleaved
        return blended(kept >> 8, 255)
    return blended(kept, (1 << page.bitspersample) - 1)
