"""Decode PBM, PGM, PPM and PAM (netpbm.sourceforge.net/doc/pnm.html), which have fixed ranges.

Pillow decodes most of them value by value in Python, which takes minutes for a large image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.images.pixels import TRUNCATED, DecodeOptions, Frames, Pixels, stretch

SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
"""White space and comments between the numbers of a header."""
HEADER = re.compile(rb"P([1-6])" + SPACE + rb"(\d{1,9})" + SPACE + rb"(\d{1,9})")
MAXIMUM = re.compile(SPACE + rb"(\d{1,9})")
COMMENT = re.compile(rb"#[^\r\n]*")
PAM_HEADER = re.compile(rb"P7\s(.{0,4096}?)ENDHDR\n", re.DOTALL)
PAM_LINE = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})\s*$", re.MULTILINE)
PLAIN = 3
"""Largest kind whose values are decimal text; 4 to 6 are the same images in binary."""


@dataclass(frozen=True)
class Header:
    """The size of an image, its largest value, and where and how its values are stored."""

    height: int
    width: int
    channels: int
    maximum: int
    start: int
    plain: bool = False
    bits: bool = False


def open_netpbm(content: bytes, options: DecodeOptions) -> Frames:
    """Open a file of one image. Values are scaled to the full range; alpha is blended with black.

    Raises:
        DataError: The file exceeds a limit, is truncated, or its header is invalid.
    """
    header = _pam_header(content) if content.startswith(b"P7") else _pnm_header(content)
    options.check_size(header.height, header.width)
    if not (0 < header.maximum < 1 << 16 and 1 <= header.channels <= 4):
        raise DataError("its header is invalid; export it again")
    return Frames(range(1), partial(_pixels, content, header))


def _pnm_header(content: bytes) -> Header:
    found = HEADER.match(content)
    if not found:
        raise DataError("its header is invalid; export it again")
    kind, width, height = map(int, found.groups())
    bits, plain = kind in {1, 4}, kind <= PLAIN
    limit = None if bits else MAXIMUM.match(content, found.end())
    if not bits and limit is None:
        raise DataError("its header is invalid; export it again")
    end, maximum = (limit.end(), int(limit[1])) if limit else (found.end(), 1)
    return Header(height, width, 3 if kind in {3, 6} else 1, maximum, end + 1, plain, bits)


def _pam_header(content: bytes) -> Header:
    found = PAM_HEADER.match(content)
    lines = {name: int(number) for name, number in PAM_LINE.findall(found[1] if found else b"")}
    if not found or len(lines) < 4:
        raise DataError("its header is invalid; export it again")
    size = lines[b"HEIGHT"], lines[b"WIDTH"], lines[b"DEPTH"]
    return Header(*size, lines[b"MAXVAL"], found.end())


def _pixels(content: bytes, header: Header, _: int) -> Pixels:
    values = _plain(content, header) if header.plain else _binary(content, header)
    shape = header.height, header.width, header.channels
    if values.size < np.prod(shape):
        raise DataError(TRUNCATED)
    levels = values[: np.prod(shape)].reshape(shape)
    return blended(1 - levels if header.bits else levels, header.maximum)


def _plain(content: bytes, header: Header) -> NDArray[Any]:
    text = COMMENT.sub(b"", content[header.start - 1 :])
    if header.bits:  # digits need no spaces between them
        digits = np.frombuffer(text, np.uint8) - ord("0")
        return digits[digits < 2]
    return np.fromstring(text, np.int64, sep=" ")


def _binary(content: bytes, header: Header) -> NDArray[Any]:
    if header.bits:
        row = (header.width + 7) // 8
        rows = _numbers(content, "u1", header, header.height * row).reshape(-1, row)
        return np.unpackbits(rows, axis=1)[:, : header.width].ravel()
    count = header.height * header.width * header.channels
    return _numbers(content, "u1" if header.maximum < 256 else ">u2", header, count)


def _numbers(content: bytes, kind: str, header: Header, count: int) -> NDArray[Any]:
    if header.start + count * np.dtype(kind).itemsize > len(content):
        raise DataError(TRUNCATED)
    return np.frombuffer(content, kind, count, header.start)


def blended(levels: NDArray[Any], maximum: int) -> Pixels:
    """Scale levels (H, W, C) of 0 to ``maximum`` to (H, W) or (H, W, 3), blended with black.

    C is 1 (grey) or 3 (RGB), and one more with alpha as the last channel.
    """
    channels = levels.shape[-1]
    colours = levels[..., : channels - 1 + channels % 2].astype(np.float64)
    if channels % 2 == 0:
        colours = colours * levels[..., -1:] / maximum
    pixels = stretch(colours, (0, maximum))
    return pixels[..., 0] if channels < 3 else pixels
