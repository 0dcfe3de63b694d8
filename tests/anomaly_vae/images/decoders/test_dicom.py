"""DICOM files are decoded to their values in the modality's units and displayed as they should."""

import hashlib
import io
import logging
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from anomaly_vae.images.decoders import dicom_codecs
from anomaly_vae.images.decoders.dicom import open_file
from anomaly_vae.images.decoding import LIBRARIES_SILENCED, read_bytes, read_file
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.jpeg_lossless import encoded

OPTIONS = DecodeOptions()
PERCENTILE = DecodeOptions(intensity_window="percentile")
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
RNG = np.random.default_rng(0)
STORED = RNG.integers(0, 4096, (12, 9), np.uint16)


def shipped(name: str) -> bytes:
    return (FOLDER / f"{name}.dcm").read_bytes()


def loaded(name: str) -> FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(FOLDER / f"{name}.dcm")


def written(dataset: Dataset, syntax: uid.UID | None = None) -> bytes:
    """Return the bytes of a data set with its identifiers unchanged."""
    file = io.BytesIO()
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def made(stored: NDArray[Any] = STORED, **elements: Any) -> FileDataset:
    """Make a grey data set with 12 of 16 bits; ``elements`` are replaced, or removed if None."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, b"\0" * 128, meta)
    rows, columns = stored.shape[-2:] if stored.ndim < 4 else stored.shape[1:3]
    standard = {
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": rows,
        "Columns": columns, "BitsAllocated": 8 * stored.itemsize, "HighBit": 11,
        "BitsStored": 12 if stored.itemsize > 1 else 8,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "NumberOfFrames": len(stored) if stored.ndim > 2 else None,
        "PixelData": stored.tobytes() + bytes(stored.nbytes % 2),
    }  # fmt: skip
    for name, value in (standard | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def table(first: int, bits: int, entries: NDArray[Any]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def only(dataset: Dataset | bytes, options: DecodeOptions = OPTIONS) -> NDArray[np.uint16]:
    content = dataset if isinstance(dataset, bytes) else written(dataset)
    [image] = read_bytes(content, options)
    assert isinstance(image, DecodedImage), image
    assert image.pixels.dtype == np.uint16
    return image.pixels


def modality_values(content: bytes, frame: int = 0) -> NDArray[np.float64]:
    """Decode a frame in a window in which pixels are the modality's values, if whole, + 32768."""
    image = list(read_bytes(content, DecodeOptions(intensity_window=(0, 65536))))[frame]
    assert isinstance(image, DecodedImage), image
    return image.pixels.astype(float) - 32768


def why(dataset: Dataset | bytes, options: DecodeOptions = OPTIONS) -> str:
    content = dataset if isinstance(dataset, bytes) else written(dataset)
    results = list(read_bytes(content, options))
    assert all(isinstance(result, DecodeFailure) for result in results)
    return results[0].reason


def stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Compute linear display independently."""
    return np.clip((values.astype(float) - low) / (high - low), 0, 1) * 65535


VENDOR = uid.UID("1.2.840.113619.5.2")
DEFLATED, ENCAPSULATED = uid.UID("1.2.840.10008.1.2.8.1"), uid.UID("1.2.840.10008.1.2.1.98")
JPEG_XL = [uid.UID(f"1.2.840.10008.1.2.4.11{last}") for last in range(3)]


def encapsulated(frames: list[bytes], **elements: Any) -> FileDataset:
    """Make a data set with these frames, encapsulated."""
    dataset = made(PixelData=encapsulate(frames), **elements)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def framewise(syntax: uid.UID, frames: list[bytes], **elements: Any) -> bytes:
    """Write a data set whose compressed frames are in a syntax that pydicom may not know.

    pydicom writes no unknown syntax, so that one of the same length is replaced.
    """
    known = uid.HTJ2K if len(syntax) > 22 else uid.JPEG2000Lossless
    content = written(encapsulated(frames, NumberOfFrames=len(frames), **elements), known)
    return content.replace(known.encode(), syntax.encode().ljust(len(known), b"\0"))


def without_pixels(**elements: Any) -> FileDataset:
    dataset = made(**elements)
    del dataset.PixelData
    return dataset


def squeezed(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


# ---------------------------------------------------------------- real files

FRAMES = {
    "examples_ybr_color": 30,
    "rtdose": 15,
    "rtdose_expb": 15,
    "rtdose_rle": 15,
} | dict.fromkeys(("SC_rgb_rle_2frame", "SC_rgb_rle_16bit_2frame", "SC_rgb_rle_32bit_2frame"), 2)
REFUSED = {
    "stores no picture": """
        ExplVR_BigEndNoMeta ExplVR_LitEndNoMeta UN_sequence empty_charset_LEI no_meta_group_length
        priv_SQ reportsi reportsi_with_empty_number_tags rtplan rtstruct test-SR
        waveform_ecg""",
    "does not say how its pixels are laid out": "meta_missing_tsyntax nested_priv_SQ",
    "is cut short": "MR_truncated rtplan_truncated",
    "is damaged": "JPEG2000-embedded-sequence-delimiter",
    "number of frames is no number": "badVR",
    "is no PNG, JPEG, TIFF, GIF, BMP": "no_meta",
}
REASONS = {name: reason for reason, names in REFUSED.items() for name in names.split()}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.dcm")), ids=lambda path: path.stem)
def test_every_file_that_pydicom_ships_gives_its_frames_or_its_reason(path):
    results = list(read_file(path, OPTIONS))
    if path.stem in REASONS:
        assert len(results) == 1
        assert REASONS[path.stem] in results[0].reason
        return
    assert [result.frame for result in results] == list(range(FRAMES.get(path.stem, 1)))
    dataset = loaded(path.stem)
    for result in results:
        assert isinstance(result, DecodedImage), result
        assert result.pixels.shape[:2] == (dataset.Rows, dataset.Columns)
        assert (result.pixels.ndim == 3) == (dataset.PhotometricInterpretation[:4] != "MONO")


def decoded_by_pydicom(path: Path) -> NDArray[Any] | None:
    """Return all frames as pydicom decodes them with whichever libraries there are, or None."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        frames = pydicom.pixels.pixel_array(dataset)
        return frames if int(dataset.get("NumberOfFrames") or 1) > 1 else frames[None]
    return None


