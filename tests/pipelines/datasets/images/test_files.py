"""Entries of an input, and why some are left out."""

from __future__ import annotations

from pathlib import Path

from anomaly_vae.images.schema import ImageSchema
from pipelines.datasets.images.files import MAX_REASONS, ImageFile, Reasons, is_dicom

SCHEMA = ImageSchema(16, 1)


def test_many_reasons_are_a_few_lines() -> None:
    reasons = Reasons([ImageFile.from_path(Path(f"{i}"), f"reason {i % 11}") for i in range(30)])
    *lines, last = reasons.lines()
    assert len(lines) == MAX_REASONS
    assert last == "and 6 more for 3 other reasons"
    assert reasons.counts.total() == 30


def test_dicom_is_told_by_its_content(tmp_path: Path) -> None:
    """A DICOM file without a preamble is recognised by its first element."""
    dicom, bare, other = tmp_path / "one", tmp_path / "two", tmp_path / "three.dcm"
    dicom.write_bytes(bytes(128) + b"DICM" + bytes(10))
    bare.write_bytes(b"\x08\x00\x05\x00" + bytes(200))
    other.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert is_dicom(dicom)
    assert is_dicom(bare)
    assert not is_dicom(other)
