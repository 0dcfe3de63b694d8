"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot lock a folder."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a neighbour to write; move it over ``path`` when the block ends well.

    Raises:
        IsADirectoryError: a folder is there; nothing is written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield whole
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Yield an empty neighbour folder; put it in the place of ``path`` when the block ends well.

    The previous folder is moved aside first, so that a crash leaves it or the new one; what a
    crash between the two renames left aside is put back by the next writer. Writers take turns;
    each replaces what it finds then, unless ``keep`` says that it may stay.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        _recover(path)
    whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    whole.mkdir()
    try:
        yield whole
        with locked(path.parent):
            _recover(path)
            if not keep(path):
                _replace(path, whole)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _replace(path: Path, whole: Path) -> None:
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)  # a crash may have left it beside the new one
    if path.exists():
        path.rename(aside)
    try:
        whole.rename(path)
    finally:
        _recover(path)
    shutil.rmtree(aside, ignore_errors=True)


def _recover(path: Path) -> None:
    """Undo a replacement that a crash cut in the middle; for the holder of the lock alone."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Be the only one to change a folder; the lock leaves no file and ends with its holder.

    Where the file system has no locks for folders (some network mounts), nobody is kept out.

    Raises:
        BlockingIOError: somebody else is, and ``wait`` is false.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(handle, wait)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


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