@pytest.mark.slow
def test_every_frame_in_installed_packages_is_as_pydicom_decodes_it(capfd):
    """Also covers pydicom-data, where it is installed; lossy JPEG may differ by one step."""
    places = [FOLDER, Path(pydicom.__file__).parent / "data" / "charset_files"]
    places += [Path(nibabel.__file__).parent / "nicom" / "tests" / "data"]
    if find_spec("data_store"):
        places.append(Path(find_spec("data_store").origin).parent / "data")
    compared = 0
    for path in sorted(path for place in places for path in place.rglob("*.dcm")):
        frames = decoded_by_pydicom(path)
        if frames is None:
            continue
        with LIBRARIES_SILENCED:
            file = open_file(path.read_bytes(), OPTIONS)
            stored = [file.stored(number)[0] for number in range(file.count)]
        assert len(stored) == len(frames)
        steps = 1 if file.dataset.file_meta.TransferSyntaxUID == uid.JPEGExtended12Bit else 0
        for number, frame in enumerate(stored):
            assert frame.shape == frames[number].shape, path.name
            difference = np.abs(frame.astype(float) - frames[number]).max()
            assert difference <= steps, (path.name, number)
            compared += 1
    assert compared > 100
    assert capfd.readouterr().out == ""


SAME = [
    *(("MR_small", f"MR_small_{how}") for how in (
        "RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded")),
    ("rtdose", "rtdose_rle"),
    ("rtdose", "rtdose_expb"),
    ("rtdose_1frame", "rtdose_rle_1frame"),
    ("liver_1frame", "liver_expb_1frame"),
    ("SC_rgb_small_odd", "SC_rgb_small_odd_big_endian"),
    ("SC_rgb_jpeg_dcmd", "SC_rgb_jpeg"),  # by another decoder of JPEG
    ("SC_rgb_rle", "SC_rgb_jpeg_gdcm"),  # JPEG Lossless
    ("SC_rgb_rle", "SC_rgb_rle_16bit"),
    ("SC_rgb_rle", "SC_rgb_rle_32bit"),
    ("SC_rgb_rle", "SC_rgb_gdcm_KY"),  # JPEG 2000
]  # fmt: skip


@pytest.mark.parametrize(("plain", "packed"), SAME)
def test_a_file_looks_the_same_however_it_is_encoded(plain, packed):
    pairs = zip(
        read_bytes(shipped(plain), OPTIONS), read_bytes(shipped(packed), OPTIONS), strict=True
    )
    for expected, result in pairs:
        np.testing.assert_array_equal(result.pixels, expected.pixels)


@pytest.mark.parametrize(
    ("packed", "most"),
    [("SC_rgb_jls_lossy_line", 800), ("SC_rgb_jpeg_dcmtk", 700), ("SC_rgb_dcmtk_+eb+cr", 700),
     ("SC_rgb_dcmtk_+eb+cy+s2", 700), ("SC_ybr_full_422_uncompressed", 700)],
)  # fmt: skip
def test_a_file_encoded_with_loss_looks_nearly_the_same(packed, most):
    expected, result = only(shipped("SC_rgb_rle")), only(shipped(packed))
    assert abs(result.astype(int) - expected).mean() < most


@pytest.mark.parametrize(
    ("name", "plugin"),
    [("JPEG2000", "pillow"), ("693_J2KI", "pillow"), ("J2K_pixelrep_mismatch", "pillow"),
     ("rtdose_rle", "pydicom"), ("SC_rgb_rle_16bit_2frame", "pydicom"), ("image_dfl", "")],
)  # fmt: skip
def test_stored_values_are_those_that_pydicom_decodes(name, plugin):
    dataset = loaded(name)
    expected = pydicom.pixels.pixel_array(dataset, decoding_plugin=plugin)
    file = open_file(shipped(name), OPTIONS)
    expected = expected if file.count > 1 else expected[None]
    for frame in range(file.count):
        np.testing.assert_array_equal(file.stored(frame)[0], expected[frame])


