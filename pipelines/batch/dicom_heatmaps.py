"""Heatmaps as DICOM: secondary captures that a PACS files beside the scan they explain.

An overlay has no place in the patient's space (it shows three panels, enlarged), so it is a
Secondary Capture Image and no Parametric Map. It belongs to the source's study and patient, in a
series of its own, and refers to the source instance. What the source says of its patient and
study is passed on as it is, faults included, or a PACS would file the two apart; of the rest only
what the standard asks for. UIDs and bytes follow from source, model and picture alone: scoring a
scan again makes the same instance again, and so there is no time of creation inside.

Nothing of the source's content reaches a message, a warning or a log.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
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
from anomaly_vae.files import atomic_path

REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PASSED_ON = (
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
    # image: true of its copy too
    "BodyPartExamined", "Laterality", "PatientOrientation", "AnatomicalOrientationType",
    "BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
EQUIPMENT = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber",
    "InstitutionName", "StationName", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime",
)  # fmt: skip
PLACE = ("Rows", "NumberOfFrames", "SeriesNumber", "InstanceNumber")
TIMES = (
    "InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime",
    "DateOfSecondaryCapture", "TimeOfSecondaryCapture",
)  # fmt: skip
UNREADABLE = (
    InvalidDicomError, BytesLengthException, struct.error, OSError, EOFError, ValueError, TypeError,
    AttributeError, LookupError, NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip
"""What pydicom raises, lazily too, for files that are not DICOM or are damaged."""

SERIES_NUMBER = 9000
"""Added to the source's number, which keeps heatmaps below the scans in a list."""
MOST_NUMBER = 2**31 - 1
LONG_STRING = 64
DISCLAIMER = "not for diagnosis"


def write_heatmap(
    source: Path, frame: int, overlay: NDArray[np.uint8], about: Mapping[str, str], out: Path
) -> None:
    """Write the overlay of one frame of a DICOM file as a Secondary Capture Image.

    Args:
        source: the DICOM file that was scored.
        frame: which of its frames, from 0.
        overlay: (H, W, 3) RGB. Text in it must not tell who the patient is: whether annotation
            is burned in is passed on from the source.
        about: ``model`` and ``digest``, the bundle's, and ``version``, empty for a bundle that is
            in no registry.
        out: the file to write, whole or not at all; an older one is replaced.

    Raises:
        DataError: the source is not DICOM, holds no such frame, or lacks what refers to it.
        OSError: the file cannot be written.
    """
    with _quiet():
        content = _content(source, frame, overlay, about)
    with atomic_path(out) as whole:
        whole.write_bytes(content)


