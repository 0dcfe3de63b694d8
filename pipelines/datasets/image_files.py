"""Find and read image files."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import stat
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.images.decoding import HEAD_BYTES, read_file, recognise_format, refusal
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageBatch, ImageSchema, image_batch
from anomaly_vae.messages import listed
from pipelines import console
from pipelines.datasets.files import SUFFIXES, heads_by_file, read_chunks
from pipelines.datasets.parts import Broken, Chunk
from pipelines.datasets.plain_text import PACKED_SUFFIXES

PATH, FRAME, LABEL, ID = "path", "frame", "label", "id"


BATCH_SIZE = 64
"""Number of images scored at a time."""
MAX_NAMES = 3
"""Maximum number of files that a message names for each reason."""
MAX_REASONS = 8
"""Maximum number of reasons, each on its own line, that are printed."""
NO_IMAGES = {
    b"PK\3\4": "it is a ZIP archive; unpack it and give the folder",
    b"PK\5\6": "it is a ZIP archive; unpack it and give the folder",
    b"Rar!": "it is a RAR archive; unpack it and give the folder",
    b"7z\xbc\xaf": "it is a 7z archive; unpack it and give the folder",
    b"%PDF": "it is a PDF document and no image; export its images",
}
"""First bytes of files that are often found among images, and what to do with them."""
TAR = "it is a tar archive; unpack it and give the folder"
TAR_MAGIC = slice(257, 262)
"""Position of the text ``ustar`` in a tar archive."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Suffixes of tar archives, in lower case."""
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
        return _file_key(self.path), None if self.is_new else self.row

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


@dataclass(frozen=True)
class Batch:
    """Consecutive images with their files and frames."""

    files: tuple[int, ...]
    """Index of the file of each image."""
    frames: tuple[int | None, ...]
    """Frame of each image in its file, from 0; None for a file that cannot be read at all."""
    images: ImageBatch


def find_images(paths: Sequence[str]) -> list[ImageFile]:
    """Return the images of `images_and_others`, and print which files are left out."""
    images, others = images_and_others(paths)
    others.show()
    return images


def images_and_others(paths: Sequence[str]) -> tuple[list[ImageFile], Reasons]:
    """Find the images to train on or to evaluate, and the other files.

    Rows of manifests are images, even if their files cannot be read.

    Raises:
        DataError: There is no image, a folder cannot be searched or a manifest cannot be used.
    """
    files = list_files(paths)
    fatal = next((file for file in files if file.fatal), None)
    if fatal is not None:
        where = f"{fatal.place}: '{fatal.name}'" if fatal.place else f"'{fatal.name}'"
        raise DataError(f"{where}: {fatal.problem}", path=str(fatal.path))
    others = Reasons([file for file in files if file.problem and file.row is None])
    images = [file for file in files if not file.problem or file.row is not None]
    if not images:
        raise DataError(
            f"{listed(paths)}: no image is there; {next(others.lines())}", path=paths[0]
        )
    return images, others


def list_files(paths: Sequence[str]) -> list[ImageFile]:
    """List every file behind files, folders (searched recursively), globs and manifests, once.

    Only the first bytes of a file are read, which decide whether it is an image, whatever its name.
    Files that are not images, hidden files and rows of a manifest without a file have a problem.

    Raises:
        DataError: A path leads to no file, or a manifest cannot be read.
    """
    found: dict[tuple[str, int | None], ImageFile] = {}
    for path in paths:
        files = list(_expand(path))
        if not files:
            raise DataError(f"'{path}': no image is there", path=path)
        for file in files:
            known = found.get(key := file.key)
            if known is None or known.row is None:  # prefer the entry of a manifest
                found[key] = file
    return list(found.values())


def _file_key(path: Path) -> str:
    """Return the absolute path of a file, without following links, to detect duplicates."""
    short = os.path.abspath(path)  # noqa: PTH100 removes "..", which `Path.absolute` keeps
    with suppress(OSError, ValueError):  # nothing is there: only the paths can be compared
        if ".." in path.parts and not path.samefile(short):  # ".." after a link
            return str(path.absolute())
    return short


def _expand(pattern: str) -> Iterator[ImageFile]:
    path = Path(pattern)
    if _is_table_name(pattern) and os.path.isfile(path):  # noqa: PTH113 never raises
        yield from _read_manifest(path)
    elif os.path.lexists(path):
        yield from _list(path)
    else:
        for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 absolute ones too
            yield from _list(Path(name))


