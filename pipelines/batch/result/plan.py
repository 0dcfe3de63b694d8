"""Plan a run: its model, options and input files, and the units of work that these make.

The plan is made before anything is scored and does not depend on the number of workers or on the
engine. It is stored in the output folder. Each later run compares it with its own, so that the
parts of a result always come from the same model, options and files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from anomaly_vae.errors import DataError
from anomaly_vae.messages import printable

FORMAT = 1
"""Format of stored plans; a plan of another format is not continued.

It changes whenever the same rows would make other parts.
"""


HISTORY = "--history"
"""Option whose value is a list of files."""


class Input(NamedTuple):
    """A file of the input, as it was when the run began."""

    name: str
    bytes: int
    """Size of the file; -1 for a path that leads to no file."""
    modified_ns: int
    """Time of the last change, in nanoseconds since 1970."""
    rows: int | None
    """Number of rows; None if only reading the file tells."""
    detail: str = ""
    """Digest of what else the result contains of this file, such as its id in a manifest."""


class Place(NamedTuple):
    """A boundary in the input: before a row group of a file, or before the file itself."""

    file: int
    """Index of the file."""
    group: int = 0
    """Index of the row group in a Parquet file; 0 for other files."""


@dataclass(frozen=True)
class Unit:
    """Consecutive files and row groups that one worker reads in order."""

    first: Place
    end: Place
    """The place behind the last row."""

    @property
    def files(self) -> Iterator[tuple[int, slice]]:
        """Index of each file, and the row groups to read of it.

        >>> list(Unit(Place(0, 2), Place(2, 1)).files)
        [(0, slice(2, None, None)), (1, slice(0, None, None)), (2, slice(0, 1, None))]
        """
        last = self.end.file + (self.end.group > 0)
        return ((file, self._groups(file)) for file in range(self.first.file, last))

    def _groups(self, file: int) -> slice:
        start = self.first.group if file == self.first.file else 0
        return slice(start, self.end.group if file == self.end.file else None)


class Piece(NamedTuple):
    """An indivisible amount of input, such as a row group, with its share of a unit's limit."""

    start: Place
    share: float


def cut(pieces: Sequence[Piece], end: Place, in_order_from: int | None = None) -> list[Unit]:
    """Combine consecutive pieces to units with shares of at least 1 in total.

    Args:
        pieces: all pieces in order.
        end: the place behind the last one.
        in_order_from: index of the file from which on all files belong to one unit, because a
            row's position is only known once the rows before it are read; None if there is none.

    >>> pieces = [Piece(Place(file), 0.5) for file in range(4)]
    >>> [(unit.first.file, unit.end.file) for unit in cut(pieces, Place(4))]
    [(0, 2), (2, 4)]
    >>> [(unit.first.file, unit.end.file) for unit in cut(pieces, Place(4), in_order_from=1)]
    [(0, 1), (1, 4)]
    """
    starts: list[Place] = []
    total = 1.0
    for start, share in pieces:
        apart = in_order_from is None or start.file < in_order_from
        if (apart and total >= 1) or start == (in_order_from, 0):
            starts.append(start)
            total = 0.0
        total += share
    return [Unit(*pair) for pair in zip(starts, [*starts[1:], end], strict=True)]


@dataclass(frozen=True)
class Plan:
    """Model, options and files of a run."""

    model: Mapping[str, Any]
    """URI, name, version, alias and digest of the model."""
    options: Mapping[str, Any]
    """Options that affect the result, by their names on the command line."""
    inputs: tuple[Input, ...]
    units: tuple[Unit, ...]
    pipe: str | None = None
    """A pipe among the inputs, which cannot be read again."""

    @property
    def digest(self) -> str:
        """Digest of the plan, which the records of its parts contain."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def _text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, allow_nan=False)

    def to_bytes(self) -> bytes:
        """Return the plan as it is stored."""
        return f"{self._text()}\n".encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self | None:
        """Read a stored plan; None if it has another format."""
        try:
            return cls._of(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Self | None:
        if found.pop("format") != FORMAT:
            return None
        inputs = tuple(Input(*item) for item in found.pop("inputs"))
        units = tuple(Unit(Place(*u["first"]), Place(*u["end"])) for u in found.pop("units"))
        return cls(**found, inputs=inputs, units=units)

    def difference(self, other: Plan) -> str | None:
        """Return how another run of the same folder differs from this one; None if it does not.

        The units are not compared: the stored ones are used.
        """
        if self.model["digest"] != other.model["digest"]:
            return f"by {_model(self.model)}, and not by {_model(other.model)}"
        for name in {**self.options, **other.options}:
            if (before := self.options.get(name)) != (now := other.options.get(name)):
                if name == HISTORY:
                    return f"with other files or other contents of {name}"
                return f"{_given(name, before)}, and not {_given(name, now)}"
        if self.pipe or other.pipe:
            return f"of '{self.pipe or other.pipe}', a pipe, which cannot be read a second time"
        return _changed_file(self.inputs, other.inputs)


def _model(model: Mapping[str, Any]) -> str:
    version = f" version {model['version']}" if model["version"] else ""
    return f"model '{model['name']}'{version} ({model['digest'][:12]})"


def _given(name: str, value: Any) -> str:
    """Return how an option was given, in words."""
    if value is None or value is False:
        return f"without {name}"
    if value is True:
        return f"with {name}"
    return f"with {name} {value if isinstance(value, str) else json.dumps(value)}"


def _changed_file(before: Sequence[Input], now: Sequence[Input]) -> str | None:
    """Return which file was changed, added or removed; None if all are the same, in order."""
    if tuple(before) == tuple(now):
        return None
    old, new = Counter(before), Counter(now)
    added, removed = new - old, old - new
    names = {item.name for item in added} & {item.name for item in removed}
    kinds = {"changed": names, "added": _names(added), "removed": _names(removed)}
    for kind, items in kinds.items():
        if items:
            return f"of other files: '{printable(min(items))}' was {kind} since"
    return "of the same files in another order"


def _names(items: Counter[Input]) -> set[str]:
    """Return the names of files."""
    return {item.name for item in items}


def input_of(path: Path, rows: int | None, name: str | None = None, detail: str = "") -> Input:
    """Return the entry of a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return Input(name or str(path), -1, 0, rows, detail)
    return Input(name or str(path), status.st_size, status.st_mtime_ns, rows, detail)


def check_same(output: Path, stored: Plan, plan: Plan) -> None:
    """Check that a run may continue, or find finished, the result in its folder.

    Raises:
        DataError: the model, an option or a file differs.
    """
    if difference := stored.difference(plan):
        raise DataError(
            f"--output '{output}' holds a result {difference}; choose another folder, or add "
            "--restart, which replaces it"
        )
