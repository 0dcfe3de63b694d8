"""Files that are either whole or not there."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a neighbour to write; move it over ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield whole
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty neighbour folder; put it in the place of ``path`` when the block ends well.

    A previous folder is moved aside first, so that a crash leaves it or the new one; `recover`
    puts back what a crash between the two renames left aside.
    """
    path = path.resolve()
    recover(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    whole.mkdir()
    try:
        yield whole
        aside = _aside(path)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)  # a crash may have left it beside the new one
            path.rename(aside)
        whole.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        recover(path)
        shutil.rmtree(whole, ignore_errors=True)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Collect the temporary files of this process, libraries' too, and remove them at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-", ignore_cleanup_errors=True) as place:
        tempfile.tempdir = place
        try:
            yield
        finally:
            tempfile.tempdir = before


def recover(path: Path) -> None:
    """Undo a replacement that a crash cut in the middle."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        with suppress(OSError):
            aside.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")
