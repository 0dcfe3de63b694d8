"""Score files into a folder of results.

The choices that the command line offers are here, where naming them loads no library.
"""

from enum import StrEnum

__all__ = ["Engine", "ExplainedRows", "Format", "MapFormat", "Period"]


class Engine(StrEnum):
    """An engine that scores a batch."""

    LOCAL = "local"
    RAY = "ray"


class Format(StrEnum):
    """A format of result files."""

    PARQUET = "parquet"
    CSV = "csv"


class Period(StrEnum):
    """A period by which rows are ranked."""

    DAY = "day"


class ExplainedRows(StrEnum):
    """The rows that are explained."""

    FLAGGED = "flagged"
    ALL = "all"


class MapFormat(StrEnum):
    """A format of maps in the pixels of the files that they are of."""

    NIFTI = "nifti"
    NPY = "npy"
    TIFF = "tiff"
    DICOM = "dicom"
    DICOM_SEG = "dicom-seg"

    @property
    def is_dicom(self) -> bool:
        """Whether the maps are instances of a DICOM study, so that only DICOM images have them."""
        return self in (MapFormat.DICOM, MapFormat.DICOM_SEG)
