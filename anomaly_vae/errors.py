"""What can go wrong, and what the message must say.

    AnomalyVAEError
    ├── ConfigError         a configuration that cannot be used: the key and the remedy
    ├── DataError           input that cannot be used: the place and the remedy
    │   └── RecordError     one record of a request: its index and its field
    ├── TrainingError       a fit that diverged
    ├── ExportError         a scoring graph that disagrees with the model it came from
    ├── CalibrationError    a promise that the calibration sample cannot keep
    │   └── NotCalibratedError   a model without a threshold where one is needed
    ├── BundleError         a bundle that is incomplete, altered or of another format
    └── RegistryError       a model that cannot be found in, or fetched from, the registry

Each message is one line that names what and how to mend it. Configuration, data and calibration
errors are also ``ValueError``s, which is what users of scikit-learn catch. Nothing here knows of
HTTP.
"""

from __future__ import annotations


class AnomalyVAEError(Exception):
    """Root of everything this project raises on purpose."""


class ConfigError(AnomalyVAEError, ValueError):
    """A configuration that cannot be used."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class DataError(AnomalyVAEError, ValueError):
    """Input that cannot be used, with the column and the file where they are known."""

    def __init__(self, message: str, *, column: str | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.column = column
        self.path = path


class RecordError(DataError):
    """One record that cannot be scored: ``record`` is its index, ``field`` the key."""

    def __init__(self, record: int, field: str | None, reason: str) -> None:
        where = f"record {record}" + (f", field '{field}'" if field else "")
        super().__init__(f"{where}: {reason}", column=field)
        self.record = record
        self.field = field
        self.reason = reason


class TrainingError(AnomalyVAEError):
    """A fit that diverged."""


class ExportError(AnomalyVAEError):
    """A scoring graph that disagrees with the model it was made from."""


class CalibrationError(AnomalyVAEError, ValueError):
    """A promise that the calibration sample cannot keep."""


class NotCalibratedError(CalibrationError):
    """A model without a threshold where one is needed."""


class BundleError(AnomalyVAEError):
    """A bundle that is incomplete, altered or of another format."""


class RegistryError(AnomalyVAEError):
    """A model that cannot be found in, or fetched from, the registry.

    ``missing`` says that the registry answered, and has no such model, alias or version.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
