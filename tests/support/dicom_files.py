"""DICOM files that come with pydicom, and changed copies of them."""

import warnings
from pathlib import Path

from pydicom import config, dcmread
from pydicom.data import get_testdata_file


def shipped(name: str) -> Path:
    """Return the path of a file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"pydicom does not ship {name} any more"
    return Path(path)


def changed(folder: Path, name: str = "CT_small.dcm", **values: object) -> Path:
    """Write a shipped file with other values to a folder; None removes an attribute."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        image = dcmread(shipped(name))
        for keyword, value in values.items():
            if value is None:
                del image[keyword]
            else:
                setattr(image, keyword, value)
        image.save_as(folder / "source.dcm")
    return folder / "source.dcm"
