"""Write heatmaps as DICOM secondary captures, which a PACS files with the scan they explain.

A heatmap shows three enlarged panels and has no position in the patient's space. It is therefore a
Secondary Capture Image, not a Parametric Map. It belongs to the source's study and patient, has its
own series, and refers to the source instance. The source's elements about its patient and study
are copied unchanged, errors included; otherwise a PACS would file the heatmap separately. No other
elements are written except those that the standard requires. UIDs and bytes depend only on source,
model and pixels, so that scoring a scan again creates the same instance. For this reason, the
instance holds no creation time.

Nothing of the source's content reaches a message, a warning or a log.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from anomaly_vae import __version__
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import LIBRARIES_SILENCED
from anomaly_vae.images.formats import GZIP
from pipelines.datasets.images.files import is_dicom
from pipelines.datasets.reading.objects import refuse_outage

REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Keywords of the elements that a heatmap must refer to."""
COPIED = (
    # patient
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientSpeciesDescription",
    "ResponsiblePerson", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
    # clinical trial
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID",
    # study
    "StudyDate", "StudyTime", "TimezoneOffsetFromUTC", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "StudyDescription",
    # image: also valid for the heatmap
    "BodyPartExamined", "Laterality", "PatientOrientation", "AnatomicalOrientationType",
    "RecognizableVisualFeatures", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
"""Keywords of the elements that are copied unchanged."""
EQUIPMENT = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber",
    "InstitutionName", "StationName", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
"""Keywords of the elements that describe the equipment."""
NUMBERS = ("Rows", "NumberOfFrames", "SeriesNumber", "InstanceNumber")
"""Keywords of the elements with the size or number of the image."""
TIMES = (
    "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime",
    "DateOfSecondaryCapture", "TimeOfSecondaryCapture",
)  # fmt: skip
"""Keywords of the elements with creation times, which are removed."""
READ_ERRORS = (
    InvalidDicomError, BytesLengthException, struct.error, OSError, EOFError, ValueError, TypeError,
    AttributeError, LookupError, NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip
"""Errors that pydicom raises for damaged files and other formats, some only on element access."""

SERIES_NUMBER_OFFSET = 9000
"""Number added to the source's series number, so that heatmaps are listed after scans."""
MAX_NUMBER = 2**31 - 1
"""Largest value of an integer string."""
LONG_STRING = 64
"""Maximum length of a long string, in characters."""
DISCLAIMER = "not for diagnosis"
WORKSTATION = "WSD"
"""Conversion type of images that software makes (PS3.3 C.8.6.1)."""


_VALIDATION = threading.Lock()
"""Held while validation is disabled, which is a setting of the whole process."""


def render_heatmap(
    source: Path, frame: int, overlay: NDArray[np.uint8], about: Mapping[str, str]
) -> bytes:
    """Return the overlay of one frame of a DICOM file as a Secondary Capture Image.

    Args:
        source: The DICOM file that was scored.
        frame: The frame that was scored, from 0.
        overlay: Pixels (H, W, 3), RGB. Text is drawn into them, which Burned In Annotation says.
        about: ``model`` and ``digest`` of the bundle, and its ``version``, empty for a bundle that
            is in no registry.

    Raises:
        DataError: The source is not DICOM, has no such frame, or lacks an element to refer to.
    """
    with _silenced():
        return _render(source, frame, overlay, about)


@contextmanager
def _silenced() -> Iterator[None]:
    """Disable validation and warnings, whose messages would quote the source."""
    with LIBRARIES_SILENCED, _VALIDATION, config.disable_value_validation():
        yield


@contextmanager
def _read_errors(source: Path) -> Iterator[None]:
    """Replace pydicom's errors by an error that does not quote the source."""
    try:
        yield
    except READ_ERRORS as error:
        refuse_outage(source, error)
        raise _refused(source, "cannot be read as DICOM") from None


def _render(
    source: Path, frame: int, overlay: NDArray[np.uint8], about: Mapping[str, str]
) -> bytes:
    with _read_errors(source):
        header = _read_header(source)
    frames = _check_header(header, frame, source)
    image = _secondary_capture(header, frame, frames, overlay, about)
    _copy_elements(header, image)
    _add_references(header, frame if frames > 1 else None, image)
    with _read_errors(source):
        return _encode(image)


def _read_header(source: Path) -> Dataset:
    """Read the needed elements and decode them now, as pydicom would do so only on access."""
    tags = [*REQUIRED, *COPIED, *EQUIPMENT, *NUMBERS]
    with source.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        force = is_dicom(source)  # the preamble may be missing
        content = gzip.GzipFile(fileobj=file) if packed else file
        header = dcmread(content, stop_before_pixels=True, specific_tags=tags, force=force)
    deque(header.iterall(), maxlen=0)
    return header


def _encode(image: SCImage) -> bytes:
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _check_header(header: Dataset, frame: int, source: Path) -> int:
    """Return the number of frames.

    Raises:
        DataError: An element is missing, or there is no such frame.
    """
    missing = [keyword for keyword in REQUIRED if not _has_single_value(header, keyword)]
    if missing:
        raise _refused(source, f"lacks {', '.join(missing)}, which a heatmap must refer to")
    if not header.get("Rows"):
        raise _refused(source, "is DICOM without an image")
    frames = max(_number(header, "NumberOfFrames", 1), 1)
    if not 0 <= frame < frames:
        raise _refused(source, f"has {frames} frames, so no frame {frame + 1}")
    return frames


def _refused(source: Path, reason: str) -> DataError:
    message = f"'{source}' {reason}; mend the file or leave out --dicom-out"
    return DataError(message, path=str(source))


def _has_single_value(header: Dataset, keyword: str) -> bool:
    value = header.get(keyword)
    return isinstance(value, str) and bool(value)


def _number(header: Dataset, keyword: str, default: int) -> int:
    try:
        return int(header.get(keyword) or default)
    except (TypeError, ValueError, ArithmeticError):
        return default


# ---------------------------------------------------------------- the new instance


def _secondary_capture(
    header: Dataset,
    frame: int,
    frames: int,
    overlay: NDArray[np.uint8],
    about: Mapping[str, str],
) -> SCImage:
    """Build the instance from pixels, identifiers and the source's study and equipment."""
    image = SCImage.from_ref_dataset(
        _reference(header),
        np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # required here; `_copy_elements` replaces it
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        **_identifiers(header, frame, frames, overlay, about["digest"]),
        **_manufacturer(_one_line(about["model"]), _one_line(about["version"])),
    )
    image.DerivationDescription = _derivation(about)
    image.ConversionType = WORKSTATION
    image.BurnedInAnnotation = "YES"
    for keyword in TIMES:
        image.pop(keyword, None)
    del image.ContributingEquipmentSequence[-1].ContributionDateTime  # added by highdicom
    return image


def _identifiers(
    header: Dataset, frame: int, frames: int, overlay: NDArray[np.uint8], digest: str
) -> dict[str, Any]:
    """Return UIDs and numbers, with one heatmap series per source series and model."""
    series = SERIES_NUMBER_OFFSET + max(_number(header, "SeriesNumber", 0), 0)
    number = frame + 1 if frames > 1 else _number(header, "InstanceNumber", 1)
    pixels = hashlib.sha256(repr(overlay.shape).encode() + overlay.tobytes()).hexdigest()
    return {
        "series_instance_uid": _uid("series", header.SeriesInstanceUID, digest),
        "series_number": min(series, MAX_NUMBER),
        "sop_instance_uid": _uid("image", header.SOPInstanceUID, str(frame), digest, pixels),
        "instance_number": min(max(number, 1), MAX_NUMBER),
    }


def _manufacturer(model: str, version: str) -> dict[str, Any]:
    return {
        "manufacturer": "anomaly-vae",
        "manufacturer_model_name": model[:LONG_STRING],
        "software_versions": __version__,
        "series_description": _series_description(model, version),
    }


def _reference(header: Dataset) -> Dataset:
    """Return the elements for highdicom, without those of the patient, which it may refuse."""
    reference = Dataset()
    for keyword in ("SOPClassUID", "StudyInstanceUID", *EQUIPMENT):
        if keyword in header:
            reference[keyword] = header[keyword]
    return reference


def _uid(*entropy: str) -> UID:
    return generate_uid(entropy_srcs=["anomaly-vae heatmap", *(f"\n{part}" for part in entropy)])


def _series_description(model: str, version: str) -> str:
    """Describe the series in at most 64 characters, shortening the name of the model."""
    head, tail = f"Anomaly heatmap, {DISCLAIMER}: ", f" v{version}" if version else ""
    return (head + model[: max(LONG_STRING - len(head) - len(tail), 8)] + tail)[:LONG_STRING]


def _derivation(about: Mapping[str, str]) -> str:
    model, version = _one_line(about["model"])[:256], _one_line(about["version"])[:64]
    name = f"{model}, version {version}" if version else model
    return f"Anomaly heatmap of model {name} (bundle {about['digest'][:64]}), {DISCLAIMER}"


def _one_line(text: str) -> str:
    """Replace line breaks and backslashes, which separate values in DICOM."""
    return " ".join(text.replace("\\", "/").split())


# ---------------------------------------------------------------- elements of the source


def _copy_elements(header: Dataset, image: SCImage) -> None:
    """Copy elements of the source unchanged; text is written in UTF-8."""
    image.PatientOrientation = []
    for keyword in COPIED:
        if keyword in header:
            image[keyword] = header[keyword]


def _add_references(header: Dataset, frame: int | None, image: SCImage) -> None:
    """Add the modules General Reference and Common Instance Reference (PS3.3 C.12.4, C.12.2)."""
    instance = Dataset()
    instance.ReferencedSOPClassUID = header.SOPClassUID
    instance.ReferencedSOPInstanceUID = header.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    series.ReferencedInstanceSequence = [instance]
    image.ReferencedSeriesSequence = [series]
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    origin = Dataset()
    origin.update(instance)
    if frame is not None:
        origin.ReferencedFrameNumber = frame + 1
    origin.SpatialLocationsPreserved = "NO"
    origin.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    image.SourceImageSequence = [origin]
