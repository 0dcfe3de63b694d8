"""Decode DICOM files: pixels, modality units, windows and palettes (PS3.3 C.7.6.3, C.11).

Only the elements that describe how pixels are displayed are read, and the series and the place of
an image. Elements that identify a patient are never read.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
from anomaly_vae.images.decoders import dicom_codecs
from anomaly_vae.images.pixels import (
    MAX_PIXEL,
    TRUNCATED,
    Bounds,
    DecodeOptions,
    Frames,
    Pixels,
    PixelSpacing,
    check_finite,
    full_range,
    inflate,
    percentile_bounds,
    spacing_of,
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
MEASURES, POSITION = "PixelMeasuresSequence", "PlanePositionSequence"
ORIENTATION = "PlaneOrientationSequence"
COLOURS = ("Red", "Green", "Blue")
ASPECT_RATIO = "PixelAspectRatio"
SPACINGS = (
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", ASPECT_RATIO,
)  # fmt: skip
"""Keywords of the elements that state the height and the width of pixels, by precedence."""
ELEMENTS = (
    *PIXELS, *REQUIRED, SHARED, PER_FRAME, "EncapsulatedDocument",
    "NumberOfFrames", "PlanarConfiguration", "BitsStored", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelPresentation",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", *SPACINGS,
    "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
)  # fmt: skip
"""Keywords of the elements that are read."""

MAX_ITEMS_PER_FRAME = 32
"""Maximum number of sequence items per frame; enhanced images have about ten."""
ELEMENT_HEADER = 8
"""Size of the header of an element, in bytes."""
MAX_HEADER = 1 << 24
"""Maximum size of the elements other than pixels, in bytes."""
NO_IMAGE = "it stores no picture (a report, a plan or a directory, perhaps); leave it out"
NO_PIXELS = "it stores no picture: it describes one, but its pixels are missing; export it again"
DOCUMENT = "it stores no picture but a document; leave it out"
NUMBER_ERRORS = (ValueError, TypeError, ArithmeticError, NotImplementedError, BytesLengthException)
"""Errors that pydicom and Python raise for a value that should be a number."""
DEFAULT_SYNTAXES: dict[tuple[bool | None, bool | None], uid.UID] = {
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
    (False, False): uid.ExplicitVRBigEndian,
}
"""Transfer syntax of files that declare none, by (implicit VR, little endian)."""


VIDEO = frozenset(
    syntax
    for syntax in uid.AllTransferSyntaxes
    if syntax.name.startswith(("MPEG", "HEVC", "Fragmentable MPEG", "Fragmentable HEVC", "SMPTE"))
)
"""Transfer syntaxes of videos."""


def open_dicom(content: bytes, options: DecodeOptions) -> Frames:
    """Open a DICOM file of grey or colour frames.

    Grey values are converted to the modality's units (by slope and intercept, or by a table) and
    mapped to pixels by the window of the options, or by percentiles of the frame. The lowest
    values are white if the file declares MONOCHROME1, and black otherwise. Padding pixels (Pixel
    Padding Value) are black and excluded from percentiles. Colours are kept, whatever the window.

    Raises:
        DataError: The file holds no pixels, exceeds a limit, is truncated, or needs a decoder
            that is not installed.
    """
    file = open_file(content, options)
    window = options.intensity_window
    from_file = file.window if window == "auto" else None
    decode = partial(file.pixels, window=window)
    place = file.series, file.position
    return Frames(range(file.count), decode, from_file, file.spacing, file.in_mm, *place)


@dataclass(frozen=True)
class DicomFile:
    """A file whose header is valid. ``encoded`` holds its frames if they are compressed."""

    dataset: FileDataset
    decoder: Decoder
    count: int
    encoded: Sequence[bytes] | None

    def stored(self, frame: int) -> tuple[NDArray[Any], str]:
        """Return stored values (H, W) or (H, W, 3) and their photometric interpretation."""
        if self.encoded is None:
            values, metadata = self.decoder.as_array(self.dataset, index=frame)
        elif frame < len(self.encoded):
            options = as_pixel_options(self.dataset, number_of_frames=1)
            options.pop("extended_offsets", None)
            single = encapsulate([self.encoded[frame]])
            values, metadata = self.decoder.as_array(single, index=0, **options)
        else:
            raise DataError(TRUNCATED)
        return values, str(metadata["photometric_interpretation"])

    def pixels(self, frame: int, window: str | Bounds) -> Pixels:
        """Return the pixels of one frame, (H, W) or (H, W, 3).

        Raises:
            DataError: Its values are NaN, or its colour space is not supported.
        """
        stored, kind = self.stored(frame)
        if kind == "PALETTE COLOR":
            bits = int(self.dataset.RedPaletteColorLookupTableDescriptor[2])
            return full_range(apply_color_lut(stored, self.dataset)[..., :3], bits)
        if kind == "RGB":
            return full_range(stored, int(self.dataset.BitsStored))
        if not kind.startswith("MONOCHROME"):
            raise DataError("its colours are of a retired kind; convert them to RGB")
        values, padding = self._rescale(stored, frame), self._padding(stored)
        check_finite(values)
        pixels = self._to_pixels(values, padding, frame, window)
        pixels = MAX_PIXEL - pixels if kind == "MONOCHROME1" else pixels
        return np.where(padding, 0, pixels).astype(np.uint16)

    def _rescale(self, stored: NDArray[Any], frame: int) -> Values:
        """Convert stored values to the modality's units (PS3.3 C.11.1): Hounsfield units for CT."""
        macro = self._macro(RESCALE, frame)
        if macro.get("ModalityLUTSequence"):
            return apply_table(stored, macro.ModalityLUTSequence[0])[0]
        slope, intercept = _number(macro, "RescaleSlope", 1), _number(macro, "RescaleIntercept", 0)
        return stored.astype(np.float64) * slope + intercept

    def _to_pixels(
        self, values: Values, padding: NDArray[np.bool_], frame: int, window: str | Bounds
    ) -> Pixels:
        if isinstance(window, tuple):
            return stretch(values, window_bounds(*window))
        macro = self._macro(WINDOW, frame)
        if window == "auto" and macro.get("VOILUTSequence"):
            return apply_voi_table(values, macro)
        if window == "auto" and (pixels := apply_voi_window(values, macro)) is not None:
            return pixels
        return stretch(values, percentile_bounds(values if padding.all() else values[~padding]))

    def window(self, frame: int) -> str:
        """Describe the window or table of a grey frame, which "auto" uses; empty without one."""
        macro = self._macro(WINDOW, frame)
        if not self.dataset.PhotometricInterpretation.startswith("MONOCHROME"):
            return ""
        if macro.get("VOILUTSequence"):
            return "the look-up table in the file"
        found = window_of(macro)
        return f"the window in the file (center {found[0]:g}, width {found[1]:g})" if found else ""

    def spacing(self, frame: int) -> PixelSpacing | None:
        """Return the height and width of the pixels of a frame, in mm or as a ratio."""
        return self._stated_spacing(frame)[0]

    def in_mm(self, frame: int) -> bool:
        """Return whether the spacing of a frame is stated in mm, and not only as a ratio."""
        return self._stated_spacing(frame)[1] != ASPECT_RATIO

    @property
    def series(self) -> str:
        """UID of the series; empty if the file states none that is valid."""
        with suppress(*NUMBER_ERRORS, AttributeError):
            stated = uid.UID(str(self.dataset.get("SeriesInstanceUID") or ""))
            return str(stated) if stated.is_valid else ""
        return ""

    def position(self, frame: int) -> float | None:
        """Return the position of a frame across its plane, in mm; None if it is not stated."""
        place = _numbers(self._macro(POSITION, frame), "ImagePositionPatient", 3)
        directions = _numbers(self._macro(ORIENTATION, frame), "ImageOrientationPatient", 6)
        if place is not None and directions is not None:
            across = np.cross(directions[:3], directions[3:])
            return float(across @ place)
        location = _numbers(self.dataset, "SliceLocation", 1)
        return None if location is None else float(location[0])

    def _stated_spacing(self, frame: int) -> tuple[PixelSpacing | None, str]:
        """Return the spacing of a frame, and the keyword of the element that states it."""
        sources = self._macro(MEASURES, frame), self.dataset
        for source, keyword in itertools.product(sources, SPACINGS):
            if spacing := _spacing(source, keyword):
                return spacing, keyword
        return None, ""

    def _padding(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which pixels are padding (PS3.3 C.7.5.1.1.2)."""
        value = self.dataset.get("PixelPaddingValue")
        if not isinstance(value, int):
            return np.zeros(stored.shape, bool)
        limit = self.dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((value, limit if isinstance(limit, int) else value))
        return (stored >= low) & (stored <= high)

    def _macro(self, name: str, frame: int) -> Dataset:
        """Return a functional group of the frame or of all frames, or else the data set itself."""
        each, shared = self.dataset.get(PER_FRAME) or [], self.dataset.get(SHARED) or []
        for group in (*each[frame : frame + 1], *shared[:1]):
            if found := group.get(name):
                macro: Dataset = found[0]
                return macro
        return self.dataset


def open_file(content: bytes, options: DecodeOptions) -> DicomFile:
    """Read the header and locate the frames without decoding them.

    Raises:
        DataError: See `open_dicom`.
    """
    source = _LimitedFile(content, options)
    dataset = pydicom.dcmread(source, force=True, specific_tags=list(ELEMENTS))
    present = [name for name in PIXELS if name in dataset]
    if not present:
        raise DataError(TRUNCATED if source.truncated else _no_picture(dataset))
    _check_header(dataset)
    count = int(_number(dataset, "NumberOfFrames", 1) or 1)
    options.check_frames(count)
    options.check_size(int(dataset.Rows), int(dataset.Columns))
    decoder = _decoder(dataset, dataset[present[0]].is_undefined_length)
    if not decoder.is_encapsulated:
        _check_length(dataset, len(dataset[present[0]].value), count)
        return DicomFile(dataset, decoder, count, None)
    return DicomFile(dataset, decoder, count, _encoded(dataset, count))


def _no_picture(dataset: FileDataset) -> str:
    if "Rows" in dataset:
        return NO_PIXELS
    return DOCUMENT if "EncapsulatedDocument" in dataset else NO_IMAGE


class _LimitedFile(BytesIO):
    """A file for pydicom to read, which limits the time, the unpacked size and the items.

    ``truncated`` tells whether the file ended within an element.
    """

    def __init__(self, content: bytes, options: DecodeOptions) -> None:
        super().__init__(content)
        self.truncated = False
        self._length = len(content)
        self._options = options
        self._end = time.monotonic() + options.max_seconds
        self._check_items(content)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes, and check what deflated content unpacks to before pydicom reads all of it."""
        if time.monotonic() > self._end:
            seconds = self._options.max_seconds
            raise DataError(f"reading its header takes more than {seconds:g} s; export it again")
        content = super().read(size)
        if size is None or size < 0:
            self._check_items(inflate(content, -15, self._options))
        elif len(content) < size:
            at_end = not content and size == ELEMENT_HEADER and self.tell() == self._length
            self.truncated = self.truncated or not at_end
        return content

    def _check_items(self, content: bytes) -> None:
        """Refuse many sequence items: an item takes few bytes, but becomes a data set in memory."""
        most = MAX_ITEMS_PER_FRAME * self._options.max_frames
        if max(content.count(b"\xfe\xff\x00\xe0"), content.count(b"\xff\xfe\xe0\x00")) > most:
            raise DataError(f"it has more than {most} sequence items; split it")


def _check_header(dataset: FileDataset) -> None:
    """Refuse a header that is too large, or does not describe the layout of the pixels."""
    elements = (element for element in dataset.values() if element.tag.group != 0x7FE0)
    size = sum(len(e.value) for e in elements if isinstance(e.value, bytes))
    if size > MAX_HEADER:
        raise DataError(f"its header has more than {MAX_HEADER} bytes; export it again")
    if any(dataset.get(name) is None for name in REQUIRED):
        raise DataError("its header does not say how its pixels are laid out; export it again")


def _decoder(dataset: FileDataset, encapsulated: bool) -> Decoder:
    syntax: uid.UID = dataset.file_meta.get("TransferSyntaxUID") or uid.UID("")
    if not syntax and not encapsulated:
        syntax = DEFAULT_SYNTAXES[dataset.original_encoding]
    if syntax in DEFAULT_SYNTAXES.values() or syntax == uid.DeflatedExplicitVRLittleEndian:
        return get_decoder(syntax)
    if syntax not in dicom_codecs.DECODER_DEPENDENCIES or _is_deep_colour(dataset, syntax):
        remedy = "export its frames" if syntax in VIDEO else "decompress it"
        name = _syntax_name(syntax)
        raise DataError(f"it is compressed as {name}, which is not read; {remedy}")
    if not dicom_codecs.is_available(syntax):
        raise DataError(
            f"it is compressed as {_syntax_name(syntax)}, whose decoder is missing; "
            "install anomaly-vae[images]"
        )
    return dicom_codecs.decoder_for(syntax)


def _is_deep_colour(dataset: FileDataset, syntax: uid.UID) -> bool:
    """Return whether a file holds JPEG colours of more than 8 bits, which DICOM does not have."""
    extended = syntax == uid.JPEGExtended12Bit
    return extended and dataset.SamplesPerPixel > 1 and dataset.BitsStored > 8


def _syntax_name(syntax: uid.UID) -> str:
    """Return the UID of a transfer syntax, after its name if the standard has one.

    A value that is no UID is not quoted, since it may be any text.
    """
    if not syntax or not syntax.is_valid:
        return "something that it does not name"
    return syntax if syntax.name == syntax else f"{syntax.name} ({syntax})"


def _check_length(dataset: FileDataset, length: int, count: int) -> None:
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated * count
    halved = dataset.PhotometricInterpretation == "YBR_FULL_422"
    if length < bits // 8 * (2 if halved else 3) // 3:
        raise DataError(TRUNCATED)


def _encoded(dataset: FileDataset, count: int) -> list[bytes]:
    table = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    offsets = table if all(table) else None
    return list(
        generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets)
    )


