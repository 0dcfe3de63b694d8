"""Maps as DICOM: what pydicom and highdicom read back."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedMRImageStorage, ParametricMapStorage, SegmentationStorage

from anomaly_vae.errors import DataError
from anomaly_vae.images.heatmaps import Scale
from pipelines.batch.images.dicom_maps import About, parametric_map, segmentation
from tests.support.dicom_files import changed, shipped

MODEL = {"model": "scans", "version": "3", "digest": "ab" * 32}
ABOUT = About(MODEL, Scale(0.5, 4.5, 1.5))
KINDS = {"parametric-map": ParametricMapStorage, "segmentation": SegmentationStorage}
STUDY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
         "StudyDate", "StudyTime", "StudyID", "AccessionNumber")  # fmt: skip


def item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def enhanced(out: Path, frames: int = 4) -> Path:
    """A multi-frame image whose frames lie one above the other, 2.5 mm apart."""
    image = dcmread(shipped("MR_small.dcm"))
    size = image.Rows, image.Columns
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.5], SliceThickness=2.5)],
    )
    places = [item(ImagePositionPatient=[-10, -20, 2.5 * i]) for i in range(frames)]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del image[keyword]
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    image.NumberOfFrames = frames
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [item(PlanePositionSequence=[one]) for one in places]
    image.PixelData = np.zeros((frames, *size), np.uint16).tobytes()
    image.save_as(out / "enhanced.dcm")
    return out / "enhanced.dcm"


def heat_of(source: Path) -> NDArray[np.float32]:
    header = dcmread(source, stop_before_pixels=True)
    size = header.Rows, header.Columns
    return np.random.default_rng(0).normal(1, 1, size).astype(np.float32)


def made(kind: str, source: Path, frame: int = 0, about: About = ABOUT) -> Any:
    """A map of a frame, opened again by highdicom."""
    heat = heat_of(source)
    content = (
        parametric_map(source, frame, heat, about)
        if kind == "parametric-map"
        else segmentation(source, frame, heat > 2, about)
    )
    str(dcmread(io.BytesIO(content)))  # decodes everything
    return highdicom.imread(io.BytesIO(content))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm"])
def test_a_map_lies_where_its_source_does(kind: str, name: str) -> None:
    source, image = dcmread(shipped(name)), made(kind, shipped(name))
    heat = heat_of(shipped(name))
    assert image.SOPClassUID == KINDS[kind]
    expected = heat if kind == "parametric-map" else heat > 2
    assert np.array_equal(np.squeeze(image.pixel_array), expected)
    geometry = image.get_volume_geometry()
    assert image.FrameOfReferenceUID == source.FrameOfReferenceUID
    np.testing.assert_allclose(geometry.position, source.ImagePositionPatient, atol=1e-6)
    np.testing.assert_allclose(geometry.pixel_spacing, source.PixelSpacing)
    np.testing.assert_allclose(
        image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient,
        source.ImageOrientationPatient,
    )
    for keyword in STUDY:
        assert (image.get(keyword) or "") == (source.get(keyword) or ""), keyword


@pytest.mark.parametrize("frame", [0, 3])
def test_a_map_of_a_frame_lies_where_the_frame_does(kind: str, frame: int, tmp_path: Path) -> None:
    source = enhanced(tmp_path)
    image = made(kind, source, frame)
    geometry = image.get_volume_geometry()
    np.testing.assert_allclose(geometry.position, [-10, -20, 2.5 * frame])
    np.testing.assert_allclose(geometry.pixel_spacing, [0.7, 0.5])
    assert origin_of(image).ReferencedFrameNumber == frame + 1
    assert image.InstanceNumber == frame + 1


def origin_of(image: Dataset) -> Dataset:
    (group,) = image.PerFrameFunctionalGroupsSequence
    (derivation,) = group.DerivationImageSequence
    (origin,) = derivation.SourceImageSequence
    assert isinstance(origin, Dataset)
    return origin


def test_a_map_refers_to_the_source_instance(kind: str, tmp_path: Path) -> None:
    for path in (shipped("CT_small.dcm"), enhanced(tmp_path)):
        source, image = dcmread(path), made(kind, path)
        origin = origin_of(image)
        assert origin.ReferencedSOPClassUID == source.SOPClassUID
        assert origin.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert origin.SpatialLocationsPreserved == "YES"
        (series,) = image.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == source.SeriesInstanceUID
        (instance,) = series.ReferencedInstanceSequence
        assert instance.ReferencedSOPClassUID == source.SOPClassUID
        assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert image.SeriesInstanceUID != source.SeriesInstanceUID


def test_a_map_has_what_the_standard_requires_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """highdicom ships the tables of PS3.3: modules of each object, and their attributes."""
    tables = Path(highdicom.__file__).parent / "_standard"
    modules = json.loads((tables / "iod_module_map.json").read_text())[kind]
    attributes = json.loads((tables / "module_attribute_map.json").read_text())
    for source in (shipped("CT_small.dcm"), enhanced(tmp_path)):
        image, known = made(kind, source), set()
        for module in modules:
            for attribute in attributes.get(module["key"], []):
                if attribute["path"]:
                    continue
                known.add(attribute["keyword"])
                if module["usage"] == "M" and attribute["type"] in {"1", "2"}:
                    assert attribute["keyword"] in image, module["key"]
                if module["usage"] == "M" and attribute["type"] == "1":
                    assert image[attribute["keyword"]].value not in (None, "")
        assert {element.keyword for element in image} <= known


def test_the_scale_of_the_model_is_the_window_of_its_maps() -> None:
    image = made("parametric-map", shipped("CT_small.dcm"))
    shared = image.SharedFunctionalGroupsSequence[0]
    (window,) = shared.FrameVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (2.5, 4)
    (group,) = (*image.SharedFunctionalGroupsSequence,)
    mapping = group.RealWorldValueMappingSequence[0]
    assert mapping.LUTExplanation == "nats per pixel"
    heat = heat_of(shipped("CT_small.dcm"))
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == heat.max()


def test_pixels_that_the_model_does_not_see_are_padding() -> None:
    source = shipped("CT_small.dcm")
    heat = heat_of(source)
    heat[:9] = np.nan
    image = dcmread(io.BytesIO(parametric_map(source, 0, heat, ABOUT)))
    assert np.array_equal(image.pixel_array, heat, equal_nan=True)
    assert math.isnan(image.FloatPixelPaddingValue)
    assert "FloatPixelPaddingValue" not in made("parametric-map", source)
    heat[:] = np.nan
    assert parametric_map(source, 0, heat, ABOUT)


def test_it_says_what_it_is_and_what_it_is_not_for(kind: str) -> None:
    image = made(kind, shipped("CT_small.dcm"))
    name = {"parametric-map": "Anomaly map", "segmentation": "Anomaly segmentation"}[kind]
    assert image.SeriesDescription == f"{name}, not for diagnosis: scans v3"
    assert MODEL["digest"] in image.DerivationDescription
    assert image.ContentDescription == "What each pixel adds to the score, not for diagnosis"
    silent = About(MODEL, Scale(0.5, 4.5, 1.5, localizes=False))
    said = made(kind, shipped("CT_small.dcm"), about=silent).ContentDescription
    assert said == "This score does not localise; not for diagnosis"


def test_the_same_scan_and_model_make_the_same_bytes(kind: str, tmp_path: Path) -> None:
    source, heat = enhanced(tmp_path), heat_of(enhanced(tmp_path))
    make = parametric_map if kind == "parametric-map" else segmentation
    pixels: Any = heat if kind == "parametric-map" else heat > 2
    assert make(source, 1, pixels, ABOUT) == make(source, 1, pixels, ABOUT)
    assert made(kind, source).SeriesInstanceUID == made(kind, source, 1).SeriesInstanceUID
    assert made(kind, source).SOPInstanceUID != made(kind, source, 1).SOPInstanceUID
    other = About({**MODEL, "digest": "cd" * 32}, ABOUT.scale)
    assert made(kind, source, 0, other).SeriesInstanceUID != made(kind, source).SeriesInstanceUID


def test_an_empty_segmentation_says_that_nothing_stands_out() -> None:
    source = shipped("CT_small.dcm")
    content = segmentation(source, 0, np.zeros((128, 128), bool), ABOUT)
    assert not dcmread(io.BytesIO(content)).pixel_array.any()


@pytest.mark.parametrize(
    "values",
    [
        {"FrameOfReferenceUID": None},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"PixelSpacing": None},
        {"PixelSpacing": [0, 1]},
        {"ImagePositionPatient": [1, 2]},
    ],
)
def test_without_a_place_there_is_a_segmentation_but_no_map(
    values: dict[str, object], tmp_path: Path
) -> None:
    source = changed(tmp_path, **values)
    needed = r"states no place in the patient .* write --maps dicom-seg"
    with pytest.raises(DataError, match=needed):
        made("parametric-map", source)
    image = made("segmentation", source)
    assert image.coordinate_system is None
    assert origin_of(image).ReferencedSOPInstanceUID == dcmread(source).SOPInstanceUID


def test_a_source_that_cannot_be_referred_to_is_refused(kind: str, tmp_path: Path) -> None:
    source = changed(tmp_path, SOPInstanceUID=None)
    option = {"parametric-map": "dicom", "segmentation": "dicom-seg"}[kind]
    with pytest.raises(DataError, match=f"lacks SOPInstanceUID.*leave out --maps {option}$"):
        made(kind, source)
    with pytest.raises(DataError, match="so no frame 3"):
        made(kind, shipped("CT_small.dcm"), 2)


def test_an_image_of_another_size_is_refused() -> None:
    heat = np.zeros((20, 20), np.float32)
    with pytest.raises(DataError, match="has changed since it was scored"):
        parametric_map(shipped("CT_small.dcm"), 0, heat, ABOUT)


def test_a_source_without_dates_has_a_map(kind: str, tmp_path: Path) -> None:
    dates = ("ContentDate", "AcquisitionDate", "SeriesDate", "StudyDate", "StudyTime")
    image = made(kind, changed(tmp_path, **dict.fromkeys(dates)))
    assert image.ContentDate == "19000101"


def test_nothing_about_the_patient_is_said(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = {"PatientName": "Secretname", "PatientID": "secret42"}
    said = []
    for lost in ("SeriesInstanceUID", "StudyInstanceUID"):
        with pytest.raises(DataError) as refused:
            made(kind, changed(tmp_path, **{**secret, lost: None}))
        said.append(str(refused.value))
    made(kind, changed(tmp_path, **secret))
    assert "secret" not in "".join([*said, *capfd.readouterr()]).lower()
