"""Describe the files of an input, and tell why one is no image by its kind and first bytes."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anomaly_vae.images.formats import HEAD_BYTES, recognise_format, refusal
from pipelines import console
from pipelines.datasets.files import SUFFIXES
from pipelines.datasets.reading.objects import ObjectPath, refuse_outage
from pipelines.datasets.reading.parts import first_line
from pipelines.datasets.reading.plain_text import unpacked_name

PATH, FRAME, LABEL, ID, MASK = "path", "frame", "label", "id", "mask"
"""Columns of a manifest and of results."""
DEFECT, SPLIT = "defect", "split"
"""Columns of images whose folders name their defect and their split."""
MAX_NAMES = 3
"""Maximum number of files that a message names for each reason."""
MAX_REASONS = 8
"""Maximum number of reasons, each on its own line, that are printed."""
KINDS = {
    stat.S_IFDIR: "a folder; list its files, or give the folder itself",
    stat.S_IFIFO: "a pipe; give the path of an image file",
    stat.S_IFSOCK: "a socket; give the path of an image file",
    stat.S_IFCHR: "a device; give the path of an image file",
    stat.S_IFBLK: "a device; give the path of an image file",
}
"""Kinds of paths that are no files, and what to do."""
UNREACHABLE = {
    errno.ENOENT: "there is no such file; check its path",
    errno.ENOTDIR: "there is no such file; check its path",
    errno.ELOOP: "it is a link that leads in a circle; mend the link",
    errno.EACCES: "it cannot be opened: permission denied; change its permissions",
}
"""Explanation of why a path leads to no file, by error number."""
TABLE = "it is a table and no image; to use it as a manifest, give the file itself"
DICOMDIR = "a DICOMDIR lists other files and holds no image; give its folder"


@dataclass(frozen=True)
class ImageFile:
    """A file of an input: its path, its name in outputs, and its manifest row, if any."""

    path: Path
    """Path of the file; for a row of a manifest that names none, the path of the manifest."""
    name: str
    """Name in outputs; empty for a row that names no file."""
    attributes: Mapping[str, str | None]
    """Other cells of the manifest row; empty without a manifest."""
    problem: str | None = None
    """Reason why the file is not read; None for a file to read."""
    row: int | None = None
    """Position of the row in its manifest, from 0; None without a manifest."""
    place: str = ""
    """Line or row of the manifest and its name, for messages."""
    fatal: bool = False
    """Whether training refuses an input with this problem."""
    mask: Path | None = None
    """File of the pixels that count, for a model with `data.mask: own`; None if none is named."""

    @classmethod
    def from_path(cls, path: Path, problem: str | None = None, fatal: bool = False) -> ImageFile:
        """Create the entry of a file without a manifest; invalid bytes of its name are escaped."""
        name = os.fsencode(path).decode(errors="backslashreplace")
        return cls(path, name, {}, problem, fatal=fatal)

    @property
    def is_new(self) -> bool:
        """Whether this is a file, and not a row that names none or one that is listed before."""
        return self.row is None or bool(self.name and not self.fatal)

    @property
    def key(self) -> tuple[str, int | None]:
        """Key that equals that of another entry if both are the same file."""
        return file_key(self.path), None if self.is_new else self.row

    @property
    def label(self) -> str:
        """Name in messages, on one line."""
        return repr(self.path.name) if self.name else self.place


class Reasons:
    """Files that are left out, counted by reason, with a few names for each reason."""

    def __init__(self, files: Sequence[ImageFile] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        for file in files:
            self.add(file, file.problem or "")

    def add(self, file: ImageFile, reason: str) -> None:
        """Count a file, or one of its frames."""
        self.counts[reason] += 1
        names = self._names.setdefault(reason, [])
        if len(names) < MAX_NAMES:
            names.append(file.label)

    def lines(self) -> Iterator[str]:
        """Yield a line for each of the most frequent reasons, and one for all others."""
        for reason, count in self.counts.most_common(MAX_REASONS):
            names = self._names[reason]
            more = f" and {count - len(names):,} more" if count > len(names) else ""
            yield f"{count:,} left out: {reason} ({', '.join(names)}{more})"
        others = [count for _, count in self.counts.most_common()[MAX_REASONS:]]
        if others:
            yield f"and {sum(others):,} more for {len(others):,} other reasons"

    def show(self) -> None:
        """Print the lines."""
        for line in self.lines():
            console.info(line)


def file_key(path: Path) -> str:
    """Return the absolute path of a file, without following links, to detect duplicates."""
    if isinstance(path, ObjectPath):
        return str(path)
    short = os.path.abspath(path)  # noqa: PTH100 removes "..", which `Path.absolute` keeps
    with suppress(OSError, ValueError):  # nothing is there: only the paths can be compared
        if ".." in path.parts and not path.samefile(short):  # ".." after a link
            return str(path.absolute())
    return short


def path_problem(path: Path) -> str | None:
    """Return why a path leads to no image, judged by its kind and the first bytes of its content.

    None is returned for an image. Only regular files are opened, since a pipe might never answer.

    Raises:
        OutageError: the object store of the path does not answer.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            return f"it is no file but {KINDS.get(kind, 'something else; give an image file')}"
        with path.open("rb") as file:
            return _content_problem(path.name.lower(), file.read(HEAD_BYTES))
    except ValueError:
        return "a path cannot hold a zero byte"
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            return "it is a link that leads nowhere; mend the link"
        refuse_outage(path, error)
        other = f"it cannot be opened: {first_line(error)}; check its path"
        return UNREACHABLE.get(error.errno or 0, other)


def _content_problem(name: str, head: bytes) -> str | None:
    if not head:
        return "the file is empty; copy it again"
    if recognise_format(head) is None:
        return TABLE if is_table_name(name) else refusal(head)
    return DICOMDIR if name == "dicomdir" else None


def is_table_name(name: str) -> bool:
    """Return whether a file has the name of a table, which may be compressed."""
    return unpacked_name(name).endswith(SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Return whether the content of a file is DICOM, perhaps without its preamble or in gzip."""
    with path.open("rb") as stream:
        return recognise_format(stream.read(HEAD_BYTES)) in {"DICOM", "DICOM in gzip"}