@pytest.mark.parametrize(
    ("name", "digest"),
    [("JPEGLSNearLossless_08", "9eb46aa86c342094"), ("JPEGLSNearLossless_16", "f929318278115ce9")],
)
def test_near_lossless_values_are_those_that_pyjpegls_decoded(name, digest):
    values = open_file(shipped(name), OPTIONS).stored(0)[0]
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_sixteen_bits_in_jpeg_lossless_come_back_as_they_were(syntax, kind):
    stored = (STORED.astype(int) * 16 - 30_000 * (kind is np.int16)).astype(kind)
    content = lossless(stored, syntax, BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(open_file(content, OPTIONS).stored(0)[0], stored)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_frames_that_are_deflated_or_not_compressed_at_all_come_back_as_they_were(kind):
    stored = np.stack([STORED, STORED[::-1]]).astype(kind)
    bits = 8 * stored.itemsize
    about = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    about["PixelRepresentation"] = int(kind is np.int16)
    frames = [frame.tobytes() for frame in stored]
    for content in (
        framewise(DEFLATED, [squeezed(f) for f in frames], **about),
        framewise(ENCAPSULATED, frames, **about),
    ):
        file = open_file(content, OPTIONS)
        for number in range(2):
            np.testing.assert_array_equal(file.stored(number)[0], stored[number])


def test_deflated_frames_of_single_bits_are_those_that_were_packed():
    """Each frame begins with a byte of its own (PS3.5 8.1.1)."""
    masks = RNG.random((3, 12, 9)) < 0.5
    frames = [squeezed(np.packbits(mask, bitorder="little").tobytes()) for mask in masks]
    content = framewise(DEFLATED, frames, BitsAllocated=1, BitsStored=1, HighBit=0)
    for mask, result in zip(masks, read_bytes(content, OPTIONS), strict=True):
        np.testing.assert_array_equal(result.pixels, mask * 65535)


@pytest.mark.parametrize("syntax", JPEG_XL)
def test_jpeg_xl_comes_back_as_it_was(syntax):
    frame = imagecodecs.jpegxl_encode(STORED, lossless=True)
    np.testing.assert_array_equal(
        open_file(framewise(syntax, [frame]), OPTIONS).stored(0)[0], STORED
    )
    colours = RNG.integers(0, 256, (12, 9, 3), np.uint8)
    about = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8,
             "HighBit": 7, "PhotometricInterpretation": "YBR_RCT"}  # fmt: skip
    frame = imagecodecs.jpegxl_encode(colours, lossless=True)
    np.testing.assert_array_equal(only(framewise(syntax, [frame], **about)), colours * 257.0)


def test_bits_beyond_those_stored_are_left_out():
    """Old files keep overlays in them (PS3.5 8.1.2)."""
    overlaid = STORED | (RNG.integers(0, 16, STORED.shape, np.uint16) << 12)
    np.testing.assert_array_equal(only(made(overlaid)), only(made()))


def test_packed_bytes_are_unpacked_to_the_size_and_no_further():
    unpacked = dicom_codecs._unpack(b"\x80\x01ab\xfec\x80\x00d" + b"\x81e" * 99, 7)
    assert unpacked.tobytes() == b"abcccde"


def test_a_jpeg_ls_stream_is_given_an_end(monkeypatch):
    """Without one, CharLS looks for it for seconds."""
    streams = []
    real = imagecodecs.jpegls_decode

    def watching(stream: bytes) -> NDArray[Any]:
        streams.append(stream)
        return real(stream)

    monkeypatch.setattr(imagecodecs, "jpegls_decode", watching)
    why(with_frames("MR_small_jpeg_ls_lossless", lambda f: [f[0][:3000]]))
    assert len(streams) == 1
    assert streams[0].endswith(b"\xff\xd9")


def test_colour_of_eight_bits_is_exact():
    expected = loaded("examples_rgb_color").pixel_array.astype(int) * 257
    np.testing.assert_array_equal(only(shipped("examples_rgb_color")), expected)


def test_a_palette_becomes_its_colours():
    dataset = loaded("examples_palette")
    tables = [
        np.frombuffer(dataset[f"{colour}PaletteColorLookupTableData"].value, np.uint16)
        for colour in ("Red", "Green", "Blue")
    ]
    stored = dataset.pixel_array
    expected = np.stack([entries[stored] for entries in tables], -1)
    np.testing.assert_array_equal(only(shipped("examples_palette")), expected)


def test_a_file_without_preamble_is_known_by_its_first_tag():
    content = shipped("MR_small_implicit")
    length = int.from_bytes(content[140:144], "little")  # of the file's meta information
    body = content[144 + length :]
    np.testing.assert_array_equal(only(body), only(content))


