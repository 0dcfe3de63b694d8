"""Define the parts in which files are read, and how reading is set up and reported."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import validate_config
from anomaly_vae.config.data import CsvConfig, TabularData
from anomaly_vae.config.windows import EntityWindows
from anomaly_vae.errors import ConfigError
from anomaly_vae.features.events import EventReader
from anomaly_vae.types import ColumnType

NUMBERS = (ColumnType.NUMERIC, ColumnType.BINARY)
"""Types of columns whose cells are numbers."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)
"""Errors raised for files that cannot be read."""
Select = Callable[[Sequence[str]], Sequence[str]]
"""Function that selects the needed columns from those of a file."""
CSV_OPTION = "--csv"
"""Option that replaces keys of ``data.csv``."""
ENCODING_REMEDY = (
    "name its encoding in data.csv.encoding (score: --csv encoding=latin-1), or save {} as UTF-8"
)
"""Remedy for text that is not UTF-8; the field is what to save."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one file, with their positions (N,) in the file, counted from 0."""

    path: Path
    rows: NDArray[np.int64]
    table: pa.RecordBatch


@dataclass(frozen=True)
class Broken:
    """Rows that cannot be read; ``rows`` is None if the file's number of rows is unknown."""

    path: Path
    reason: str
    rows: range | None = None
    line: int | None = field(default=None, compare=False)
    """First line of these rows in a text file, counted from 1; None for other files."""

    @property
    def count(self) -> int:
        """Number of rows; a file whose number is unknown counts as one."""
        return 1 if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class Head:
    """The columns of a file and, if the file states it, its number of rows."""

    schema: pa.Schema
    n_rows: int | None
    groups: tuple[int, ...] = ()
    """Number of rows of each row group of a Parquet file."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How text files are read, and notes for the user on what was decided for which files."""

    csv: CsvConfig = field(default_factory=CsvConfig)
    """Form of CSV files."""
    id: str | None = None
    """Column whose cells name rows, and are never missing because of what they say."""
    text: frozenset[str] = frozenset()
    """Columns whose cells are text, even if they look like numbers."""
    numbers: frozenset[str] | None = None
    """Columns whose cells may be numbers; None for all other columns."""
    _files: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _missing: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of_training(cls, data: TabularData) -> Reading:
        """Return how the files of a configuration are read."""
        types = {name: feature.type for name, feature in data.declared.items()}
        text = {name for name, kind in types.items() if kind not in NUMBERS}
        times = [data.time] if data.time else []
        names = _names_of_windows(data.windows, {n for n in data.window_columns if data.reads(n)})
        return cls(data.csv, data.id, frozenset({*text, *data.roles, *times, *names}))

    @classmethod
    def of_model(cls, bundle: Bundle, csv: Mapping[str, Any], score: bool = False) -> Reading:
        """Return how files are read for a model of tables.

        Args:
            bundle: the model.
            csv: keys of `CsvConfig` that differ from the training configuration.
            score: whether only the columns of the model are needed.

        Raises:
            ConfigError: a key or its value is invalid.
        """
        data, columns = bundle.manifest["config"]["data"], bundle.scorer.schema.columns
        numbers = frozenset(c.name for c in columns if c.spec.storage == "number")
        others = {c.name for c in columns} - numbers
        text = others | ({data[key] for key in ("label", "id", "group", "time") if data.get(key)})
        if events := EventReader.of_config(data):
            text |= _names_of_windows(events.definition.windows, numbers)
            numbers |= set(events.definition.numbers)
        form = _csv_config(data.get("csv", {}), csv)
        return cls(form, data.get("id"), frozenset(text), numbers if score else None)

    def may_be_number(self, column: str) -> bool:
        """Return whether the cells of a column may be numbers."""
        return column not in self.text and (self.numbers is None or column in self.numbers)

    def say(self, path: Path, text: str) -> None:
        """Note what was decided for a file; the same decision for several files is one note."""
        if path not in self._files[text]:
            self._files[text].append(path)

    def count_missing(self, column: str, marker: str, count: int) -> None:
        """Count cells of a column that are missing because they hold a marker."""
        self._missing[column][marker] += count

    def separate(self) -> Reading:
        """Return a reading of the same form that collects its own notes."""
        return replace(self, _files=defaultdict(list), _missing=defaultdict(Counter))

    def collected(self) -> dict[str, Any]:
        """Return what the notes are made of as plain JSON values; empty if there are no notes."""
        files = {text: list(map(str, paths)) for text, paths in self._files.items()}
        kept = {"files": files, "missing": {name: dict(c) for name, c in self._missing.items()}}
        return {key: value for key, value in kept.items() if value}

    def absorb(self, collected: Mapping[str, Any]) -> None:
        """Add the notes of another reading, as `collected` returns them."""
        for text, paths in collected.get("files", {}).items():
            for path in paths:
                self.say(Path(path), text)
        for name, counts in collected.get("missing", {}).items():
            self._missing[name].update(counts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on files, then on columns with markers of missing values."""
        return (
            *(f"{_named(files)}: {text}" for text, files in self._files.items()),
            *(f"column '{name}': {_counted(found)}" for name, found in self._missing.items()),
        )


def _names_of_windows(
    windows: Mapping[str, EntityWindows], features: Collection[str]
) -> frozenset[str]:
    """Return columns of windows whose cells are names, unless they are features or numbers too."""
    columns = [column for each in windows.values() for column in each.columns]
    names = {*windows, *(name for key, name in columns if key != "of")}
    return frozenset(names - {name for key, name in columns if key == "of"} - {*features})


def _csv_config(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> CsvConfig:
    """Return the form of CSV files; faults name the option `CSV_OPTION`, which gave them."""
    config = {"name": "x", "data": {"path": "", "csv": {**recorded, **given}}}
    try:
        data = validate_config(config).data
    except ConfigError as error:
        text = str(error).replace("data.csv.", f"{CSV_OPTION} ")
        raise ConfigError(text, key=error.key) from None
    return data.csv if isinstance(data, TabularData) else CsvConfig()


def _named(files: list[Path]) -> str:
    first = str(files[0])
    return first if len(files) == 1 else f"{first} and {len(files) - 1:,} more"


def _counted(found: Counter[str]) -> str:
    markers = ", ".join(f"'{marker}' ({count:,})" for marker, count in found.most_common(5))
    return f"{found.total():,} cells read as missing: {markers}"


MAX_REASON = 200
"""Maximum number of characters of a reason."""
REASONS = {
    "Empty CSV file": "it has no rows",
    "straddling object": "a row is too long, perhaps for want of a closing quote",
    "larger than block size": "its header is too long, perhaps for want of a closing quote",
    "invalid UTF": "it is not UTF-8 text; save it as UTF-8",
    "no decryption found": "it is encrypted; decrypt it first",
    "decrypt": "it is encrypted; decrypt it first",
    "smaller than the minimum file footer": "it is not Parquet, or was cut short",
    "size reported by footer": "its footer is damaged; write the file again",
    "deserialize thrift": "its footer is damaged; write the file again",
    "Parquet magic bytes not found": "it is not Parquet, or was cut short",
    "Truncated compressed stream": "its compressed content was cut short; copy it again",
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": "the store denies access",
    "INVALID_ACCESS_KEY_ID": "the store does not know the access key",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not belong to the access key",
    "EXPIRED_TOKEN": "the credentials have expired",
    "NETWORK_CONNECTION": "the store cannot be reached",
    "OAuth2 access token": "there are no credentials for the store",
}
"""Explanation of a library's error message, by a part of the message."""


def first_line(error: BaseException) -> str:
    """Return the explanation of an exception, or its text as one short line."""
    if isinstance(error, OSError) and error.strerror:
        return _without_place(error.strerror)
    text = str(error).strip() or type(error).__name__
    matches = (reason for part, reason in REASONS.items() if part.lower() in text.lower())
    return next(matches, _shortened(text.splitlines()[0]))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"


def _without_place(reason: str) -> str:
    """Return the reason of the system, without Arrow's words on where it occurred.

    >>> _without_place("Error writing bytes to file. Detail: [errno 28] No space left on device")
    'No space left on device'
    """
    match = re.search(r"Detail: \[errno \d+\] (.+)", reason)
    return match[1] if match else reason


def refuse_duplicates(names: list[str]) -> None:
    """Refuse columns of the same name.

    Raises:
        ValueError: a name appears more than once.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column '{twice[0]}' appears more than once; rename one of them")
