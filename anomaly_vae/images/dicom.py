"""DICOM files → pictures: decoding, the modality's units, windows, palettes (PS3.3 C.7.6.3, C.11).

Only the elements that say how pixels are shown are read; those that say whose they are never
leave the file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.errors import BytesLengthException
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import as_pixel_options

from anomaly_vae.errors import DataError
from anomaly_vae.images import dicom_codecs
from anomaly_vae.images.pixels import (
    CUT_SHORT,
    FULL,
    Bounds,
    DecodeOptions,
    Frames,
    Pixels,
    inflate,
    percentile_bounds,
    refuse_nan,
    stretch,
    window_bounds,
)

Values = NDArray[np.float64]

REQUIRED = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
)  # fmt: skip
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
RESCALE, WINDOW = "PixelValueTransformationSequence", "FrameVOILUTSequence"
COLOURS = ("Red", "Green", "Blue")
ELEMENTS = (
    *PIXELS, *REQUIRED, SHARED, PER_FRAME,
    "NumberOfFrames", "PlanarConfiguration", "BitsStored", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelPresentation",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
)  # fmt: skip
"""All that is read of a file."""

ITEMS = 32
"""Sequence items for each frame that may be read; enhanced images have some ten."""
ELEMENT_HEADER = 8
"""Bytes; where a file ends there is none."""
MAX_HEADER = 1 << 24
"""Bytes of all that is read beside the pixels."""
NO_PIXELS = "it holds no picture (a report, a plan or a directory, perhaps); leave it out"
NO_NUMBER = (ValueError, TypeError, ArithmeticError, NotImplementedError, BytesLengthException)
"""What pydicom and Python raise on a value that should be a number."""
GUESSED: dict[tuple[bool | None, bool | None], uid.UID] = {
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}
"""The transfer syntax of files that name none: (implicit, little endian) →"""
WIDE = {uid.JPEGExtended12Bit: 1, uid.JPEG2000: 3, uid.JPEG2000Lossless: 3}
"""Pillow decodes no more than 8 bits of these, where there are so many samples in a pixel."""


def open_dicom(content: bytes, reading: DecodeOptions) -> Frames:
    """The frames of a DICOM file, grey or colour.

    Grey values are brought to the modality's units (slope and intercept, or a table) and shown by
    the reading's window, or by percentiles of the frame; where the file says that its lowest
    values are white (MONOCHROME1) they are. Pixels that only fill the frame up (Pixel Padding
    Value) are black and count for no percentile. Colour is taken as it is, whatever the window.

    Raises:
        DataError: it holds no pixels, is over a limit, cut short, or needs a decoder that is
            missing.
    """
    file = open_file(content, reading)
    return Frames(range(file.count), partial(file.pixels, window=reading.intensity_window))


@dataclass(frozen=True)
class DicomFile:
    """A file whose header is good. ``encoded`` holds its frames where they are compressed."""

    dataset: FileDataset
    decoder: Decoder
    count: int
    encoded: Sequence[bytes] | None

    def stored(self, frame: int) -> tuple[NDArray[Any], str]:
        """Values as stored, (H, W), or (H, W, 3) as red, green, blue; and what they stand for."""
        if self.encoded is None:
            values, said = self.decoder.as_array(self.dataset, index=frame)
        elif frame < len(self.encoded):
            options = as_pixel_options(self.dataset, number_of_frames=1)
            options.pop("extended_offsets", None)
            alone = encapsulate([self.encoded[frame]])
            values, said = self.decoder.as_array(alone, index=0, **options)
        else:
            raise DataError(CUT_SHORT)
        return values, str(said["photometric_interpretation"])

    def rescaled(self, frame: int) -> Values:
        """Grey values (H, W) in the modality's units (PS3.3 C.11.1), Hounsfield units for CT."""
        return self._rescale(self.stored(frame)[0], frame)

    def pixels(self, frame: int, window: str | Bounds) -> Pixels:
        """The picture of one frame.

        Raises:
            DataError: its values are NaN, or its colours of a kind that is not read.
        """
        stored, kind = self.stored(frame)
        if kind == "PALETTE COLOR":
            bits = int(self.dataset.RedPaletteColorLookupTableDescriptor[2])
            return _full_range(apply_color_lut(stored, self.dataset)[..., :3], bits)
        if kind == "RGB":
            return _full_range(stored, int(self.dataset.BitsStored))
        if not kind.startswith("MONOCHROME"):
            raise DataError("its colours are of a retired kind; convert them to RGB")
        values, padding = self._rescale(stored, frame), self._padding(stored)
        refuse_nan(values)
        shown = self._shown(values, padding, frame, window)
        shown = FULL - shown if kind == "MONOCHROME1" else shown
        return np.where(padding, 0, shown).astype(np.uint16)

    def _rescale(self, stored: NDArray[Any], frame: int) -> Values:
        how = self._macro(RESCALE, frame)
        if how.get("ModalityLUTSequence"):
            return look_up(stored, how.ModalityLUTSequence[0])[0]
        slope, intercept = _number(how, "RescaleSlope", 1), _number(how, "RescaleIntercept", 0)
        return stored.astype(np.float64) * slope + intercept

    def _shown(
        self, values: Values, padding: NDArray[np.bool_], frame: int, window: str | Bounds
    ) -> Pixels:
        if isinstance(window, tuple):
            return stretch(values, window_bounds(*window))
        how = self._macro(WINDOW, frame)
        if window == "auto" and how.get("VOILUTSequence"):
            return by_table(values, how)
        if window == "auto" and (shown := by_window(values, how)) is not None:
            return shown
        return stretch(values, percentile_bounds(values if padding.all() else values[~padding]))

    def _padding(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Which pixels only fill the frame up (PS3.3 C.7.5.1.1.2)."""
        value = self.dataset.get("PixelPaddingValue")
        if not isinstance(value, int):
            return np.zeros(stored.shape, bool)
        limit = self.dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((value, limit if isinstance(limit, int) else value))
        return (stored >= low) & (stored <= high)

    def _macro(self, name: str, frame: int) -> Dataset:
        """Where a functional group is: with the frame, for all frames, or in the file itself."""
        each, shared = self.dataset.get(PER_FRAME) or [], self.dataset.get(SHARED) or []
        for group in (*each[frame : frame + 1], *shared[:1]):
            if found := group.get(name):
                macro: Dataset = found[0]
                return macro
        return self.dataset


def open_file(content: bytes, reading: DecodeOptions) -> DicomFile:
    """Read the header and find the frames; nothing is decoded yet.

    Raises:
        DataError: as `open_dicom`.
    """
    source = _Source(content, reading)
    dataset = pydicom.dcmread(source, force=True, specific_tags=list(ELEMENTS))
    present = [name for name in PIXELS if name in dataset]
    if not present:
        raise DataError(CUT_SHORT if source.cut or "Rows" in dataset else NO_PIXELS)
    _check_header(dataset)
    count = int(_number(dataset, "NumberOfFrames", 1) or 1)
    reading.check_frames(count)
    reading.check_size(int(dataset.Rows), int(dataset.Columns))
    decoder = _decoder(dataset, dataset[present[0]].is_undefined_length)
    if not decoder.is_encapsulated:
        _check_length(dataset, len(dataset[present[0]].value), count)
        return DicomFile(dataset, decoder, count, None)
    return DicomFile(dataset, decoder, count, _encoded(dataset, count))


class _Source(BytesIO):
    """The file as pydicom reads it: no longer than the limit, and unpacking no more than that.

    ``cut`` says whether it ended within an element.
    """

    def __init__(self, content: bytes, reading: DecodeOptions) -> None:
        super().__init__(content)
        self.cut = False
        self._length = len(content)
        self._reading = reading
        self._end = time.monotonic() + reading.max_seconds
        self._check_items(content)

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes of the file; all that is left is asked for only to be inflated."""
        if time.monotonic() > self._end:
            seconds = self._reading.max_seconds
            raise DataError(f"reading its header takes more than {seconds:g} s; export it again")
        content = super().read(size)
        if size is None or size < 0:
            self._check_items(inflate(content, -15, self._reading))
        elif len(content) < size:
            at_end = not content and size == ELEMENT_HEADER and self.tell() == self._length
            self.cut = self.cut or not at_end
        return content

    def _check_items(self, content: bytes) -> None:
        """Items cost nothing to write, but each becomes a data set."""
        most = ITEMS * self._reading.max_frames
        if max(content.count(b"\xfe\xff\x00\xe0"), content.count(b"\xff\xfe\xe0\x00")) > most:
            raise DataError(f"it has more than {most} sequence items; split it")


def _check_header(dataset: FileDataset) -> None:
    """Refuse what a hostile header may hold beside the pixels."""
    elements = (element for element in dataset.values() if element.tag.group != 0x7FE0)
    size = sum(len(e.value) for e in elements if isinstance(e.value, bytes))
    if size > MAX_HEADER:
        raise DataError(f"its header has more than {MAX_HEADER} bytes; export it again")
    if any(dataset.get(name) is None for name in REQUIRED):
        raise DataError("its header does not say how its pixels are laid out; export it again")


def _decoder(dataset: FileDataset, encapsulated: bool) -> Decoder:
    syntax: uid.UID = dataset.file_meta.get("TransferSyntaxUID") or uid.UID("")
    if not syntax and not encapsulated:
        syntax = GUESSED[dataset.original_encoding]
    if syntax in GUESSED.values() or syntax == uid.DeflatedExplicitVRLittleEndian:
        return get_decoder(syntax)
    if syntax not in dicom_codecs.DECODER_DEPENDENCIES or _is_wide(dataset, syntax):
        raise DataError(f"it is compressed as {_name(syntax)}, which is not read; decompress it")
    decoder = dicom_codecs.decoder_of(syntax)
    if not decoder.is_available:
        raise DataError(
            f"it is compressed as {_name(syntax)}, whose decoder is missing; "
            "install anomaly-vae[images]"
        )
    return decoder


def _is_wide(dataset: FileDataset, syntax: uid.UID) -> bool:
    samples = WIDE.get(syntax)
    return samples is not None and dataset.SamplesPerPixel >= samples and dataset.BitsStored > 8


def _name(syntax: uid.UID) -> str:
    """What the standard calls a transfer syntax."""
    return "something that it does not name" if syntax.name == syntax else syntax.name


def _check_length(dataset: FileDataset, length: int, count: int) -> None:
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated * count
    halved = dataset.PhotometricInterpretation == "YBR_FULL_422"
    if length < bits // 8 * (2 if halved else 3) // 3:
        raise DataError(CUT_SHORT)


def _encoded(dataset: FileDataset, count: int) -> list[bytes]:
    table = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    offsets = table if all(table) else None
    return list(
        generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
    )


def _full_range(colour: NDArray[Any], bits: int) -> Pixels:
    """Colours of so many bits → 0 to 65535; those of 8 or 16 exactly."""
    return stretch(colour, (0, (1 << bits) - 1))


def by_window(values: Values, how: Dataset) -> Pixels | None:
    """Values by the first window of a file or frame (PS3.3 C.11.2.1.2); None where it has none."""
    center, width = _first(how, "WindowCenter"), _first(how, "WindowWidth")
    function = how.get("VOILUTFunction") or "LINEAR"
    if not (np.isfinite(center) and width >= (1 if function == "LINEAR" else 1e-9)):
        return None
    if function == "SIGMOID":
        return stretch(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))), (0, 1))
    if function == "LINEAR_EXACT":
        return stretch(values, (center - width / 2, center + width / 2))
    return stretch(values, window_bounds(center, width))


