"""Write files and folders that are either complete or absent, lock folders, and parse JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error numbers of file systems that cannot lock a folder."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; move the file to ``path`` if the block succeeds.

    Raises:
        IsADirectoryError: ``path`` is a folder; nothing is written.
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
    """Yield an empty temporary folder; move it to ``path`` if the block succeeds.

    The previous folder is moved aside first, so that a crash leaves either the old or the new one.
    After a crash between the two renames, the next writer puts the old one back. Writers that work
    at once take turns, and the last one wins.

    Args:
        path: the folder to write or replace.
        keep: called with ``path`` before it is replaced; if true, the folder there stays.
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
    """Undo a replacement that a crash interrupted; the caller holds the lock."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a folder.

    The lock creates no file and ends with the process that holds it. On file systems that cannot
    lock folders, such as some network mounts, it has no effect.

    Args:
        folder: the folder to lock.
        wait: whether to wait until the lock is free.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is false.
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
    """Collect this process's temporary files in a folder of its own, and remove it at the end."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-", ignore_cleanup_errors=True) as place:
        tempfile.tempdir = place
        try:
            yield
        finally:
            tempfile.tempdir = before


def strict_json(content: str | bytes) -> Any:
    """Parse JSON that has no repeated keys and no NaN or infinity.

    Raises:
        ValueError: the content is no such JSON.

    >>> strict_json('{"a": [1, null]}')
    {'a': [1, None]}
    >>> strict_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' is repeated
    """
    return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is repeated")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
