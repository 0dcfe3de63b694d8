"""Write maps in the pixels of DICOM images: as parametric maps, and their regions as segmentations.

Both have the size of the source image and its place in the patient, so that a viewer lays them over
it, and refer to the source instance and frame. `dicom_source` says what they have of the source.
The standard requires a date and a time of their content: those of the source, so that bytes
depend only on source, model and map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.content import AlgorithmIdentificationSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, SecondaryCaptureImageStorage

from anomaly_vae.errors import DataError
from anomaly_vae.images.heatmaps import Scale
from pipelines.batch.images.dicom_source import (
    DISCLAIMER,
    LONG_STRING,
    READ_ERRORS,
    Kind,
    Source,
    one_line,
    silenced,
)

FRAME_OF_REFERENCE = "FrameOfReferenceUID"
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GEOMETRY = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
"""Keywords of the elements that state the place of an image, and their functional groups."""
LENGTHS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""Number of values of the elements that must be stated."""
DATES = (("ContentDate", "ContentTime"), ("AcquisitionDate", "AcquisitionTime"),
         ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime"))  # fmt: skip
"""Keywords of the elements with dates of the source, by precedence."""
NO_DATE = ("19000101", "000000")
"""Date and time of a map whose source states none."""
EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
"""Keywords of the elements that highdicom expects in a source."""
TOLERANCE = 1e-3
"""Largest error of directions that are 1 long and at right angles."""

PLACE = (FRAME_OF_REFERENCE, "PositionReferenceIndicator", *GEOMETRY, SHARED, PER_FRAME,
         *(keyword for pair in DATES for keyword in pair))  # fmt: skip
PARAMETRIC_MAP = Kind("Anomaly map", 10_000, "anomaly-vae map", "--maps dicom", PLACE)
SEGMENTATION = Kind(
    "Anomaly segmentation", 11_000, "anomaly-vae segmentation", "--maps dicom-seg", PLACE
)
NO_PLACE = (
    "states no place in the patient (frame of reference, position, orientation and spacing), which "
    "a parametric map needs; write --maps dicom-seg, tiff or npy"
)
OTHER_SIZE = "has changed since it was scored; score it again"


@dataclass(frozen=True)
class About:
    """The model that made a map, and its scale."""

    model: Mapping[str, str]
    """``model`` and ``digest`` of the bundle, and its ``version``, empty for one in no registry."""
    scale: Scale
    """The model's scale."""

    @property
    def note(self) -> str:
        """Text of at most 64 characters on what the map is."""
        if self.scale.localizes:
            return f"What each pixel adds to the score, {DISCLAIMER}"
        return f"This score does not localise; {DISCLAIMER}"


def parametric_map(source: Path, frame: int, heat: NDArray[np.float32], about: About) -> bytes:
    """Return a map (H, W) of one frame of a DICOM file as a Parametric Map of 32-bit floats.

    Pixels that the model does not see are NaN, which is stated as the padding value.

    Raises:
        DataError: The source is not DICOM, has no such frame, lacks an element to refer to, or
            states no place in the patient.
    """
    with silenced():
        opened = Source.open(source, frame, PARAMETRIC_MAP)
        place = _place(opened, heat)
        if FRAME_OF_REFERENCE not in place:
            raise DataError(f"'{source}' {NO_PLACE}", path=str(source))
        image = _built(ParametricMap, opened, place, heat, about, _map_options(heat, about.scale))
        if np.isnan(heat).any():
            image.FloatPixelPaddingValue = math.nan
        return _finished(opened, image, about)


def segmentation(source: Path, frame: int, regions: NDArray[np.bool_], about: About) -> bytes:
    """Return the pixels (H, W) in regions of a frame as a Segmentation with one binary segment.

    An image that states no place in the patient, such as an X-ray, has one in its pixels.

    Raises:
        DataError: The source is not DICOM, has no such frame, or lacks an element to refer to.
    """
    with silenced():
        opened = Source.open(source, frame, SEGMENTATION)
        options = _segment_options(about)
        pixels = regions.astype(np.uint8)
        place = _place(opened, pixels)
        return _finished(opened, _built(Segmentation, opened, place, pixels, about, options), about)


# ---------------------------------------------------------------- the new instance


def _built(
    of: Any,
    source: Source,
    place: Dataset,
    pixels: NDArray[Any],
    about: About,
    options: Mapping[str, Any],
) -> Any:
    """Build an instance at a place, from pixels, identifiers and options of its class."""
    try:
        return of(
            [place],
            np.ascontiguousarray(pixels),
            content_label="ANOMALY",
            content_description=about.note,
            device_serial_number=about.model["digest"][:LONG_STRING],
            specific_character_set="ISO_IR 192",
            **source.identifiers(pixels, about.model),
            **source.manufacturer(about.model),
            **options,
        )
    except READ_ERRORS:
        raise source.refused("states a place in the patient that is not valid") from None


def _map_options(heat: NDArray[np.float32], scale: Scale) -> dict[str, Any]:
    """Return what only parametric maps have: unit, range, and the window of the model's scale."""
    seen = heat[np.isfinite(heat)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    mapping = RealWorldValueMapping(
        lut_label="SCORE",
        lut_explanation=one_line(scale.unit)[:LONG_STRING],
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1,
        intercept=0,
    )
    center, width = (scale.low + scale.high) / 2, scale.high - scale.low
    window = VOILUTTransformation(_decimal(center), _decimal(width))
    return {
        "contains_recognizable_visual_features": False,
        "real_world_value_mappings": [mapping],
        "voi_lut_transformations": [window],
    }


def _decimal(value: float) -> float:
    """Round a value to what a decimal string can hold."""
    return float(f"{value:.8g}")


def _segment_options(about: About) -> dict[str, Any]:
    """Return what only segmentations have: their segment, and the model that found it."""
    name, version = (one_line(about.model[key])[:LONG_STRING] for key in ("model", "version"))
    algorithm = AlgorithmIdentificationSequence(
        name=name,
        version=version or about.model["digest"][:LONG_STRING],
        family=codes.DCM.ArtificialIntelligence,
    )
    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    segment = SegmentDescription(
        1, "Anomaly", abnormal, abnormal, "AUTOMATIC", algorithm_identification=algorithm
    )
    return {
        "segmentation_type": "BINARY",
        "segment_descriptions": [segment],
        "omit_empty_frames": False,
    }


def _finished(source: Source, image: Any, about: About) -> bytes:
    """Return an instance as a file, with what it has of its source and nothing that is random."""
    image.ContentDate, image.ContentTime = _date(source.header)
    image.DerivationDescription = source.derivation(about.model)
    source.copy(image, without=("PatientOrientation", "RecognizableVisualFeatures"))
    image.pop("InstanceCreationDate", None)
    image.pop("InstanceCreationTime", None)
    for equipment in image.get("ContributingEquipmentSequence") or []:
        equipment.pop("ContributionDateTime", None)
    organization = source.uid("dimensions", image.SOPInstanceUID)
    for item in (*image.DimensionOrganizationSequence, *image.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    for reference in _references(image):
        reference.ReferencedSOPClassUID = source.header.SOPClassUID
    if source.frame_number is not None:
        for origin in _origins(image):
            origin.ReferencedFrameNumber = source.frame_number
    return source.encode(image)


def _date(header: Dataset) -> tuple[Any, Any]:
    """Return the date and time of the source's content."""
    for date, time in DATES:
        if header.get(date):
            return header[date].value, header.get(time) or NO_DATE[1]
    return NO_DATE


def _references(image: Dataset) -> Sequence[Dataset]:
    """Return the items that refer to the source instance."""
    series = [
        item for one in image.ReferencedSeriesSequence for item in one.ReferencedInstanceSequence
    ]
    return [*image.SourceImageSequence, *series, *_origins(image)]


def _origins(image: Dataset) -> list[Dataset]:
    """Return the items that say of which frame a frame is derived."""
    groups = image[PER_FRAME].value
    derivations = [item for group in groups for item in group.DerivationImageSequence]
    return [origin for item in derivations for origin in item.SourceImageSequence]


# ---------------------------------------------------------------- the place of the frame


def _place(source: Source, pixels: NDArray[Any]) -> Dataset:
    """Return a header of the frame for highdicom: a single image, and its place if it has one.

    Its class is one that may lack a place. Elements about the patient are empty, as highdicom may
    refuse them.
    """
    header = source.header
    image = Dataset()
    image.Rows, image.Columns = pixels.shape
    if int(header.Rows) != image.Rows:
        raise DataError(f"'{source.path}' {OTHER_SIZE}", path=str(source.path))
    image.SOPClassUID = SecondaryCaptureImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        image[keyword] = header[keyword]
    for keyword in EMPTY:
        setattr(image, keyword, None)
    for keyword, value in _geometry(source).items():
        setattr(image, keyword, value)
    return image


def _geometry(source: Source) -> dict[str, Any]:
    """Return the elements that state the place of a frame; none if one is missing or not valid."""
    header = source.header
    found = {key: _stated(source, key, group) for key, group in GEOMETRY.items()}
    reference = header.get(FRAME_OF_REFERENCE)
    valid = all(_numbers(found[key], n) is not None for key, n in LENGTHS.items())
    if not (isinstance(reference, UID) and reference and valid and _is_right_angled(found)):
        return {}
    indicator = header.get("PositionReferenceIndicator")
    return {FRAME_OF_REFERENCE: reference, "PositionReferenceIndicator": indicator, **found}


def _stated(source: Source, keyword: str, group: str) -> Any:
    """Return an element of the frame, else of all frames, else of the file."""
    each, shared = (source.header.get(key) or [] for key in (PER_FRAME, SHARED))
    for groups in (*each[source.frame : source.frame + 1], *shared[:1]):
        for macro in groups.get(group) or []:
            if macro.get(keyword):
                return macro.get(keyword)
    return source.header.get(keyword)


def _numbers(values: Any, count: int) -> NDArray[np.float64] | None:
    """Return finite numbers (count,); None if the values are none."""
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _is_right_angled(found: Mapping[str, Any]) -> bool:
    """Return whether directions are at right angles and 1 long, and distances above 0."""
    directions = np.array([float(value) for value in found["ImageOrientationPatient"]])
    rows, columns = directions[:3], directions[3:]
    angles = np.array([rows @ rows - 1, columns @ columns - 1, rows @ columns])
    return bool((abs(angles) < TOLERANCE).all()) and min(map(float, found["PixelSpacing"])) > 0