def window_of(macro: Dataset) -> Bounds | None:
    """Return the center and width of the first window of a file or frame, None without one."""
    center, width = _first_number(macro, "WindowCenter"), _first_number(macro, "WindowWidth")
    least = 1 if _window_function(macro) == "LINEAR" else 1e-9
    return (center, width) if np.isfinite(center) and width >= least else None


def _window_function(macro: Dataset) -> str:
    return str(macro.get("VOILUTFunction") or "LINEAR")


def apply_voi_window(values: Values, macro: Dataset) -> Pixels | None:
    """Map values by the first window of a file or frame (PS3.3 C.11.2.1.2), None without one."""
    if (found := window_of(macro)) is None:
        return None
    center, width = found
    function = _window_function(macro)
    if function == "SIGMOID":
        return stretch(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))), (0, 1))
    if function == "LINEAR_EXACT":
        return stretch(values, (center - width / 2, center + width / 2))
    return stretch(values, window_bounds(center, width))


def apply_voi_table(values: Values, macro: Dataset) -> Pixels:
    """Map values by the first look-up table of a file or frame (PS3.3 C.11.2.1.1)."""
    entries, bits = apply_table(np.rint(values), macro.VOILUTSequence[0])
    return stretch(entries, (0, (1 << bits) - 1))


