"""Write heatmaps as DICOM secondary captures, which a PACS files with the scan they explain.

A heatmap shows three enlarged panels and has no position in the patient's space. It is therefore a
Secondary Capture Image; `dicom_maps` writes maps with a position. No elements of the source are
written except those that are copied (`dicom_source`) and those that the standard requires. For UIDs
and bytes to depend only on source, model and pixels, the instance holds no creation time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from pipelines.batch.images.dicom_source import EQUIPMENT, TIMES, Kind, Source, silenced

HEATMAP = Kind("Anomaly heatmap", 9000, "anomaly-vae heatmap", "--dicom-out")
WORKSTATION = "WSD"
"""Conversion type of images that software makes (PS3.3 C.8.6.1)."""


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
    with silenced():
        opened = Source.open(source, frame, HEATMAP)
        image = _secondary_capture(opened, overlay, about)
        image.PatientOrientation = []
        opened.copy(image)
        _add_references(opened, image)
        return opened.encode(image)


def _secondary_capture(
    source: Source, overlay: NDArray[np.uint8], about: Mapping[str, str]
) -> SCImage:
    """Build the instance from pixels, identifiers and the source's study and equipment."""
    image = SCImage.from_ref_dataset(
        _reference(source.header),
        np.ascontiguousarray(overlay),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # required here; replaced by that of the source
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        **source.identifiers(overlay, about),
        **source.manufacturer(about),
    )
    image.DerivationDescription = source.derivation(about)
    image.ConversionType = WORKSTATION
    image.BurnedInAnnotation = "YES"
    for keyword in TIMES:
        image.pop(keyword, None)
    del image.ContributingEquipmentSequence[-1].ContributionDateTime  # added by highdicom
    return image


def _reference(header: Dataset) -> Dataset:
    """Return the elements for highdicom, without those of the patient, which it may refuse."""
    reference = Dataset()
    for keyword in ("SOPClassUID", "StudyInstanceUID", *EQUIPMENT):
        if keyword in header:
            reference[keyword] = header[keyword]
    return reference


def _add_references(source: Source, image: SCImage) -> None:
    """Add the modules General Reference and Common Instance Reference (PS3.3 C.12.4, C.12.2)."""
    header = source.header
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
    if source.frame_number is not None:
        origin.ReferencedFrameNumber = source.frame_number
    origin.SpatialLocationsPreserved = "NO"
    origin.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    image.SourceImageSequence = [origin]