def _is_table_name(name: str) -> bool:
    """Return whether a file has the name of a table, which may be compressed."""
    name = name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return name.endswith(SUFFIXES)


def _list(path: Path) -> Iterator[ImageFile]:
    """Yield the files of a folder, or the file itself."""
    if os.path.isdir(path):  # noqa: PTH112 never raises
        yield from _search(path)
    else:
        yield ImageFile.from_path(path, _problem(path))


# ---------------------------------------------------------------- folders


def _search(root: Path) -> Iterator[ImageFile]:
    """Yield all files of a folder at any depth, in order, and the folders that stay closed."""
    closed: list[OSError] = []
    for path in sorted(_walk(root, closed)):
        yield ImageFile.from_path(path, _hidden(root, path) or _problem(path))
    for error in closed:
        path = Path(error.filename)
        hidden = _hidden(root, path)
        reason = f"the folder cannot be searched: {error.strerror}; change its permissions"
        yield ImageFile.from_path(path, hidden or reason, fatal=not hidden)


def _walk(root: Path, closed: list[OSError]) -> Iterator[Path]:
    """Yield the files of a folder; links are followed, but no folder is visited twice."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(root, onerror=closed.append, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort(key=partial(_links_last, parent))
        yield from (Path(parent, name) for name in files)


def _links_last(parent: str, name: str) -> tuple[bool, str]:
    return Path(parent, name).is_symlink(), name


def _hidden(root: Path, path: Path) -> str | None:
    """Return the problem of a file that is hidden in the searched folder ``root``."""
    *folders, name = path.parts[len(root.parts) :] or ("",)
    inside = next((folder for folder in folders if folder.startswith(".")), None)
    if inside:
        return f"it lies in the hidden folder {inside!r}; move it or give that folder itself"
    return "it is a hidden file; rename it or give the file itself" if name[:1] == "." else None


def _problem(path: Path) -> str | None:
    """Return why a path leads to no image, judged by its kind and the first bytes of its content.

    None is returned for an image. Only regular files are opened, since a pipe might never answer.
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
        other = f"it cannot be opened: {error.strerror}; check its path"
        return UNREACHABLE.get(error.errno or 0, other)


def _content_problem(name: str, head: bytes) -> str | None:
    if recognise_format(head) is None:
        return _no_image(name, head)
    if name.endswith(TAR_SUFFIXES):  # gzip, as NIfTI files are
        return TAR
    return "a DICOMDIR lists other files and holds no image" if name == "dicomdir" else None