def _first_number(dataset: Dataset, name: str) -> float:
    """Return the first value of an element, NaN without one; raises the errors of `_number`."""
    with _number_required(name):
        value = dataset.get(name)
        many = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        return math.nan if not many or many[0] in (None, "") else float(many[0])


def _spacing(dataset: Dataset, name: str) -> PixelSpacing | None:
    """Return the two distances of an element, None if it does not state both."""
    with suppress(*NUMBER_ERRORS):  # pydicom reads the value only here
        return spacing_of(dataset.get(name) or ())
    return None


def _numbers(dataset: Dataset, name: str, count: int) -> Values | None:
    """Return the finite numbers of an element; None unless it has ``count`` of them."""
    with suppress(*NUMBER_ERRORS):  # pydicom reads the value only here
        found = np.atleast_1d(np.asarray(dataset.get(name), np.float64))
        return found if found.shape == (count,) and np.isfinite(found).all() else None
    return None


def _number(dataset: Dataset, name: str, default: float) -> float:
    """Return the value of an element, or ``default`` if it has none.

    Raises:
        DataError: The value is no number or not finite, or there are several.
    """
    with _number_required(name):
        value = dataset.get(name)
        number = default if value in (None, "") else float(value)
    if not math.isfinite(number):
        raise DataError(f"its {_element_name(name)} is not finite; export it again")
    return number


@contextmanager
def _number_required(name: str) -> Iterator[None]:
    """Replace errors about a value with one that names its element and does not quote the value."""
    try:
        yield
    except NUMBER_ERRORS:
        raise DataError(f"its {_element_name(name)} is no number; export it again") from None


def _element_name(name: str) -> str:
    """Return the name of an element in the standard, in lower case."""
    return dictionary_description(name).lower()


def apply_table(values: NDArray[Any], table: Dataset) -> tuple[Values, int]:
    """Map values by a look-up table; also return its bits per entry (PS3.3 C.11.1.1.1)."""
    count, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = table.LUTData
    if isinstance(entries, bytes):
        order = "<" if table.original_encoding[1] else ">"
        wide = len(entries) >= 2 * (count or 1 << 16)
        entries = np.frombuffer(entries, f"{order}u2" if wide else "u1")
    entries = np.atleast_1d(np.asarray(entries, np.float64))[: count or 1 << 16]
    index = np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)
    return entries[index], bits
