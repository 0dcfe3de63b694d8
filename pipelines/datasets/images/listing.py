"""List the image files behind paths, folders, globs and manifests."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from anomaly_vae.types import ImageLayout
from pipelines import console
from pipelines.datasets.images.files import ImageFile, Reasons, is_table_name, path_problem
from pipelines.datasets.images.layouts import arrange
from pipelines.datasets.images.manifests import read_manifest
from pipelines.datasets.reading.objects import (
    STORE_REMEDY,
    ObjectPath,
    ahead,
    glob_base,
    is_remote,
    matches,
    object_path,
    objects_in,
    refuse_foreign_address,
    remedy_of,
)
from pipelines.datasets.reading.parts import first_line


@dataclass(frozen=True)
class Found:
    """Images to train on or to evaluate, the other files, and notes on folders and their labels."""

    images: list[ImageFile]
    others: Reasons
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """Messages about folders and about files that are left out."""
        return (*self.notes, *self.others.lines())


def find_images(paths: Sequence[str], layout: ImageLayout = "folder") -> list[ImageFile]:
    """Return the images of `images_and_others`, and print its messages."""
    found = images_and_others(paths, layout)
    for line in found.lines:
        console.info(line)
    return found.images


def images_and_others(paths: Sequence[str], layout: ImageLayout = "folder") -> Found:
    """Find the images to train on or to evaluate, and the other files.

    Rows of manifests are images, even if their files cannot be read. Other images get the label and
    split that their folders name; see `arrange`.

    Raises:
        DataError: There is no image, a folder cannot be searched, a manifest cannot be used, or
            names of folders do not tell which images are normal.
    """
    arranged = arrange(paths, list_files(paths), layout)
    files = arranged.files
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
    return Found(images, others, arranged.notes)


def list_files(paths: Sequence[str]) -> list[ImageFile]:
    """List every file behind files, folders (searched recursively), globs and manifests, once.

    These may be in an object store.

    Only the first bytes of a file are read, which decide whether it is an image, whatever its name.
    Files that are not images, hidden files and rows of a manifest without a file have a problem.

    Raises:
        DataError: A path leads to no file, or a manifest cannot be read.
        OutageError: An object store stops answering.
    """
    found: dict[tuple[str, int | None], ImageFile] = {}
    for path in paths:
        refuse_foreign_address(path)
        files = _objects(object_path(path)) if is_remote(path) else list(_expand(path))
        if not files:
            raise DataError(f"'{path}': no image is there{remedy_of(path)}", path=path)
        for file in files:
            known = found.get(key := file.key)
            if known is None or known.row is None:  # prefer the entry of a manifest
                found[key] = file
    return list(found.values())


def _expand(pattern: str) -> Iterator[ImageFile]:
    path = Path(pattern)
    if is_table_name(pattern) and os.path.isfile(path):  # noqa: PTH113 never raises
        yield from read_manifest(path)
    elif os.path.lexists(path):
        yield from _list(path)
    else:
        for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 absolute ones too
            yield from _list(Path(name))


def _objects(path: ObjectPath) -> list[ImageFile]:
    """Return the files at an address of an object store: an object, a folder or a glob.

    Raises:
        DataError: the store refuses or cannot be reached.
    """
    try:
        if path.is_file() and is_table_name(path.name):
            return list(read_manifest(path))
        found = [path] if path.is_file() else objects_in(glob_base(path))
    except OSError as error:
        raise DataError(f"'{path}': {first_line(error)}; {STORE_REMEDY}", path=str(path)) from None
    found = [item for item in found if item == path or _is_globbed(item, path)]
    return list(map(ImageFile.from_path, found, ahead(partial(_problem, path), found)))


def _is_globbed(path: ObjectPath, pattern: ObjectPath) -> bool:
    """Return whether a glob, which like those of files skips hidden names, finds an object."""
    end = None if "**" in pattern.parts else len(pattern.parts)
    names = path.parts[len(glob_base(pattern).parts) : end]
    hidden = any(name.startswith(".") for name in names) and not pattern.name.startswith(".")
    return matches(path, pattern) and not hidden


def _problem(root: Path, path: Path) -> str | None:
    """Return the problem of a file in the searched folder ``root``."""
    return _hidden(root, path) or path_problem(path)


def _list(path: Path) -> Iterator[ImageFile]:
    """Yield the files of a folder, or the file itself."""
    if os.path.isdir(path):  # noqa: PTH112 never raises
        yield from _search(path)
    else:
        yield ImageFile.from_path(path, path_problem(path))


def _search(root: Path) -> Iterator[ImageFile]:
    """Yield all files of a folder at any depth, in order, and the folders that stay closed."""
    closed: list[OSError] = []
    for path in sorted(_walk(root, closed)):
        yield ImageFile.from_path(path, _problem(root, path))
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
