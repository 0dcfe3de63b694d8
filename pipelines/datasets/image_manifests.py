"""Read manifests: tables with one row for each image file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from anomaly_vae.data.converters import level_name
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from pipelines.datasets.files import heads_by_file, read_chunks
from pipelines.datasets.image_files import PATH, ImageFile, file_key, path_problem
from pipelines.datasets.reading.parts import Broken, Chunk


def read_manifest(manifest: Path) -> Iterator[ImageFile]:
    """Read a manifest with one row for each file; paths are relative to the manifest."""
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
    """Return the path that a cell means.

    If nothing is there, blanks around it are ignored and Windows' separators are understood.
    """
    lenient = name.strip().replace("\\", "/")
    exact = lenient == name or os.path.lexists(folder / name)
    return folder / (name if exact else lenient)
