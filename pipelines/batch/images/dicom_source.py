"""Read what a DICOM file says of an image, for new instances of its study that refer to it.

A new instance belongs to the source's study and patient, has its own series, and refers to the
source instance. The source's elements about its patient and study are copied unchanged, errors
included; otherwise a PACS would file the instance separately. UIDs depend only on source, model and
content, so that scoring a scan again creates the same instance.

Nothing of the source's content reaches a message, a warning or a log.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID, generate_uid

from anomaly_vae import __version__
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import LIBRARIES_SILENCED
from anomaly_vae.images.formats import GZIP
from pipelines.datasets.images.files import is_dicom
from pipelines.datasets.reading.objects import refuse_outage

REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Keywords of the elements that a new instance must refer to."""
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


MAX_NUMBER = 2**31 - 1
"""Largest value of an integer string."""
LONG_STRING = 64
"""Maximum length of a long string, in characters."""
DISCLAIMER = "not for diagnosis"


_VALIDATION = threading.Lock()
"""Held while validation is disabled, which is a setting of the whole process."""


@contextmanager
def silenced() -> Iterator[None]:
    """Disable validation and warnings, whose messages would quote the source."""
    with LIBRARIES_SILENCED, _VALIDATION, config.disable_value_validation():
        yield


@dataclass(frozen=True)
class Kind:
    """A kind of new instances."""

    name: str
    """What a file is, in words."""
    series_number_offset: int
    """Number added to the source's series number, so that instances are listed after scans."""
    entropy: str
    """Text that makes the UIDs of the kind differ from those of others."""
    option: str
    """Options of the command line that write it."""
    elements: tuple[str, ...] = ()
    """Keywords of further elements that are read."""


@dataclass(frozen=True)
class Source:
    """The header of a DICOM file, and the frame that was scored, from 0."""

    path: Path
    kind: Kind
    """Kind of the instances that refer to it."""
    header: Dataset
    frame: int
    frames: int

    @classmethod
    def open(cls, path: Path, frame: int, kind: Kind) -> Source:
        """Read the header of a file.

        Raises:
            DataError: It is not DICOM, has no such frame, or lacks an element to refer to.
        """
        with read_errors(path, kind):
            header = _read_header(path, kind.elements)
        return cls(path, kind, header, frame, _check_header(header, frame, path, kind))

    @property
    def frame_number(self) -> int | None:
        """Number of the frame, from 1; None if the file has a single one."""
        return self.frame + 1 if self.frames > 1 else None

    def identifiers(self, pixels: NDArray[Any], about: Mapping[str, str]) -> dict[str, Any]:
        """Return UIDs and numbers, with one new series per source series and model."""
        header, digest = self.header, about["digest"]
        series = self.kind.series_number_offset + max(_number(header, "SeriesNumber", 0), 0)
        number = self.frame_number or _number(header, "InstanceNumber", 1)
        content = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        instance = header.SOPInstanceUID, str(self.frame), digest, content
        return {
            "series_instance_uid": self.uid("series", header.SeriesInstanceUID, digest),
            "series_number": min(series, MAX_NUMBER),
            "sop_instance_uid": self.uid("image", *instance),
            "instance_number": min(max(number, 1), MAX_NUMBER),
        }

    def uid(self, *entropy: str) -> UID:
        """Return the UID that belongs to these texts."""
        texts = [self.kind.entropy, *(f"\n{part}" for part in entropy)]
        return generate_uid(entropy_srcs=texts)

    def manufacturer(self, about: Mapping[str, str]) -> dict[str, Any]:
        """Return the elements that name the software and the series."""
        model, version = one_line(about["model"]), one_line(about["version"])
        return {
            "manufacturer": "anomaly-vae",
            "manufacturer_model_name": model[:LONG_STRING],
            "software_versions": __version__,
            "series_description": _series_description(self.kind, model, version),
        }

    def derivation(self, about: Mapping[str, str]) -> str:
        """Return how the instance was made, with the model and its bundle."""
        model, version = one_line(about["model"])[:256], one_line(about["version"])[:64]
        name = f"{model}, version {version}" if version else model
        what = f"{self.kind.name} of model {name}"
        return f"{what} (bundle {about['digest'][:64]}), {DISCLAIMER}"

    def copy(self, image: Dataset, without: Collection[str] = ()) -> None:
        """Copy elements of the source unchanged; text is written in UTF-8."""
        for keyword in COPIED:
            if keyword in self.header and keyword not in without:
                image[keyword] = self.header[keyword]

    def encode(self, image: Any) -> bytes:
        """Return an instance as a file.

        Raises:
            DataError: An element that was copied cannot be written.
        """
        file = io.BytesIO()
        with read_errors(self.path, self.kind):
            image.save_as(file, enforce_file_format=True)
        return file.getvalue()

    def refused(self, reason: str) -> DataError:
        """Return the error of a file that cannot be referred to."""
        return _refused(self.path, self.kind, reason)


@contextmanager
def read_errors(path: Path, kind: Kind) -> Iterator[None]:
    """Replace pydicom's errors by an error that does not quote the source."""
    try:
        yield
    except READ_ERRORS as error:
        refuse_outage(path, error)
        raise _refused(path, kind, "cannot be read as DICOM") from None


def one_line(text: str) -> str:
    """Replace line breaks and backslashes, which separate values in DICOM."""
    return " ".join(text.replace("\\", "/").split())


def _read_header(path: Path, further: Collection[str]) -> Dataset:
    """Read the needed elements and decode them now, as pydicom would do so only on access."""
    tags = [*REQUIRED, *COPIED, *EQUIPMENT, *NUMBERS, *further]
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        force = is_dicom(path)  # the preamble may be missing
        content = gzip.GzipFile(fileobj=file) if packed else file
        header = dcmread(content, stop_before_pixels=True, specific_tags=tags, force=force)
    deque(header.iterall(), maxlen=0)
    return header


def _check_header(header: Dataset, frame: int, path: Path, kind: Kind) -> int:
    """Return the number of frames.

    Raises:
        DataError: An element is missing, or there is no such frame.
    """
    missing = [keyword for keyword in REQUIRED if not _has_single_value(header, keyword)]
    if missing:
        what = f"a {kind.name.split()[-1]}"
        raise _refused(path, kind, f"lacks {', '.join(missing)}, which {what} must refer to")
    if not header.get("Rows"):
        raise _refused(path, kind, "is DICOM without an image")
    frames = max(_number(header, "NumberOfFrames", 1), 1)
    if not 0 <= frame < frames:
        raise _refused(path, kind, f"has {frames} frames, so no frame {frame + 1}")
    return frames


def _refused(path: Path, kind: Kind, reason: str) -> DataError:
    message = f"'{path}' {reason}; mend the file or leave out {kind.option}"
    return DataError(message, path=str(path))


def _has_single_value(header: Dataset, keyword: str) -> bool:
    value = header.get(keyword)
    return isinstance(value, str) and bool(value)


def _number(header: Dataset, keyword: str, default: int) -> int:
    try:
        return int(header.get(keyword) or default)
    except (TypeError, ValueError, ArithmeticError):
        return default


def _series_description(kind: Kind, model: str, version: str) -> str:
    """Describe the series in at most 64 characters, shortening the name of the model."""
    head, tail = f"{kind.name}, {DISCLAIMER}: ", f" v{version}" if version else ""
    return (head + model[: max(LONG_STRING - len(head) - len(tail), 8)] + tail)[:LONG_STRING]
