"""Make image files and multipart forms as clients send them, valid and invalid."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

Grey = NDArray[np.uint8]

BOUNDARY = b"B"
FORM = {"Content-Type": "multipart/form-data; boundary=B"}


def image_file(image: Grey, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image (H, W) or (H, W, 3) in a format that Pillow writes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff_file(images: Iterable[Grey]) -> bytes:
    """Encode images as pages of a TIFF."""
    first, *others = map(Image.fromarray, images)
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def nifti_file(images: Grey) -> bytes:
    """Encode N axial slices as a gzipped NIfTI volume."""
    volume = np.moveaxis(images[:, ::-1, ::-1], 0, -1).swapaxes(0, 1).astype(np.int16)
    return gzip.compress(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())


def dicom_file(images: Grey) -> bytes:
    """Encode N 8-bit frames as DICOM, with the name and ID of a patient."""
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID = "MALLORY^MEG", "mallory-1"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    dataset.Rows, dataset.Columns = images.shape[1:]
    dataset.NumberOfFrames = len(images)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
    dataset.PixelData = images.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """Make an 8-bit grey PNG with this size in its header and this data, compressed."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def part(content: bytes, disposition: bytes = b'form-data; name="files"') -> bytes:
    """Make a part of a form, from its boundary to the end of its content."""
    return b"--B\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (disposition, content)


def form(*parts: bytes) -> bytes:
    """Join parts to the body of a form."""
    return b"".join(parts) + b"--B--\r\n"


def uploads(contents: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Return files as the test client takes them."""
    return [("files", (f"{number}.bin", content)) for number, content in enumerate(contents)]