def _no_image(name: str, head: bytes) -> str:
    for start, reason in NO_IMAGES.items():
        if head.startswith(start):
            return reason
    if not head:
        return "the file is empty; copy it again"
    if head[TAR_MAGIC] == b"ustar" or name.endswith(TAR_SUFFIXES):
        return TAR
    if _is_table_name(name):
        return "it is a table and no image; to use it as a manifest, give the file itself"
    if _is_text(head):
        return "it is text and no image"
    return refusal(head)


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are UTF-8 text, of which a character may be cut."""
    try:
        return b"\0" not in head and bool(getincrementaldecoder("utf-8")().decode(head))
    except UnicodeDecodeError:
        return False


# ---------------------------------------------------------------- manifests


def _read_manifest(manifest: Path) -> Iterator[ImageFile]:
    """Read a manifest with one row for each file; paths are relative to the manifest."""
    _check_columns(manifest)
    seen: dict[str, ImageFile] = {}
    for file in _manifest_rows(manifest):
        first = seen.setdefault(_file_key(file.path), file) if file.name else file
        yield file if first is file else _repeated(file, first)


def _manifest_rows(manifest: Path) -> Iterator[ImageFile]:
    for part in read_chunks([manifest]):
        yield from _broken_rows(part) if isinstance(part, Broken) else _rows(part)


def _repeated(file: ImageFile, first: ImageFile) -> ImageFile:
    again = f"it is listed a second time, after {first.place}; keep one of its rows"
    return replace(file, problem=again, fatal=True)


def _check_columns(manifest: Path) -> None:
    head = heads_by_file([manifest]).get(manifest)
    if head is not None and PATH not in head.schema.names:
        found = f"'{manifest}': a manifest needs a column 'path', found {listed(head.schema.names)}"
        raise DataError(f"{found}; the model scores images", path=str(manifest))


def _broken_rows(part: Broken) -> Iterator[ImageFile]:
    """Yield the rows that cannot be read."""
    if part.rows is None:
        reason = f"'{part.path}' cannot be read as a manifest: {part.reason}"
        raise DataError(reason, path=str(part.path))
    return (
        ImageFile(part.path, "", {}, part.reason, row, _place(part.path, row)) for row in part.rows
    )


def _rows(part: Chunk) -> Iterator[ImageFile]:
    cells = zip(part.rows.tolist(), part.table.to_pylist(), strict=True)
    return (_entry(part.path, row, record) for row, record in cells)


def _entry(manifest: Path, row: int, record: dict[str, object]) -> ImageFile:
    attributes = {column: _text(value) for column, value in record.items()}
    cell = attributes.pop(PATH) or ""
    name = cell if cell.strip() else ""
    path, problem = _target(manifest, name)
    return ImageFile(path, name, attributes, problem, row, _place(manifest, row))


def _target(manifest: Path, name: str) -> tuple[Path, str | None]:
    """Return the path that a cell names and, if it leads to no image, why."""
    if not name:
        return manifest, "the path is empty; fill it in"
    if "://" in name:
        return manifest.parent / name, "it is a URL; copy the file here and list its path"
    path = _resolved(manifest.parent, name)
    return path, _problem(path)


def _place(manifest: Path, row: int) -> str:
    """Return the position of a row for messages: the line of a text file, else the row from 0."""
    if manifest.suffix.lower() in (".parquet", ".pq"):
        return f"row {row} of {manifest.name!r}"
    header = manifest.suffix.lower() not in (".jsonl", ".ndjson")
    return f"line {row + 1 + header} of {manifest.name!r}"


def _text(value: object) -> str | None:
    """Return a cell as text; numbers are written as labels are."""
    return value if isinstance(value, str) else level_name(value)


def _resolved(folder: Path, name: str) -> Path:
    """Return the path that a cell means.

    If nothing is there, blanks around it are ignored and Windows' separators are understood.
    """
    lenient = name.strip().replace("\\", "/")
    exact = lenient == name or os.path.lexists(folder / name)
    return folder / (name if exact else lenient)


# ---------------------------------------------------------------- reading


def read_images(files: Sequence[ImageFile], schema: ImageSchema) -> Iterator[Batch]:
    """Yield batches of the images in all files, in order; unreadable images become problems."""
    numbers: list[int] = []
    frames: list[int | None] = []

    def take_batch() -> Iterator[DecodedImage | DecodeFailure]:
        """Yield the images of one batch, each released before the next is decoded."""
        for number, image in itertools.islice(images, BATCH_SIZE):
            numbers.append(number)
            frames.append(image.frame)
            yield image

    images = ((number, image) for number, file in enumerate(files) for image in _read(file, schema))
    while len(batch := schema.from_images(take_batch())):
        yield Batch(tuple(numbers), tuple(frames), batch)
        numbers.clear()
        frames.clear()


def _read(file: ImageFile, schema: ImageSchema) -> Iterator[DecodedImage | DecodeFailure]:
    if file.problem:
        return iter([DecodeFailure(file.problem, None)])
    return read_file(file.path, schema.options)


def is_dicom(path: Path) -> bool:
    """Return whether the content of a file is DICOM, with or without its preamble."""
    with path.open("rb") as stream:
        return recognise_format(stream.read(HEAD_BYTES)) == "DICOM"


def read_all(files: Sequence[ImageFile], schema: ImageSchema) -> Batch:
    """Read every image of these files into one batch."""
    batches = []
    with console.progress("Reading", len(files)) as (bar, task):
        for batch in read_images(files, schema):
            batches.append(batch)
            bar.update(task, completed=batch.files[-1] + 1, note="")
    return Batch(
        tuple(number for batch in batches for number in batch.files),
        tuple(frame for batch in batches for frame in batch.frames),
        concatenate([batch.images for batch in batches]),
    )


def concatenate(batches: Sequence[ImageBatch]) -> ImageBatch:
    """Concatenate batches of images."""
    starts = np.cumsum([0, *map(len, batches)]).tolist()
    problems = [
        replace(problem, row=problem.row + start)
        for batch, start in zip(batches, starts, strict=False)
        for problem in batch.problems
    ]
    images = np.concatenate([np.asarray(batch.values[IMAGE]) for batch in batches])
    in_colour = sum(batch.in_colour for batch in batches)
    saturated = sum(batch.saturated for batch in batches)
    return image_batch(images, problems, in_colour, saturated)