# ---------------------------------------------------------------- grey values


def test_slope_and_intercept_lead_to_the_values_that_were_meant():
    units = -1024 + 35 * np.arange(108).reshape(12, 9)
    stored = np.rint((units + 1024) / 2.5).astype(np.uint16)
    content = written(made(stored, RescaleSlope=2.5, RescaleIntercept=-1024))
    np.testing.assert_array_equal(modality_values(content), units)


def test_a_real_ct_is_in_hounsfield_units():
    dataset = loaded("CT_small")
    expected = dataset.pixel_array.astype(float) - 1024
    np.testing.assert_array_equal(modality_values(shipped("CT_small")), expected)


def test_a_modality_table_is_applied():
    entries = np.arange(4096, dtype=np.uint16)[::-1] // 3
    dataset = made(ModalityLUTSequence=[table(0, 16, entries)])
    expected = apply_modality_lut(STORED, dataset)
    np.testing.assert_array_equal(modality_values(written(dataset)), expected)


def test_a_window_given_is_in_rescaled_units():
    dataset = made(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=5, WindowWidth=6)
    pixels = only(dataset, DecodeOptions(intensity_window=(300, 1500)))
    expected = stretched(STORED * 2.0 - 1000, 300 - 0.5 - 749.5, 300 - 0.5 + 749.5)
    np.testing.assert_allclose(pixels, expected, atol=0.5001)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_the_windows_of_a_file_show_what_pydicom_shows(function):
    dataset = made(
        WindowCenter=[1700, 5], WindowWidth=[2100, 6], VOILUTFunction=function,
        RescaleSlope=1, RescaleIntercept=-100,
    )  # fmt: skip
    shown = apply_voi_lut(STORED - 100.0, dataset)
    expected = (shown + 100) / 4095 * 65535
    np.testing.assert_allclose(only(dataset), expected, atol=0.51)


def test_the_window_in_a_file_is_described():
    table_of_interest = {"VOILUTSequence": [table(0, 12, np.arange(4096, dtype=np.uint16))]}
    for elements, expected in [
        (
            {"WindowCenter": 30.5, "WindowWidth": 100},
            "the window in the file (center 30.5, width 100)",
        ),
        (table_of_interest, "the look-up table in the file"),
        ({}, ""),
        ({"WindowCenter": 30, "WindowWidth": 0}, ""),
    ]:
        content = written(made(**elements))
        [image] = read_bytes(content, OPTIONS)
        assert image.window == expected
        [image] = read_bytes(content, PERCENTILE)
        assert image.window == ""


def test_a_window_one_wide_is_a_step():
    pixels = only(made(WindowCenter=2000, WindowWidth=1))
    np.testing.assert_array_equal(pixels, np.where(STORED > 1999.5, 65535, 0))


@pytest.mark.parametrize("width", [0, "", None])
def test_a_window_that_is_none_gives_way_to_percentiles(width):
    dataset = made(WindowCenter=2000, WindowWidth=width)
    np.testing.assert_array_equal(only(dataset), only(made(), PERCENTILE))


def test_a_table_of_interest_is_applied():
    entries = (np.sqrt(np.arange(4000)) * 64).astype(np.uint16)
    dataset = made(VOILUTSequence=[table(100, 12, entries)], WindowCenter=1, WindowWidth=5)
    expected = apply_voi_lut(STORED, dataset) / 4095 * 65535
    np.testing.assert_allclose(only(dataset), expected, atol=0.51)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_table_may_be_of_words(order):
    entries = np.arange(4096, dtype=np.uint16)[::-1]
    dataset = made(STORED.astype(order + "u2"), VOILUTSequence=[table(0, 12, entries)])
    item = dataset.VOILUTSequence[0]
    del item.LUTData
    item.add_new("LUTData", "OW", entries.astype(order + "u2").tobytes())
    syntax = uid.ExplicitVRLittleEndian if order == "<" else uid.ExplicitVRBigEndian
    dataset.set_original_encoding(False, order == "<")
    expected = np.rint((4095 - STORED) / 4095 * 65535)
    np.testing.assert_array_equal(only(written(dataset, syntax)), expected)


def test_percentiles_show_what_is_between_them():
    low, high = np.percentile(STORED, (0.5, 99.5))
    np.testing.assert_allclose(only(made(), PERCENTILE), stretched(STORED, low, high), atol=0.51)


def test_percentile_pays_no_heed_to_a_window():
    windowed = made(WindowCenter=2000, WindowWidth=10)
    np.testing.assert_array_equal(only(windowed, PERCENTILE), only(made()))


