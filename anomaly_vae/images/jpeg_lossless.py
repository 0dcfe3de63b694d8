"""JPEG Lossless with Huffman codes → samples (ITU-T T.81 annex H, process 14), in numpy.

Much of what CT and MR archives compress is in it. Pillow reads no more than 8 bits of it, and GDCM
ends the process on some damaged streams. Where symbols begin is found one by one; all else is
done for many at a time: some millions of samples a second.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

CHUNK = 1 << 20
MAX_SEGMENTS = 500
MAX_TABLES = 4 * (17 + 17)
"""Bytes of four Huffman tables with all 17 categories in each."""
START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Markers of frame headers, JPEG-LS included."""
LOSSLESS, HUFFMAN, SCAN, RESTART_INTERVAL, END = 0xC3, 0xC4, 0xDA, 0xDD, 0xD9
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def segments(stream: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Code, body and what follows of each marker segment of a JPEG stream (ITU-T T.81 annex B).

    What follows is empty, except for the coded data of a scan.
    """
    place = 2
    while (found := MARKER.search(stream, place)) and stream[found.start() + 1] != END:
        place = found.end()
        stop = place + int.from_bytes(stream[place : place + 2])
        following = MARKER.search(stream, stop)
        coded = stream[stop : following.start() if following else len(stream)]
        yield stream[place - 1], stream[place + 2 : stop], coded
        place = max(stop, place + 2)


@dataclass(frozen=True)
class Table:
    """A Huffman table: what any 16 bits begin with.

    ``length`` is that of the code, 0 for none, and ``category`` how many bits follow it.
    """

    length: NDArray[np.uint8]
    category: NDArray[np.uint8]


def samples_of(frame: bytes) -> tuple[Integers, int]:
    """Samples (H, W, C) of a JPEG Lossless stream, and their precision in bits.

    Raises:
        ValueError, IndexError, KeyError: the stream is damaged or of another process.
    """
    tables: dict[int, Table] = {}
    planes: dict[int, Integers] = {}
    header, interval = b"", 0
    for number, (code, body, coded) in enumerate(segments(frame)):
        if number > MAX_SEGMENTS:
            raise ValueError("more segments than an image has")
        if code == HUFFMAN:
            tables |= _tables(body)
        elif code == RESTART_INTERVAL:
            interval = int.from_bytes(body[:2])
        elif code == LOSSLESS and not header and _is_plain(body):
            header = body
        elif code == SCAN:
            scan = _scan(coded, body, header, tables, interval)
            if planes.keys() & scan.keys():
                raise ValueError("a component that comes twice")
            planes |= scan
        elif code in START_OF_FRAME:
            raise ValueError("another process, or subsampled components")
    names = header[6::3]
    return np.stack([planes[name] for name in names], -1), header[0]


def _is_plain(header: bytes) -> bool:
    """Whether a frame has 1 to 4 components, each with a name of its own and of full size."""
    names, sizes = header[6::3], header[7::3]
    return 0 < header[5] == len(set(names)) == len(sizes) <= 4 and set(sizes) == {0x11}


def _tables(body: bytes) -> dict[int, Table]:
    """The Huffman tables of a DHT segment by their number (ITU-T T.81 B.2.4.2 and annex C)."""
    if len(body) > MAX_TABLES:
        raise ValueError("more Huffman tables than four")
    tables = {}
    while body:
        counts = np.frombuffer(body, np.uint8, 16, 1)
        categories = np.frombuffer(body, np.uint8, int(counts.sum()), 17)
        lengths = np.repeat(np.arange(1, 17, dtype=np.uint8), counts)
        spans = 1 << (16 - lengths.astype(np.int64))
        rest = (1 << 16) - int(spans.sum())
        if rest < 0 or (categories > 16).any():
            raise ValueError("an impossible Huffman table")
        tables[body[0]] = Table(
            np.append(np.repeat(lengths, spans), np.zeros(rest, np.uint8)),
            np.append(np.repeat(categories, spans), np.zeros(rest, np.uint8)),
        )
        body = body[17 + len(categories) :]
    return tables


def _scan(
    coded: bytes, body: bytes, header: bytes, tables: dict[int, Table], interval: int
) -> dict[int, Integers]:
    """The components of one scan by their names, each (H, W)."""
    count = body[0]
    mine = [tables[selector >> 4] for selector in body[2 : 2 + 2 * count : 2]]
    selection, shift = body[1 + 2 * count], body[3 + 2 * count] & 15
    rows, columns = int.from_bytes(header[1:3]), int.from_bytes(header[3:5])
    start = 1 << (header[0] - shift - 1)
    step = interval // columns if interval else rows
    if (interval and interval % columns) or not 0 < count <= header[5]:
        raise ValueError("restarts within a line, or an impossible number of components")
    parts: list[Integers] = []
    for top, piece in zip(range(0, rows, step), RESTART.split(coded), strict=False):
        shape = (min(step, rows - top), columns, count)
        differences = _differences(piece.replace(b"\xff\x00", b"\xff"), shape, mine)
        parts.append(np.stack([_undo(d, selection, start) for d in differences], -1))
    planes = np.concatenate(parts) << shift
    if len(planes) != rows:
        raise ValueError("missing lines")
    return {body[1 + 2 * c]: planes[..., c] for c in range(count)}


def _differences(
    coded: bytes, shape: tuple[int, int, int], tables: Sequence[Table]
) -> Iterator[Integers]:
    """Differences (H, W) of each component between samples and predictions (T.81 H.1.2.2)."""
    rows, columns, count = shape
    places = np.frombuffer(_places(coded, rows * columns, tables), np.int64)
    for component, table in enumerate(tables):
        own = places[component::count]
        parts = [_values(coded, own[i : i + CHUNK], table) for i in range(0, len(own), CHUNK)]
        yield np.concatenate(parts).reshape(rows, columns)


def _places(coded: bytes, count: int, tables: Sequence[Table]) -> array[int]:
    """The bit at which each symbol begins: every table's turn, ``count`` times."""
    steps = {id(table): _steps(coded, table) for table in tables}
    turn = [steps[id(table)] for table in tables]
    places, place = array("q"), 0
    for _ in range(count):
        for step in turn:
            places.append(place)
            place += step[place]
    if place > 8 * len(coded):
        raise ValueError("missing samples")
    return places


def _steps(coded: bytes, table: Table) -> bytes:
    """How many bits a symbol would take that began at each bit; a byte each, 255 for none."""
    steps = np.where(table.length, table.length + table.category % 16, 255).astype(np.uint8)
    padded = np.frombuffer(coded + bytes(2), np.uint8)
    return b"".join(
        steps[_windows(padded[i : i + CHUNK + 2])].tobytes() for i in range(0, len(coded), CHUNK)
    )


def _windows(coded: NDArray[np.uint8]) -> Integers:
    """The 16 bits that begin at each bit, (N − 2, 8) for N bytes."""
    wide = coded.astype(np.int64)
    three = (wide[:-2] << 16) | (wide[1:-1] << 8) | wide[2:]
    windows: Integers = (three[:, None] >> np.arange(8, 0, -1)) & 0xFFFF
    return windows


def _values(coded: bytes, places: Integers, table: Table) -> Integers:
    """The difference that each symbol says (T.81 F.1.2.1.1 and H.1.2.2)."""
    padded = np.frombuffer(coded + bytes(5), np.uint8)
    first = places >> 3
    five = sum(padded[first + i].astype(np.int64) << 8 * (4 - i) for i in range(5))
    shift = places & 7
    window = (five >> (24 - shift)) & 0xFFFF
    length, category = table.length[window].astype(np.int64), table.category[window]
    if not length.all():
        raise ValueError("a code that is in no Huffman table")
    bits = (category % 16).astype(np.int64)
    extra = (five >> (40 - shift - length - bits)) & ((1 << bits) - 1)
    values = np.where(extra < (1 << bits) >> 1, extra - (1 << bits) + 1, extra)
    chosen: Integers = np.where(category == 16, 1 << 15, values)
    return chosen


def _undo(differences: Integers, selection: int, start: int) -> Integers:
    """Samples (H, W) of differences (H, W) from their predictions (T.81 H.1.1 and table H.1)."""
    rows = np.empty_like(differences)
    rows[0] = (np.cumsum(differences[0]) + start) & 0xFFFF
    for row in range(1, len(rows)):
        rows[row] = PREDICTORS[selection](rows[row - 1], differences[row]) & 0xFFFF
    return rows


def _halved_gradient(above: Integers, difference: Integers) -> Integers:
    slope = np.append(0, np.diff(above) >> 1)
    line: Integers = above[0] + np.cumsum(difference + slope)
    return line


def _along_the_line(
    predict: Callable[[int, int, int], int],
) -> Callable[[Integers, Integers], Integers]:
    """A line whose predictions need the sample to the left, rounded: pixel by pixel."""

    def line(above: Integers, difference: Integers) -> Integers:
        left = corner = int(above[0])
        samples = [left := (left + int(difference[0])) & 0xFFFF]
        for up, change in zip(above[1:].tolist(), difference[1:].tolist(), strict=True):
            samples.append(left := (predict(left, up, corner) + change) & 0xFFFF)
            corner = up
        return np.array(samples, np.int64)

    return line


PREDICTORS: dict[int, Callable[[Integers, Integers], Any]] = {
    1: lambda above, difference: above[0] + np.cumsum(difference),
    2: lambda above, difference: above + difference,
    3: lambda above, difference: np.append(above[:1], above[:-1]) + difference,
    4: lambda above, difference: above + np.cumsum(difference),
    5: _halved_gradient,
    6: _along_the_line(lambda left, up, corner: up + ((left - corner) >> 1)),
    7: _along_the_line(lambda left, up, _: (left + up) >> 1),
}
"""The line above and a line's differences → the line; its first sample is predicted from above."""
