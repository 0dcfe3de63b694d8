"""Heatmaps as DICOM: what a viewer and an archive read back."""

from __future__ import annotations

import gzip
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.data import get_charset_files
from pydicom.uid import SecondaryCaptureImageStorage

from anomaly_vae.errors import DataError
from pipelines.batch.images.dicom_heatmaps import render_heatmap
from tests.support.dicom_files import changed, shipped

OVERLAY = np.random.default_rng(0).integers(0, 256, (31, 41, 3), np.uint8)  # an odd number of bytes
ABOUT = {"model": "scans", "version": "3", "digest": "ab" * 32}
SOURCES = [
    ("CT_small.dcm", 0),
    ("MR_small.dcm", 0),
    ("MR_small_bigendian.dcm", 0),
    ("MR_small_implicit.dcm", 0),
    ("examples_rgb_color.dcm", 0),
    ("examples_ybr_color.dcm", 29),
    ("SC_rgb_rle_2frame.dcm", 1),
    ("JPEG2000.dcm", 0),
    ("liver_1frame.dcm", 0),
    ("J2K_pixelrep_mismatch.dcm", 0),  # names in Japanese character sets
    ("badVR.dcm", 0),
]
PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip


def quietly(path: Path) -> Dataset:
    """A source, which may be sloppy."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        header = dcmread(path, stop_before_pixels=True)
        str(header)
    return header


def write_heatmap(
    source: Path, frame: int, overlay: NDArray[np.uint8], about: Mapping[str, str], out: Path
) -> None:
    """Write the overlay of a frame to a file."""
    out.write_bytes(render_heatmap(source, frame, overlay, about))


def written(
    source: Path,
    out: Path,
    frame: int = 0,
    overlay: NDArray[np.uint8] = OVERLAY,
    **about: str,
) -> Dataset:
    """Write and read back; warnings of either are errors."""
    write_heatmap(source, frame, overlay, {**ABOUT, **about}, out)
    image = dcmread(out)
    str(image)  # decodes everything
    return image


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(("name", "frame"), SOURCES)
def test_the_picture_is_a_secondary_capture_of_the_sources_study(
    name: str, frame: int, tmp_path: Path
) -> None:
    source = quietly(shipped(name))
    image = written(shipped(name), tmp_path / "out.dcm", frame)
    assert image.SOPClassUID == SecondaryCaptureImageStorage
    assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
    assert np.array_equal(image.pixel_array, OVERLAY)
    for keyword in PATIENT_AND_STUDY:
        assert (image.get(keyword) or "") == (source.get(keyword) or ""), keyword
    assert image.SeriesInstanceUID != source.SeriesInstanceUID
    assert image.SOPInstanceUID != source.SOPInstanceUID
    assert image.SeriesNumber == 9000 + int(source.get("SeriesNumber") or 0)


@pytest.mark.parametrize(("name", "frame"), SOURCES)
def test_it_refers_to_the_source_instance_and_frame(name: str, frame: int, tmp_path: Path) -> None:
    source = quietly(shipped(name))
    image = written(shipped(name), tmp_path / "out.dcm", frame)
    (origin,) = image.SourceImageSequence
    assert origin.ReferencedSOPClassUID == source.SOPClassUID
    assert origin.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert origin.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    several = str(source.get("NumberOfFrames") or 1) not in {"1", "1A"}
    assert origin.get("ReferencedFrameNumber") == (frame + 1 if several else None)
    (series,) = image.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


@cache
def standard(table: str) -> Any:
    """Read a table of PS3.3, which takes half a second."""
    return json.loads((Path(highdicom.__file__).parent / "_standard" / table).read_text())


@pytest.mark.parametrize(("name", "frame"), SOURCES)
def test_it_has_what_the_standard_requires_and_nothing_else(
    name: str, frame: int, tmp_path: Path
) -> None:
    """highdicom ships the tables of PS3.3: modules of each object, and their attributes."""
    image = written(shipped(name), tmp_path / "out.dcm", frame)
    modules = standard("iod_module_map.json")["secondary-capture-image"]
    attributes = standard("module_attribute_map.json")
    known = set()
    for module in modules:
        for attribute in attributes.get(module["key"], []):
            if attribute["path"]:
                continue
            known.add(attribute["keyword"])
            if module["usage"] == "M" and attribute["type"] in {"1", "2"}:
                assert attribute["keyword"] in image, module["key"]
            if module["usage"] == "M" and attribute["type"] == "1":
                assert image[attribute["keyword"]].value not in {None, ""}
    assert {element.keyword for element in image} <= known


def test_it_says_what_it_is_and_what_it_is_not_for(tmp_path: Path) -> None:
    image = written(shipped("MR_small.dcm"), tmp_path / "out.dcm")
    assert image.SeriesDescription == "Anomaly heatmap, not for diagnosis: scans v3"
    assert "scans, version 3" in image.DerivationDescription
    assert ABOUT["digest"] in image.DerivationDescription
    assert "not for diagnosis" in image.DerivationDescription
    assert image.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert image.Manufacturer == "anomaly-vae"
    assert (image.Modality, image.ConversionType) == ("OT", "WSD")


def test_a_bundle_without_a_version_has_none_in_its_descriptions(tmp_path: Path) -> None:
    image = written(shipped("MR_small.dcm"), tmp_path / "out.dcm", version="")
    assert image.SeriesDescription == "Anomaly heatmap, not for diagnosis: scans"
    assert "version" not in image.DerivationDescription


@pytest.mark.parametrize("model", ["long " * 40, "back\\slash", "two\nlines", "Schädel-肺"])
def test_any_name_of_a_model_makes_valid_descriptions(model: str, tmp_path: Path) -> None:
    image = written(shipped("MR_small.dcm"), tmp_path / "out.dcm", model=model)
    assert isinstance(image.SeriesDescription, str), "one value"
    assert len(image.SeriesDescription) <= 64
    assert image.SeriesDescription.endswith(" v3")
    assert model[:3] in image.SeriesDescription
    assert model[:3] in image.DerivationDescription


# Types 1 and 2 of the mandatory modules of the Secondary Capture Image IOD, PS3.3 A.8.1.
TYPE_1 = (
    "StudyInstanceUID", "Modality", "SeriesInstanceUID", "ConversionType", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelData", "SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "StudyID", "SeriesNumber", "InstanceNumber",
    "PatientOrientation", "PixelRepresentation", "Manufacturer",
)  # fmt: skip


@pytest.mark.parametrize(("name", "frame"), SOURCES)
def test_what_the_standard_requires_is_there(name: str, frame: int, tmp_path: Path) -> None:
    image = written(shipped(name), tmp_path / "out.dcm", frame)
    assert [keyword for keyword in TYPE_1 if image.get(keyword) in (None, "", b"")] == []
    assert [keyword for keyword in TYPE_2 if keyword not in image] == []


def test_what_a_sloppy_source_lacks_is_empty(tmp_path: Path) -> None:
    absent = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate",
              "StudyTime", "SeriesNumber", "InstanceNumber", "Manufacturer")  # fmt: skip
    source = changed(tmp_path, **dict.fromkeys(absent))
    image = written(source, tmp_path / "out.dcm")
    assert [keyword for keyword in TYPE_2 if keyword not in image] == []
    assert not image.PatientName
    assert not image.StudyDate
    assert (image.SeriesNumber, image.InstanceNumber) == (9000, 1)


def test_what_is_oddly_written_stays_as_it_is(tmp_path: Path) -> None:
    """An archive files by it: a mended name would be another patient."""
    odd = {"PatientName": "Onlyonename", "PatientSex": "X", "PatientBirthDate": "1.4.1950"}
    source = changed(tmp_path, **odd, SeriesNumber="-4", InstanceNumber="0")
    write_heatmap(source, 0, OVERLAY, ABOUT, tmp_path / "out.dcm")
    image = quietly(tmp_path / "out.dcm")
    assert {keyword: str(image[keyword].value) for keyword in odd} == odd
    assert (image.SeriesNumber, image.InstanceNumber) == (9000, 1)


@pytest.mark.parametrize("name", ["chrJapMulti", "chrKoreanMulti", "chrRuss", "chrArab", "chrH32"])
def test_names_in_any_character_set_are_written_in_unicode(name: str, tmp_path: Path) -> None:
    (path,) = get_charset_files(f"{name}.dcm")
    image = written(Path(path), tmp_path / "out.dcm")
    assert image.SpecificCharacterSet == "ISO_IR 192"
    assert image.PatientName == quietly(Path(path)).PatientName
    assert any(ord(letter) > 127 for letter in str(image.PatientName))


@pytest.mark.parametrize("value", ["YES", "NO", None])
def test_lossy_compression_is_the_sources_but_text_is_always_burned_in(
    value: str | None, tmp_path: Path
) -> None:
    values = {} if value is None else {"BurnedInAnnotation": value, "LossyImageCompression": "01"}
    image = written(changed(tmp_path, **values), tmp_path / "out.dcm")
    assert image.BurnedInAnnotation == "YES"  # its page has text, whatever the source has
    assert image.get("LossyImageCompression") == (value and "01")


def test_what_only_the_scan_has_is_left_behind(tmp_path: Path) -> None:
    image = written(shipped("CT_small.dcm"), tmp_path / "out.dcm")
    for keyword in ("PixelSpacing", "ImagePositionPatient", "SliceThickness", "KVP"):
        assert keyword in quietly(shipped("CT_small.dcm"))
        assert keyword not in image
    assert not [element for element in image if element.tag.is_private]


# ---------------------------------------------------------------- the same again


def test_the_same_scan_and_model_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.dcm", "two.dcm"):
        write_heatmap(shipped("MR_small.dcm"), 0, OVERLAY, ABOUT, tmp_path / name)
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
    assert b"Highdicom" in (tmp_path / "one.dcm").read_bytes()


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.dcm").write_bytes(b"older")
    assert written(shipped("MR_small.dcm"), tmp_path / "out.dcm").Rows == 31
    assert [path.name for path in tmp_path.iterdir()] == ["out.dcm"]


def test_another_picture_is_another_instance_of_the_same_series(tmp_path: Path) -> None:
    first = written(shipped("MR_small.dcm"), tmp_path / "out.dcm")
    other = written(shipped("MR_small.dcm"), tmp_path / "out.dcm", overlay=OVERLAY[::-1])
    reshaped = written(
        shipped("MR_small.dcm"), tmp_path / "out.dcm", overlay=OVERLAY.reshape(41, 31, 3)
    )
    images = (first, other, reshaped)
    assert len({image.SOPInstanceUID for image in images}) == 3
    assert len({image.SeriesInstanceUID for image in images}) == 1


def test_frames_and_neighbouring_slices_share_a_series(tmp_path: Path) -> None:
    frames = [written(shipped("SC_rgb_rle_2frame.dcm"), tmp_path / "o", frame) for frame in (0, 1)]
    slices = [
        written(changed(tmp_path, SOPInstanceUID=f"1.2.3.{i}", InstanceNumber=i), tmp_path / "o")
        for i in (4, 5)
    ]
    for first, second in (frames, slices):
        assert first.SeriesInstanceUID == second.SeriesInstanceUID
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert second.InstanceNumber == first.InstanceNumber + 1


def test_another_model_or_source_series_has_a_series_of_its_own(tmp_path: Path) -> None:
    images = [
        written(shipped("CT_small.dcm"), tmp_path / "o"),
        written(shipped("CT_small.dcm"), tmp_path / "o", digest="cd" * 32),
        written(changed(tmp_path, SeriesInstanceUID="1.2.3.4"), tmp_path / "o"),
    ]
    assert len({image.SeriesInstanceUID for image in images}) == 3
    assert len({image.StudyInstanceUID for image in images}) == 1
    assert all(image[keyword].value.is_valid for image in images
               for keyword in ("SeriesInstanceUID", "SOPInstanceUID"))  # fmt: skip


# ---------------------------------------------------------------- refusals


def refusal(source: Path, out: Path, frame: int = 0) -> str:
    with pytest.raises(DataError) as refused:
        write_heatmap(source, frame, OVERLAY, ABOUT, out)
    assert refused.value.path == str(source)
    message = str(refused.value)
    assert message.startswith(f"'{source}' ")
    assert message.endswith("; mend the file or leave out --dicom-out")
    assert "\n" not in message
    assert not out.exists()
    return message


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(500), b"text " * 100])
def test_what_is_not_dicom_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(content)
    assert "cannot be read as DICOM" in refusal(tmp_path / "scan.png", tmp_path / "out.dcm")
    assert "cannot be read as DICOM" in refusal(tmp_path / "none", tmp_path / "out.dcm")


@pytest.mark.parametrize("wrap", [lambda content: content[132:], gzip.compress])
def test_a_source_may_lack_its_preamble_or_be_packed(
    wrap: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    plain, source, out = shipped("MR_small.dcm"), tmp_path / "scan", tmp_path / "out.dcm"
    source.write_bytes(wrap(plain.read_bytes()))
    write_heatmap(source, 0, OVERLAY, ABOUT, out)
    assert dcmread(out).StudyInstanceUID == dcmread(plain).StudyInstanceUID


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_dicom_without_an_image_is_refused(name: str, tmp_path: Path) -> None:
    assert "is DICOM without an image" in refusal(shipped(name), tmp_path / "out.dcm")


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
@pytest.mark.parametrize("value", [None, "", "1.2\\1.3"])
def test_a_source_that_cannot_be_referred_to_is_refused(
    keyword: str, value: str | None, tmp_path: Path
) -> None:
    source = changed(tmp_path, **{keyword: value})
    assert f"lacks {keyword}," in refusal(source, tmp_path / "out.dcm")


def test_a_frame_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = shipped("SC_rgb_rle_2frame.dcm")
    assert "has 2 frames, so no frame 3" in refusal(source, tmp_path / "out.dcm", 2)
    assert "so no frame 0" in refusal(source, tmp_path / "out.dcm", -1)


def test_a_refusal_leaves_an_older_file_alone(tmp_path: Path) -> None:
    (tmp_path / "out.dcm").write_bytes(b"older")
    with pytest.raises(DataError):
        write_heatmap(tmp_path / "none", 0, OVERLAY, ABOUT, tmp_path / "out.dcm")
    assert (tmp_path / "out.dcm").read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_about_the_patient_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors here, so there are none that could."""
    caplog.set_level(logging.DEBUG)
    secret = {"PatientName": "Secretname", "PatientSex": "SECRETSEX", "PatientID": "secret" * 20}
    write_heatmap(changed(tmp_path, **secret), 0, OVERLAY, ABOUT, tmp_path / "out.dcm")
    source = changed(tmp_path, **secret, StudyInstanceUID=None)
    said = [refusal(source, tmp_path / "none.dcm"), caplog.text, *capfd.readouterr()]
    assert "secret" not in "".join(said).lower()


HEADER = shipped("MR_small.dcm").read_bytes()


@given(
    damage=st.dictionaries(st.integers(128, 1800), st.integers(0, 255), max_size=8),
    length=st.integers(2000, len(HEADER)),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_sources_are_refused_or_make_a_whole_file(
    damage: dict[int, int], length: int, tmp_path: Path
) -> None:
    content = bytearray(HEADER)
    for place, value in damage.items():
        content[place] = value
    (tmp_path / "source.dcm").write_bytes(content[:length])
    out = tmp_path / "out.dcm"
    out.unlink(missing_ok=True)
    try:
        write_heatmap(tmp_path / "source.dcm", 0, OVERLAY, ABOUT, out)
    except DataError:
        assert not out.exists()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged names are passed on
            assert np.array_equal(dcmread(out).pixel_array, OVERLAY)