def by_table(values: Values, how: Dataset) -> Pixels:
    """Values by the first look-up table of a file or frame (PS3.3 C.11.2.1.1)."""
    found, bits = look_up(np.rint(values), how.VOILUTSequence[0])
    return stretch(found, (0, (1 << bits) - 1))


def _first(how: Dataset, name: str) -> float:
    """The first of an element's values, NaN where it has none; raises as `_number`."""
    with _no_number(name):
        value = how.get(name)
        many = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return math.nan if not many or many[0] in (None, "") else float(many[0])


def _number(how: Dataset, name: str, absent: float) -> float:
    """The value of an element; ``absent`` where it has none.

    Raises:
        DataError: the value is no number or not finite, or there are several.
    """
    with _no_number(name):
        value = how.get(name)
        number = absent if value in (None, "") else float(value)
    if not math.isfinite(number):
        raise DataError(f"its {_words(name)} is not finite; export it again")
    return number


@contextmanager
def _no_number(name: str) -> Iterator[None]:
    """Say of which element a value cannot be read, and not what it is."""
    try:
        yield
    except NO_NUMBER:
        raise DataError(f"its {_words(name)} is no number; export it again") from None


def _words(name: str) -> str:
    """What the standard calls an element, in lower case."""
    return dictionary_description(name).lower()


def look_up(values: NDArray[Any], table: Dataset) -> tuple[Values, int]:
    """Values through a look-up table, and the bits of its entries (PS3.3 C.11.1.1.1)."""
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = table.LUTData
    if isinstance(entries, bytes):
        order = "<" if table.original_encoding[1] else ">"
        wide = len(entries) >= 2 * (count or 1 << 16)
        entries = np.frombuffer(entries, f"{order}u2" if wide else "u1")
    entries = np.atleast_1d(np.asarray(entries, np.float64))[: count or 1 << 16]
    places = np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)
    return entries[places], bits
