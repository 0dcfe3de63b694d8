"""Define the errors that this project raises on purpose.

    AnomalyVAEError
    ├── ConfigError         the configuration cannot be used
    ├── DataError           input cannot be used
    │   └── RecordError     one record of a request cannot be scored
    ├── TrainingError       the fit diverged
    ├── ExportError         a scoring graph disagrees with the model it was exported from
    ├── CalibrationError    the calibration sample does not suffice for the threshold
    │   └── NotCalibratedError   a model has no threshold, and one is needed
    ├── BundleError         a bundle is incomplete, altered or of another format
    ├── RegistryError       a model is not in the registry, or cannot be fetched from it
    ├── StoreError          a label store cannot be used
    └── WindowStoreError    the store of past events cannot be used

Each message is one line that names the fault and its remedy. Errors of configuration, data and
calibration are ``ValueError``s, too, as users of scikit-learn expect.
"""

from __future__ import annotations

from anomaly_vae.masking import masked

__all__ = [
    "AnomalyVAEError",
    "BundleError",
    "CalibrationError",
    "ConfigError",
    "DataError",
    "ExportError",
    "NotCalibratedError",
    "RecordError",
    "RegistryError",
    "StoreError",
    "TrainingError",
    "WindowStoreError",
]


class AnomalyVAEError(Exception):
    """Base class of all errors that this project raises on purpose."""


class ConfigError(AnomalyVAEError, ValueError):
    """A configuration that cannot be used.

    Attributes:
        key: dotted configuration key at fault, None if there is no single one.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class DataError(AnomalyVAEError, ValueError):
    """Input that cannot be used.

    Attributes:
        column: name of the column at fault, None if unknown.
        path: path of the file at fault, None if unknown.
    """

    def __init__(self, message: str, *, column: str | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.column = column
        self.path = path


class RecordError(DataError):
    """One record of a request that cannot be scored.

    Attributes:
        record: index of the record in the request, from 0.
        field: key at fault, None if the whole record is.
        reason: fault and remedy.
    """

    def __init__(self, record: int, field: str | None, reason: str) -> None:
        where = f"record {record}" + (f", field '{field}'" if field else "")
        super().__init__(f"{where}: {reason}", column=field)
        self.record = record
        self.field = field
        self.reason = reason


class TrainingError(AnomalyVAEError):
    """A fit that diverged."""


class ExportError(AnomalyVAEError):
    """A scoring graph that disagrees with the model it was exported from."""


class CalibrationError(AnomalyVAEError, ValueError):
    """A calibration sample that does not suffice for the threshold."""


class NotCalibratedError(CalibrationError):
    """A model without a threshold, used where one is needed."""


class BundleError(AnomalyVAEError):
    """A bundle that is incomplete, altered or of another format."""


class RegistryError(AnomalyVAEError):
    """A model that is not in the registry, or cannot be fetched from it.

    The message never contains the password of an address.

    Attributes:
        missing: whether the registry answered that it has no such model, alias or version.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(masked(message))
        self.missing = missing


class WindowStoreError(AnomalyVAEError):
    """A store of past events that cannot be used.

    The message never contains the password of an address.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class StoreError(AnomalyVAEError):
    """A label store that is absent, cannot be reached, or was written by a newer version.

    The message never contains the password of an address.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))