@contextmanager
def _quiet() -> Iterator[None]:
    """No validation and no warnings, which would quote the source."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE:
        raise _refused(source, "cannot be read as DICOM") from None


def _content(
    source: Path, frame: int, overlay: NDArray[np.uint8], about: Mapping[str, str]
) -> bytes:
    with _readable(source):
        header = _header(source)
    frames = _checked(header, frame, source)
    image = _captured(header, frame, frames, overlay, about)
    _pass_on(header, image)
    _refer(header, frame if frames > 1 else None, image)
    with _readable(source):
        return _encoded(image)


def _header(source: Path) -> Dataset:
    """What is used of it, decoded, which pydicom would put off."""
    tags = [*REQUIRED, *PASSED_ON, *EQUIPMENT, *PLACE]
    header = dcmread(source, stop_before_pixels=True, specific_tags=tags)
    deque(header.iterall(), maxlen=0)
    return header


def _encoded(image: SCImage) -> bytes:
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _checked(header: Dataset, frame: int, source: Path) -> int:
    """How many frames there are."""
    missing = [keyword for keyword in REQUIRED if not _single(header, keyword)]
    if missing:
        raise _refused(source, f"lacks {', '.join(missing)}, which a heatmap must refer to")
    if not header.get("Rows"):
        raise _refused(source, "is DICOM without an image")
    frames = max(_number(header, "NumberOfFrames", 1), 1)
    if not 0 <= frame < frames:
        raise _refused(source, f"has {frames} frames, so no frame {frame + 1}")
    return frames


def _refused(source: Path, why: str) -> DataError:
    message = f"'{source}' {why}; mend the file or leave out --dicom-out"
    return DataError(message, path=str(source))


def _single(header: Dataset, keyword: str) -> bool:
    value = header.get(keyword)
    return isinstance(value, str) and bool(value)


def _number(header: Dataset, keyword: str, otherwise: int) -> int:
    try:
        return int(header.get(keyword) or otherwise)
    except (TypeError, ValueError, ArithmeticError):
        return otherwise


# ---------------------------------------------------------------- the new instance


def _captured(
    header: Dataset,
    frame: int,
    frames: int,
    overlay: NDArray[np.uint8],
    about: Mapping[str, str],
) -> SCImage:
    """The picture, its names and what made it; of the source its study and its equipment."""
    image = SCImage.from_ref_dataset(
        _reference(header),
        np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # asked for here; `_pass_on` has the last word
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        **_names(header, frame, frames, overlay, about["digest"]),
        **_maker(_one_line(about["model"]), _one_line(about["version"])),
    )
    image.DerivationDescription = _derivation(about)
    for keyword in TIMES:
        image.pop(keyword, None)
    del image.ContributingEquipmentSequence[-1].ContributionDateTime  # highdicom's own
    return image


def _names(
    header: Dataset, frame: int, frames: int, overlay: NDArray[np.uint8], digest: str
) -> dict[str, Any]:
    """UIDs and numbers: a series for each source series and model."""
    series = SERIES_NUMBER + max(_number(header, "SeriesNumber", 0), 0)
    number = frame + 1 if frames > 1 else _number(header, "InstanceNumber", 1)
    picture = hashlib.sha256(repr(overlay.shape).encode() + overlay.tobytes()).hexdigest()
    return {
        "series_instance_uid": _uid("series", header.SeriesInstanceUID, digest),
        "series_number": min(series, MOST_NUMBER),
        "sop_instance_uid": _uid("image", header.SOPInstanceUID, str(frame), digest, picture),
        "instance_number": min(max(number, 1), MOST_NUMBER),
    }


def _maker(model: str, version: str) -> dict[str, Any]:
    return {
        "manufacturer": "anomaly-vae",
        "manufacturer_model_name": model[:LONG_STRING],
        "software_versions": __version__,
        "series_description": _series_description(model, version),
    }


def _reference(header: Dataset) -> Dataset:
    """What highdicom may look at: it refuses, or warns of, patients it finds oddly written."""
    reference = Dataset()
    for keyword in ("SOPClassUID", "StudyInstanceUID", *EQUIPMENT):
        if keyword in header:
            reference[keyword] = header[keyword]
    return reference


def _uid(*entropy: str) -> UID:
    return generate_uid(entropy_srcs=["anomaly-vae heatmap", *(f"\n{part}" for part in entropy)])


def _series_description(model: str, version: str) -> str:
    """Within the 64 characters of a long string; the name gives way."""
    head, tail = f"Anomaly heatmap, {DISCLAIMER}: ", f" v{version}" if version else ""
    return (head + model[: max(LONG_STRING - len(head) - len(tail), 8)] + tail)[:LONG_STRING]


def _derivation(about: Mapping[str, str]) -> str:
    model, version = _one_line(about["model"])[:256], _one_line(about["version"])[:64]
    by = f"{model}, version {version}" if version else model
    return f"Anomaly heatmap of model {by} (bundle {about['digest'][:64]}), {DISCLAIMER}"


def _one_line(text: str) -> str:
    """Without what would end a value in DICOM."""
    return " ".join(text.replace("\\", "/").split())


# ---------------------------------------------------------------- what it has from the source


def _pass_on(header: Dataset, image: SCImage) -> None:
    """As the source has it, written in UTF-8."""
    image.PatientOrientation = []
    for keyword in PASSED_ON:
        if keyword in header:
            image[keyword] = header[keyword]


def _refer(header: Dataset, frame: int | None, image: SCImage) -> None:
    """Modules General Reference and Common Instance Reference (PS3.3 C.12.4, C.12.2)."""
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
