"""JPEG Lossless decodes to what a plain encoder, written from the standard, put in."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from anomaly_vae.images import jpeg_lossless
from anomaly_vae.images.jpeg_lossless import samples_of, segments


def predicted(samples: NDArray[np.int64], row: int, column: int, selection: int, start: int) -> int:
    """ITU-T T.81, H.1.1 and table H.1."""
    if row == 0:
        return start if column == 0 else int(samples[0, column - 1])
    above = int(samples[row - 1, column])
    if column == 0:
        return above
    left, corner = int(samples[row, column - 1]), int(samples[row - 1, column - 1])
    return {
        1: left, 2: above, 3: corner, 4: left + above - corner,
        5: left + ((above - corner) >> 1), 6: above + ((left - corner) >> 1),
        7: (left + above) >> 1,
    }[selection]  # fmt: skip


def code_of(category: int, bits: int) -> str:
    """All 17 categories, as codes of so many bits (at least 5) in their order."""
    return f"{category:0{bits}b}"


def symbol(difference: int, bits: int) -> str:
    """One difference as a code and its extra bits (T.81 H.1.2.2 and F.1.2.1.1)."""
    difference = (difference + (1 << 15) - 1) % (1 << 16) - (1 << 15) + 1
    category = abs(difference).bit_length()
    extra = difference if difference > 0 else difference + (1 << category) - 1
    plain = category in {0, 16}
    return code_of(category, bits) + ("" if plain else f"{extra:0{category}b}")


def packed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8) if bits else b""
    return content.replace(b"\xff", b"\xff\0")


def segment(code: int, body: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(body) + 2) + body


def table(number: int, bits: int) -> bytes:
    counts = [17 if length == bits else 0 for length in range(1, 17)]
    return bytes((number, *counts, *range(17)))


def encoded(
    samples: NDArray[np.integer],
    precision: int = 16,
    selection: int = 1,
    shift: int = 0,
    restart: int = 0,
    interleaved: bool = True,
    bits: Sequence[int] = (5, 7, 5),
) -> bytes:
    """A stream of samples (H, W, C), written pixel by pixel.

    Args:
        restart: a restart marker every so many lines; 0 for none.
        bits: the lengths of the codes of each component's table.
    """
    rows, columns, count = samples.shape
    shifted = samples.astype(np.int64) >> shift
    start = 1 << (precision - shift - 1)
    names = [*range(1, count + 1)]
    frame = struct.pack(">BHHB", precision, rows, columns, count)
    stream = b"\xff\xd8" + segment(0xE0, b"JFIF\0\xff\xda")
    stream += segment(0xC4, b"".join(table(n, bits[n]) for n in range(count)))
    stream += segment(0xC3, frame + b"".join(bytes((name, 0x11, 0)) for name in names))
    stream += segment(0xDD, struct.pack(">H", restart * columns)) if restart else b""
    for scan in [range(count)] if interleaved else [[c] for c in range(count)]:
        head = b"".join(bytes((names[c], c << 4)) for c in scan)
        stream += segment(0xDA, bytes((len(scan),)) + head + bytes((selection, 0, shift)))
        for n, top in enumerate(range(0, rows, restart or rows)):
            part = shifted[top : top + (restart or rows)]
            stream += bytes((0xFF, 0xD0 + (n - 1) % 8)) if n else b""
            stream += packed(
                "".join(
                    symbol(
                        int(part[i, j, c]) - predicted(part[..., c], i, j, selection, start),
                        bits[c],
                    )
                    for i in range(len(part))
                    for j in range(columns)
                    for c in scan
                )
            )
    return stream + b"\xff\xd9\0"


some_samples = arrays(
    np.uint16, array_shapes(min_dims=3, max_dims=3, max_side=5).filter(lambda s: s[2] < 4)
)


@given(some_samples, st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_samples_come_back_as_they_were(samples, selection, restart, interleaved):
    stream = encoded(samples, selection=selection, restart=restart, interleaved=interleaved)
    decoded, precision = samples_of(stream)
    assert precision == 16
    np.testing.assert_array_equal(decoded, samples)


@pytest.mark.parametrize("selection", range(1, 8))
def test_a_larger_image_of_every_predictor_comes_back(selection):
    chance = np.random.default_rng(selection)
    smooth = np.cumsum(np.cumsum(chance.integers(-2, 3, (40, 33, 1)), 0), 1) % 4096
    decoded, precision = samples_of(encoded(smooth, 12, selection))
    assert precision == 12
    np.testing.assert_array_equal(decoded, smooth)


def test_extremes_of_sixteen_bits_wrap_around():
    samples = np.array([[[0], [65535], [0]], [[32768], [0], [32767]]], np.uint16)
    np.testing.assert_array_equal(samples_of(encoded(samples))[0], samples)


def test_streams_longer_than_a_chunk_come_back(monkeypatch):
    monkeypatch.setattr(jpeg_lossless, "CHUNK", 7)
    samples = np.random.default_rng(0).integers(0, 65536, (9, 5, 3))
    np.testing.assert_array_equal(samples_of(encoded(samples))[0], samples)


@pytest.mark.parametrize("precision", [2, 8, 12])
def test_a_point_transform_shifts_the_samples(precision):
    samples = np.random.default_rng(0).integers(0, 1 << precision, (6, 5, 1))
    decoded, _ = samples_of(encoded(samples, precision, shift=1))
    np.testing.assert_array_equal(decoded, samples >> 1 << 1)


def test_segments_are_told_apart_from_coded_data():
    samples = np.full((3, 3, 1), 7, np.uint16)
    found = [(code, len(coded) > 0) for code, _, coded in segments(encoded(samples))]
    assert found == [(0xE0, False), (0xC4, False), (0xC3, False), (0xDA, True)]


SAMPLES = np.random.default_rng(1).integers(0, 4096, (8, 8, 1))
STREAM = encoded(SAMPLES, 12)
WIDE = encoded(np.tile(SAMPLES, (4, 4, 1)), 12)
DAMAGED = {
    "nothing": b"",
    "no scan": STREAM[: STREAM.rindex(b"\xff\xda")],
    "half a scan": STREAM[:-60],
    "a byte too few": STREAM[:-4] + b"\xff\xd9",
    "a code in no table": WIDE[:-300] + b"\xff\0" * 4 + WIDE[-292:],
    "half a line of restarts": encoded(SAMPLES, 12, restart=2).replace(
        struct.pack(">HHH", 0xFFDD, 4, 16), struct.pack(">HHH", 0xFFDD, 4, 12)
    ),
    "a restart too few": encoded(SAMPLES, 12, restart=2).replace(b"\xff\xd2", b"\x12\x34"),
    "a component twice": STREAM[:-3] + STREAM[STREAM.rindex(b"\xff\xda") :],
    "segments without end": STREAM[:2] + segment(0xC4, table(0, 5)) * 600 + STREAM[2:],
    "tables without end": STREAM[:2] + segment(0xC4, table(0, 5) * 9) + STREAM[2:],
    "two frames": STREAM.replace(b"\xff\xc4", segment(0xC3, bytes(9)) + b"\xff\xc4", 1),
    "another process": STREAM.replace(b"\xff\xc3", b"\xff\xc1"),
    "subsampled": STREAM.replace(b"\1\x11\0", b"\1\x21\0"),
    "no table": STREAM.replace(b"\xff\xc4", b"\xff\xe4"),
    "a table of too many codes": STREAM.replace(table(0, 5)[:17], b"\0\x11" + bytes(15)),
    "a category of 17": STREAM.replace(bytes(range(17)), bytes(range(1, 18))),
    "an unknown predictor": STREAM.replace(b"\1\1\0\1\0\0", b"\1\1\0\x08\0\0"),
    "no component": STREAM.replace(b"\1\1\0\1\0\0", b"\0\1\0\1\0\0"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_stream_is_refused(name):
    assert DAMAGED[name] != STREAM
    with pytest.raises((ValueError, IndexError, KeyError)):
        samples_of(DAMAGED[name])


@given(st.data())
def test_any_damage_ends_in_samples_or_a_plain_error(data):
    stream = bytearray(STREAM)
    for _ in range(data.draw(st.integers(1, 5))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded, _ = samples_of(bytes(stream))
    except (ValueError, IndexError, KeyError):
        return
    assert decoded.dtype == np.int64