@pytest.mark.parametrize("how", [{}, {"WindowCenter": 2000, "WindowWidth": 900}])
def test_where_the_lowest_values_are_white_the_picture_is_turned_over(how):
    plain = only(made(**how))
    np.testing.assert_array_equal(
        only(made(PhotometricInterpretation="MONOCHROME1", **how)), 65535 - plain
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_spoils_no_percentile(photometric):
    values = RNG.integers(1000, 1100, (12, 9)).astype(np.int16)
    padded = values.copy()
    padded[:, :3] = -2000
    dataset = made(padded, BitsStored=16, PhotometricInterpretation=photometric)
    dataset.PixelPaddingValue = -2000
    dataset["PixelPaddingValue"].VR = "SS"
    alone = made(values[:, 3:], BitsStored=16, PhotometricInterpretation=photometric)
    pixels = only(dataset)
    np.testing.assert_array_equal(pixels[:, 3:], only(alone))
    assert not pixels[:, :3].any()
    del dataset.PixelPaddingValue
    assert np.ptp(only(dataset)[:, 3:].astype(int)) < 5000


def test_a_range_of_padding_is_padding():
    dataset = made(PixelPaddingValue=0, PixelPaddingRangeLimit=2000)
    dataset["PixelPaddingValue"].VR = dataset["PixelPaddingRangeLimit"].VR = "US"
    pixels = only(dataset)
    assert not pixels[STORED <= 2000].any()
    low, high = np.percentile(STORED[STORED > 2000], (0.5, 99.5))
    expected = np.where(STORED > 2000, stretched(STORED, low, high), 0)
    np.testing.assert_allclose(pixels, expected, atol=0.51)


def test_signed_values_of_fewer_bits_keep_their_sign():
    values = RNG.integers(-2048, 2048, (12, 9)).astype(np.int16)
    dataset = made(values & np.int16(0x0FFF), PixelRepresentation=1)
    np.testing.assert_array_equal(modality_values(written(dataset)), values)


def floating(values: NDArray[np.float32]) -> FileDataset:
    dataset = made(BitsAllocated=32, BitsStored=None, PixelRepresentation=None)
    dataset.FloatPixelData = values.tobytes()
    del dataset.PixelData
    return dataset


def test_float_pixels_are_read_unless_they_are_nan():
    values = RNG.normal(size=(12, 9)).astype(np.float32)
    low, high = np.percentile(values, (0.5, 99.5))
    np.testing.assert_allclose(only(floating(values)), stretched(values, low, high), atol=1)
    values[3, 3] = np.nan
    assert why(floating(values)) == "1 of its values are NaN or infinite; replace them"


# ---------------------------------------------------------------- frames

STACK = RNG.integers(0, 4096, (3, 12, 9), np.uint16)


def group(**macros: Dataset) -> Dataset:
    item = Dataset()
    for name, macro in macros.items():
        setattr(item, name, [macro])
    return item


def macro(**elements: float) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def test_every_frame_of_a_stack_is_read():
    dataset = made(STACK, WindowCenter=2000, WindowWidth=3000)
    results = list(read_bytes(written(dataset), OPTIONS))
    assert [result.frame for result in results] == [0, 1, 2]
    for result, frame in zip(results, STACK, strict=True):
        expected = only(made(frame, WindowCenter=2000, WindowWidth=3000))
        np.testing.assert_array_equal(result.pixels, expected)


def test_frames_have_windows_and_slopes_of_their_own():
    dataset = made(STACK)
    rescale = macro(RescaleSlope=2, RescaleIntercept=-50)
    dataset.SharedFunctionalGroupsSequence = [
        group(PixelValueTransformationSequence=rescale, FrameVOILUTSequence=macro(
            WindowCenter=4000, WindowWidth=1000))
    ]  # fmt: skip
    windows = [{"WindowCenter": 100 * k + 1000, "WindowWidth": 500} for k in range(2)]
    dataset.PerFrameFunctionalGroupsSequence = [
        *(group(FrameVOILUTSequence=macro(**window)) for window in windows), Dataset()
    ]  # fmt: skip
    results = list(read_bytes(written(dataset), OPTIONS))
    windows.append({"WindowCenter": 4000, "WindowWidth": 1000})
    for result, frame, window in zip(results, STACK, windows, strict=True):
        alone = made(frame, RescaleSlope=2, RescaleIntercept=-50, **window)
        np.testing.assert_array_equal(result.pixels, only(alone))
    assert modality_values(written(dataset), 2).max() == STACK[2].max() * 2.0 - 50


def test_frames_are_decoded_as_they_are_asked_for(monkeypatch):
    decoded = []
    real = dicom_codecs.CODECS[uid.JPEGBaseline8Bit]
    counting: Callable[..., bytes] = lambda *given: decoded.append(1) or real(*given)  # noqa: E731
    monkeypatch.setitem(dicom_codecs.CODECS, uid.JPEGBaseline8Bit, counting)
    frames = read_bytes(shipped("examples_ybr_color"), OPTIONS)
    assert [next(frames).frame for _ in range(3)] == [0, 1, 2]
    assert len(decoded) == 3


def with_frames(name: str, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """Return a compressed file with its frames changed."""
    dataset = loaded(name)
    count = int(dataset.get("NumberOfFrames", 1))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
    dataset.PixelData = encapsulate(change(frames))
    return written(dataset)


def test_a_damaged_frame_costs_that_frame():
    content = with_frames("rtdose_rle", lambda f: [*f[:4], f[4][:70], *f[5:]])
    results = list(read_bytes(content, OPTIONS))
    assert [r.frame for r in results if isinstance(r, DecodeFailure)] == [4]
    assert len(results) == 15
    assert results[4].reason == "it is damaged; export it again"


def test_frames_that_are_missing_are_told_one_by_one():
    results = list(read_bytes(with_frames("rtdose_rle", lambda f: f[:11]), OPTIONS))
    assert [type(r) for r in results] == [DecodedImage] * 11 + [DecodeFailure] * 4
    assert [r.frame for r in results[11:]] == [11, 12, 13, 14]
    assert results[11].reason == "it is cut short; copy the file again"


SHOWN = {
    "NumberOfFrames": 1,
    "RescaleSlope": 2,
    "RescaleIntercept": -3,
    "WindowCenter": 40,
    "WindowWidth": 400,
}


def worded(name: str, value: bytes, vr: bytes | None = None) -> bytes:
    """Return a file in which the value of an element is these bytes, valid or not."""
    content, tag = written(made(**SHOWN)), tag_for_keyword(name)
    assert tag is not None
    at = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    head = content[at : at + 4] + (vr or content[at + 4 : at + 6])
    return content[:at] + head + struct.pack("<H", len(value)) + value + content[at + 8 + length :]


@pytest.mark.parametrize("value", [b"steep ", b"\xff\xfe", b"1\\2 "])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RescaleSlope", "rescale slope"),
        ("RescaleIntercept", "rescale intercept"),
        ("NumberOfFrames", "number of frames"),
    ],
)
def test_a_value_of_the_header_that_is_no_number_is_told(name, words, value):
    assert why(worded(name, value)) == f"its {words} is no number; export it again"


