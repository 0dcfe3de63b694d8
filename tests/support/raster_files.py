"""Write small PNG, JPEG and TIFF files, and decode those of one image."""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodedImage, DecodeOptions

OPTIONS = DecodeOptions()


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 17), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 17, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17), np.uint16)


def saved(image: Image.Image | NDArray[Any], kind: str, **how: Any) -> bytes:
    """Encode an image with Pillow."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **how)
    return file.getvalue()


def only(content: bytes, options: DecodeOptions = OPTIONS) -> NDArray[np.uint16]:
    """Return the pixels of a file with one image."""
    [picture] = read_bytes(content, options)
    assert isinstance(picture, DecodedImage), picture
    assert picture.frame == 0
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.flags.c_contiguous
    return picture.pixels


def tiff(pixels: NDArray[Any], order: str = "<", pages: int = 1, **tags: int) -> bytes:
    """Make an uncompressed grey TIFF with the given tags: `t262=0` sets tag 262."""
    height, width = pixels.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    standard = {
        256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1,
        278: height, 279: len(data), 339: kinds[pixels.dtype.kind],
    }  # fmt: skip
    entries = sorted((standard | {int(k[1:]): v for k, v in tags.items()}).items())
    start = 8 + len(data)
    directory = struct.pack(order + "H", len(entries))
    directory += b"".join(struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in entries)
    chain = b""
    for page in range(pages):
        place = start + (page + 1) * (len(directory) + 4) if page + 1 < pages else 0
        chain += directory + struct.pack(order + "I", place)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + data + chain
