"""Encode JPEG Lossless pixel by pixel, as the standard defines it (ITU-T T.81 annex H)."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def predicted(samples: NDArray[np.int64], row: int, column: int, selection: int, start: int) -> int:
    """Predict a sample from its neighbours (T.81 H.1.1 and table H.1)."""
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
    """Return the code of one of the 17 categories, a number of ``bits`` bits (at least 5)."""
    return f"{category:0{bits}b}"


def symbol(difference: int, bits: int) -> str:
    """Return a difference as a code and its extra bits (T.81 H.1.2.2 and F.1.2.1.1)."""
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
    """Encode samples (H, W, C).

    Args:
        samples: the samples, of at most ``precision`` bits.
        precision: number of bits in a sample.
        selection: predictor, 1 to 7.
        shift: point transform: number of low bits that are dropped.
        restart: number of lines between two restart markers; 0 for none.
        interleaved: whether all components share one scan.
        bits: lengths of the codes in each component's table.
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