def test_a_slope_of_the_wrong_length_or_without_end_is_told():
    wrong = worded("RescaleSlope", b"12345 ", b"FD")
    assert why(wrong) == "its rescale slope is no number; export it again"
    for value in (b"nan ", b"1e999 "):
        endless = worded("RescaleSlope", value)
        assert why(endless) == "its rescale slope is not finite; export it again"


@pytest.mark.parametrize("name", ["WindowCenter", "WindowWidth"])
def test_a_window_that_is_no_number_is_told_and_the_first_of_several_counts(name):
    assert why(worded(name, b"wide")).endswith("is no number; export it again")
    assert only(worded(name, b"40\\50 ")).shape == STORED.shape


# ---------------------------------------------------------------- hostile files


def deflated(body: bytes) -> bytes:
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + uid.DeflatedExplicitVRLittleEndian.encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return bytes(128) + b"DICM" + meta + packer.compress(body) + packer.flush()


def rle_bomb() -> bytes:
    """Make a frame of 64 × 64 pixels in 200 KB that unpack to 13 MB."""
    header = struct.pack("<16L", 2, 64, 64 + 100_000, *[0] * 13)
    return with_frames("MR_small_RLE", lambda _: [header + b"\x81\0" * 100_000])


def other_size(start: bytes, place: int, size: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Give the stream of the first frame another size than the header."""

    def change(frames: list[bytes]) -> list[bytes]:
        frame, at = bytearray(frames[0]), frames[0].index(start) + place
        frame[at : at + len(size)] = size
        return [bytes(frame), *frames[1:]]

    return change


def large_table() -> Dataset:
    item = Dataset()
    item.add_new("LUTData", "OW", bytes(17 << 20))
    return item


def packed(syntax: uid.UID, **elements: Any) -> bytes:
    """Make a file that declares this transfer syntax."""
    dataset = made(PixelData=encapsulate([bytes(10)]), **elements)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax)


def lossless(stored: NDArray[Any], syntax: uid.UID, **elements: Any) -> bytes:
    """Make a grey file in 16-bit JPEG Lossless."""
    values = stored.astype(np.uint16)[..., None]
    dataset = made(stored, PixelData=encapsulate([encoded(values, selection=6)]), **elements)
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax)


def nested(depth: int) -> bytes:
    sequence = struct.pack("<HH2sHI", 0x5200, 0x9229, b"SQ", 0, 0xFFFFFFFF)
    return (sequence + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)) * depth


PLAIN = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", 20) + b"1.2.840.10008.1.2.1\0"
DAMAGED = "it is damaged; export it again"
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "no pixels": (lambda: shipped("rtplan"), "it stores no picture (a report"),
    "an image without its pixels": (
        without_pixels, "it stores no picture: it describes one, but its pixels are"),
    "a document": (
        lambda: without_pixels(Rows=None, EncapsulatedDocument=b"%PDF-1.7"),
        "it stores no picture but a document; leave it out"),
    "a vendor's own syntax": (
        lambda: packed(VENDOR),
        "it is compressed as 1.2.840.113619.5.2, which is not read; decompress it"),
    "a syntax that may be a name": (
        lambda: packed(VENDOR).replace(VENDOR.encode(), b"MALLORY^MEG^MALLOR"),
        "it is compressed as something that it does not name, which is not read; decompress it"),
    "a deflated frame that is cut": (
        lambda: framewise(DEFLATED, [squeezed(STORED.tobytes())[:50]]),
        "it is cut short; copy the file again"),
    "a deflated frame that is damaged": (
        lambda: framewise(DEFLATED, [b"\xff" * 90]), DAMAGED),
    "JPEG XL of another size": (
        lambda: framewise(JPEG_XL[0], [imagecodecs.jpegxl_encode(STORED[:-1], lossless=True)]),
        DAMAGED),
    "JPEG XL that is cut": (
        lambda: framewise(JPEG_XL[0], [imagecodecs.jpegxl_encode(STORED, lossless=True)[:-40]]),
        DAMAGED),
    "pixels without a header": (lambda: made(Rows=None), "does not say how its pixels are laid"),
    "cut in the pixels": (lambda: written(made())[:-9], "it is cut short; copy the file again"),
    "cut before the pixels": (lambda: shipped("MR_small")[:1600], "it is cut short"),
    "cut when compressed": (lambda: shipped("JPEG2000")[:2500], "it is cut short"),
    "no rows": (lambda: made(Rows=0), "its header says that it has no pixels"),
    "wide": (lambda: made(Columns=60_000, Rows=1_000), "60000 × 1000 pixels is over the limit"),
    "more rows than pixels": (lambda: made(Rows=1000), "it is cut short; copy the file again"),
    "too many frames": (lambda: made(NumberOfFrames=5000), "it has more than 4096 frames"),
    "frames below none": (lambda: made(NumberOfFrames=-3), "its header says that it has no frames"),
    "colours of a retired kind": (
        lambda: made(np.zeros((1, 4, 4, 3), np.uint8), SamplesPerPixel=3, PlanarConfiguration=0,
                     PhotometricInterpretation="HSV"),
        "its colours are of a retired kind; convert them to RGB"),
    "four samples": (lambda: made(SamplesPerPixel=4), "it is cut short"),
    "15 bits": (lambda: made(BitsAllocated=15), DAMAGED),
    "deflate bomb": (lambda: deflated(bytes(5 << 20)), "it has more than 4194304 bytes"),
    "cut deflate": (lambda: deflated(RNG.bytes(999))[:-5], "it is cut short; copy the file again"),
    "RLE bomb": (rle_bomb, DAMAGED),
    "another number of RLE segments": (
        lambda: with_frames("MR_small_RLE", lambda f: [b"\3" + f[0][1:]]), DAMAGED),
    "grey where colour should be": (
        lambda: with_frames("SC_rgb_jpeg_gdcm", lambda _: [encoded(np.ones((100, 100, 1), int))]),
        DAMAGED),
    "another size in JPEG": (
        lambda: with_frames("SC_rgb_jpeg_dcmtk", other_size(b"\xff\xc0", 5, b"\xff\0")), DAMAGED),
    "another size in JPEG 2000": (
        lambda: with_frames("MR_small_jp2klossless", other_size(b"\xff\x51", 6, b"\0\0\xff\0")),
        DAMAGED),
    "another size in JPEG-LS": (
        lambda: with_frames("MR_small_jpeg_ls_lossless", other_size(b"\xff\xf7", 5, b"\xff\xff")),
        DAMAGED),
    "cut JPEG-LS": (
        lambda: with_frames("MR_small_jpeg_ls_lossless", lambda f: [f[0][:3000]]), DAMAGED),
    "another size in JPEG Lossless": (
        lambda: with_frames("SC_rgb_jpeg_gdcm", other_size(b"\xff\xc3", 5, b"\xff\xff")), DAMAGED),
    "many scans": (
        lambda: with_frames("SC_rgb_jpeg_dcmtk", lambda f: [f[0] + b"\xff\xda" * 101]), DAMAGED),
    "nested": (lambda: PLAIN + nested(3000), DAMAGED),
    "items": (
        lambda: PLAIN + struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 140_000,
        "it has more than 131072 sequence items; split it"),
    "large header": (
        lambda: made(VOILUTSequence=[large_table()]),
        "its header has more than 16777216 bytes"),
    "video": (
        lambda: packed(uid.MPEG4HP41),
        "MPEG-4 AVC/H.264 High Profile / Level 4.1 (1.2.840.10008.1.2.4.102), which is not read; "
        "export its frames"),
    "unknown syntax": (
        lambda: shipped("JPEG2000").replace(b"1.2.840.10008.1.2.4.91", b"1.2.840.55555.1.2.4.91"),
        "it is compressed as 1.2.840.55555.1.2.4.91, which is not read; decompress it"),
    "colour of 12 bits in JPEG": (
        lambda: packed(uid.JPEGExtended12Bit, BitsStored=12, SamplesPerPixel=3),
        "JPEG Extended (Process 2 and 4) (1.2.840.10008.1.2.4.51), which is not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_file_has_its_reason(name, capfd):
    make, reason = HOSTILE[name]
    large = name in {"large header", "wide"}
    assert reason in why(make(), OPTIONS if large else DecodeOptions(max_bytes=1 << 22))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 3)])
def test_odd_sizes_are_fine(size):
    for kind in (np.uint8, np.uint16):
        assert only(made(np.arange(np.prod(size), dtype=kind).reshape(size))).shape == size


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless", "JPEG2000", "JPEG-lossy"])
def test_a_decoder_that_is_missing_is_told_with_its_remedy(monkeypatch, name):
    monkeypatch.setattr(dicom_codecs, "find_spec", lambda _: None)
    reason = why(shipped(name))
    assert reason.startswith("it is compressed as JPEG")
    assert reason.endswith("whose decoder is missing; install anomaly-vae[images]")


def test_a_header_that_takes_too_long_is_given_up():
    empties = struct.pack("<HH2sH", 0x10, 0x10, b"PN", 0) * 20_000
    reason = why(PLAIN + empties, DecodeOptions(max_seconds=0.001))
    assert reason == "reading its header takes more than 0.001 s; export it again"


def test_identifiers_are_neither_quoted_nor_logged_nor_even_read(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    secrets = {"PatientName": "Secret^Name", "PatientID": "S3CRET", "StudyDate": "19700101",
               "SOPInstanceUID": "1.2.3.4.5.6.7"}  # fmt: skip
    good = made(**secrets)
    content = written(good)
    dataset = open_file(content, OPTIONS).dataset
    assert not any(name in dataset for name in secrets)
    chance = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in chance.integers(0, len(content), 6):
            damaged[place] = chance.integers(256)
        for result in read_bytes(bytes(damaged), OPTIONS):
            text = result.reason if isinstance(result, DecodeFailure) else ""
            assert not any(secret in text for secret in secrets.values())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_reading_works_without_the_decoder_that_may_end_the_process(monkeypatch):
    monkeypatch.setitem(sys.modules, "gdcm", None)
    assert only(shipped("SC_rgb_jpeg_gdcm")).shape == (100, 100, 3)


# ---------------------------------------------------------------- spacing


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [2.5, 0.5]}, (2.5, 0.5)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"PixelAspectRatio": [4, 3]}, (4, 3)),
        ({"PixelSpacing": [1, 1], "ImagerPixelSpacing": [2, 1]}, (1, 1)),
        ({"PixelSpacing": [0, 1]}, None),
        ({"PixelSpacing": [3]}, None),
        ({"PixelSpacing": [1, 2, 3]}, None),
    ],
)
def test_the_height_and_width_of_pixels_are_read(elements, expected):
    [image] = read_bytes(written(made(**elements)), OPTIONS)
    assert isinstance(image, DecodedImage)
    assert image.spacing == expected
    assert image.in_mm == ("PixelAspectRatio" not in elements)


def test_a_spacing_that_is_no_number_is_none_and_refuses_nothing():
    content = written(made(PixelSpacing=[1.25, 2.25])).replace(b"1.25\\2.25", b"none\\none")
    [image] = read_bytes(content, OPTIONS)
    assert isinstance(image, DecodedImage)
    assert image.spacing is None


def test_frames_have_spacings_of_their_own():
    def group(height: float) -> Dataset:
        measures, frame = Dataset(), Dataset()
        measures.PixelSpacing = [height, 1]
        frame.PixelMeasuresSequence = [measures]
        return frame

    frames = [group(2), group(3)]
    dataset = made(np.stack([STORED, STORED]), PerFrameFunctionalGroupsSequence=frames)
    images = list(read_bytes(written(dataset), OPTIONS))
    assert [image.spacing for image in images] == [(2, 1), (3, 1)]


# ---------------------------------------------------------------- series and place


def test_a_file_states_its_series_and_the_position_of_its_plane():
    [image] = read_bytes(
        written(
            made(
                SeriesInstanceUID="1.2.3",
                ImagePositionPatient=[1, 2, 3],
                ImageOrientationPatient=[0, 1, 0, 0, 0, 1],
            )
        ),
        OPTIONS,
    )
    assert (image.series, image.position) == ("1.2.3", 1)  # x, across the plane of y and z


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom warns where it is made
@pytest.mark.parametrize(
    ("elements", "series", "position"),
    [
        ({}, "", None),
        ({"SliceLocation": "-7.5"}, "", -7.5),
        ({"SeriesInstanceUID": "Doe^John"}, "", None),
        ({"ImagePositionPatient": [1, 2], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "", None),
    ],
)
def test_a_series_or_position_that_is_not_stated_well_is_none(elements, series, position):
    [image] = read_bytes(written(made(**elements)), OPTIONS)
    assert (image.series, image.position) == (series, position)
