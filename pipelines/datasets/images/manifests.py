"""Read manifests: tables with one row for each image file."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from pipelines.datasets.files import heads_by_file, read_chunks
from pipelines.datasets.images.files import MASK, PATH, ImageFile, file_key, path_problem
from pipelines.datasets.reading.objects import ObjectPath, ahead, is_remote, object_path
from pipelines.datasets.reading.parts import Broken, Chunk


def read_manifest(manifest: Path) -> Iterator[ImageFile]:
    """Read a manifest with one row for each file; paths are relative to the manifest.

    Raises:
        DataError: The manifest cannot be read.
        OutageError: An object store does not answer.
    """
    _check_columns(manifest)
    seen: dict[str, ImageFile] = {}
    for file in _manifest_rows(manifest):
        first = seen.setdefault(file_key(file.path), file) if file.name else file
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
    entry = partial(_entry, part.path)
    return ahead(entry, cells) if _is_in_store(part) else map(entry, cells)


def _is_in_store(part: Chunk) -> bool:
    """Return whether files of a manifest may be in an object store, each of which takes a while."""
    names = part.table[PATH].to_pylist() if PATH in part.table.schema.names else []
    listed_remote = any(isinstance(name, str) and is_remote(name.strip()) for name in names)
    return listed_remote or isinstance(part.path, ObjectPath)


def _entry(manifest: Path, cells: tuple[int, dict[str, object]]) -> ImageFile:
    row, record = cells
    attributes = {column: _text(value) for column, value in record.items()}
    cell = attributes.pop(PATH) or ""
    name = cell if cell.strip() else ""
    path, problem = _target(manifest, name)
    place = _place(manifest, row)
    return ImageFile(path, name, attributes, problem, row, place, mask=_mask(manifest, attributes))


def _mask(manifest: Path, attributes: Mapping[str, str | None]) -> Path | None:
    """Return the path that the cell of a mask names; one that names none leads nowhere."""
    cell = attributes.get(MASK) or ""
    try:
        return _resolved(manifest.parent, cell) if cell.strip() else None
    except DataError:
        return manifest / cell.lstrip("/")


def _target(manifest: Path, name: str) -> tuple[Path, str | None]:
    """Return the path or address that a cell names and, if it leads to no image, why."""
    if not name:
        return manifest, "the path is empty; fill it in"
    nowhere = manifest / name.lstrip("/")
    if "://" in name and not is_remote(name.strip()):
        return nowhere, "it is a URL; copy the file here and list its path"
    try:
        path = _resolved(manifest.parent, name)
    except DataError as error:
        return nowhere, str(error)
    return path, path_problem(path)


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
    """Return the path that a cell means, which may be the address of an object.

    If nothing is there, blanks around it are ignored and Windows' separators are understood.

    Raises:
        DataError: the cell names no bucket, or is an absolute path in a manifest in a store.
    """
    lenient = name.strip().replace("\\", "/")
    if is_remote(name.strip()):
        return object_path(name.strip())
    if lenient == name:
        return _joined(folder, name)
    exact = _joined(folder, name)
    there = exact.exists() if isinstance(exact, ObjectPath) else os.path.lexists(exact)
    return exact if there else _joined(folder, lenient)


def _joined(folder: Path, name: str) -> Path:
    """Return a path that is relative to a folder.

    Raises:
        DataError: the folder is in a store, and the path is absolute.
    """
    if not isinstance(folder, ObjectPath):
        return folder / name
    if name.startswith("/"):
        raise DataError("it is a path of one machine; list s3://…, or a path from the manifest on")
    return object_path(f"{folder.parts[0]}//{posixpath.normpath(f'{folder.key}/{name}')}")
