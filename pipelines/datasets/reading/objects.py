"""Read objects of ``s3://`` and ``gs://`` stores as files, through pyarrow's file systems.

Credentials and the address of the store come from the environment, as for other clients of these
stores: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST and others.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import re
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, TypeVar

import pyarrow.fs as pafs

from anomaly_vae.errors import AnomalyVAEError, DataError
from pipelines.datasets.reading.parts import first_line

T = TypeVar("T")
R = TypeVar("R")

SCHEMES = ("s3", "gs")
STORE_REMEDY = "check the name of the bucket and the credentials in the environment"
REMOTE = re.compile(rf"({'|'.join(SCHEMES)}):/+(.*)", re.DOTALL)
"""Pattern of the address of an object; `Path` turns the two slashes into one."""
FOREIGN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""Pattern of the beginning of an address of any kind."""
GLOB = re.compile(r"\*\*/|\*|\?|\[[^\]]+\]")
"""Pattern of the special parts of a glob."""
OUTAGE = re.compile(
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE"
    "|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
)
"""Pattern of what stores say of themselves, and not of an object."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Numbers of errors of a machine that cannot hold or open a copy of a file."""
GOOGLE_RETRY_SECONDS = 30
"""Time during which requests to Google's store are repeated."""
REQUESTS = 16
"""Number of requests that are sent at a time, because each waits for the network."""


class OutageError(AnomalyVAEError):
    """A store that has stopped answering, or a machine without room: no file is at fault."""


class ObjectPath(PosixPath):
    """The address of an object, or of a folder of objects, which can be read as a file is.

    >>> path = object_path("s3://bucket/day=1/rows.csv")
    >>> str(path), path.suffix, str(path.parent)
    ('s3://bucket/day=1/rows.csv', '.csv', 's3://bucket/day=1')
    """

    def __str__(self) -> str:
        """Return the address with its two slashes."""
        return re.sub(r":/+", "://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return object_path, (str(self),)

    _found: pafs.FileInfo | None = None
    """What the store said of the object when it was listed or first asked for."""

    @property
    def key(self) -> str:
        """Bucket and name, as pyarrow takes them."""
        return "/".join(self.parts[1:])

    @property
    def store(self) -> pafs.FileSystem:
        """The file system of the bucket."""
        return file_system(self.parts[0].rstrip(":"), self.parts[1])

    def info(self) -> pafs.FileInfo:
        """Return what the store says of the object, or said when it was listed or found before."""
        if self._found is not None:
            return self._found
        info = self.store.get_file_info(self.key)
        self._found = info if info.is_file else None
        return info

    def answers(self) -> bool:
        """Return whether the store still answers, whatever it says of this object."""
        try:
            self.store.get_file_info(pafs.FileSelector(self.key, allow_not_found=True))
        except OSError:
            return False
        return True

    def stat(self, **_: Any) -> Any:
        """Return size, time of change and kind.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the store refuses or cannot be reached.
        """
        info = self.info()
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        kind = stat.S_IFREG if info.is_file else stat.S_IFDIR
        size, modified = info.size or 0, info.mtime_ns or 0
        return SimpleNamespace(st_mode=kind, st_size=size, st_mtime_ns=modified, st_dev=0, st_ino=0)

    def open(self, *_: Any, **__: Any) -> Any:
        """Open the object for reading bytes at any position."""
        return self.store.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self.open() as file:
            return bytes(file.read())

    def is_file(self, **_: Any) -> bool:
        """Return whether there is such an object."""
        return bool(self.info().is_file)

    def is_dir(self, **_: Any) -> bool:
        """Return whether this is a folder with objects."""
        return bool(self.info().type == pafs.FileType.Directory)

    def exists(self, **_: Any) -> bool:
        """Return whether there is such an object or folder."""
        return bool(self.info().type != pafs.FileType.NotFound)

    def is_symlink(self) -> bool:
        """Return False: stores have no links."""
        return False

    def resolve(self, strict: bool = False) -> ObjectPath:  # noqa: ARG002  # as `Path` has it
        """Return the path itself: stores have no links and no working directory."""
        return self


def object_path(address: str) -> ObjectPath:
    """Return the path of an address such as ``s3://bucket/name``.

    Raises:
        DataError: the address names no bucket.
    """
    match = REMOTE.match(address)
    parts = match[2].strip("/") if match else ""
    if match is None or not parts:
        raise DataError(f"'{address}' names no bucket; write s3://BUCKET/NAME", path=address)
    return ObjectPath(f"{match[1]}:", parts)


def place(address: str | Path) -> Path:
    """Return the path of a file or folder, on this machine or in an object store.

    Raises:
        DataError: the address is of another kind, or names no bucket.
    """
    if isinstance(address, Path):
        return address
    refuse_foreign_address(address)
    return object_path(address) if is_remote(address) else Path(address)


def refuse_foreign_address(address: str) -> None:
    """Refuse the address of a store that is not read or written.

    Raises:
        DataError: it is one.
    """
    if FOREIGN.match(address) and not is_remote(address):
        raise DataError(
            f"'{address}' is no address of s3:// or gs://; write one, or the path of a folder that "
            "is mounted",
            path=address,
        )


def is_remote(address: str) -> bool:
    """Return whether an address is in an object store.

    >>> is_remote("gs://bucket/rows.csv"), is_remote("rows.csv")
    (True, False)
    """
    return address.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def remedy_of(address: str) -> str:
    """Return what to do if nothing is found at an address, to be appended; empty for others."""
    return f"; {STORE_REMEDY}" if is_remote(address) else ""


@cache
def file_system(scheme: str, bucket: str) -> pafs.FileSystem:
    """Return the file system of a bucket."""
    environment = os.environ
    if scheme == "gs":
        return _google(environment.get("STORAGE_EMULATOR_HOST"))
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not region and not endpoint:
        region = pafs.resolve_s3_region(bucket)
    options = {"region": region, "endpoint_override": endpoint}
    return pafs.S3FileSystem(**{key: value for key, value in options.items() if value})


def _google(emulator: str | None) -> pafs.FileSystem:
    """Return Google's file system, or that of an emulator; the default is to retry for 15 min."""
    limit = dt.timedelta(seconds=GOOGLE_RETRY_SECONDS)
    if not emulator:
        return pafs.GcsFileSystem(retry_time_limit=limit)
    scheme, _, host = emulator.rpartition("://")
    return pafs.GcsFileSystem(
        anonymous=True, scheme=scheme or "http", endpoint_override=host, retry_time_limit=limit
    )


def objects_in(folder: ObjectPath) -> list[ObjectPath]:
    """Return all objects in a folder and its folders, sorted."""
    selector = pafs.FileSelector(folder.key, recursive=True, allow_not_found=True)
    found = [info for info in folder.store.get_file_info(selector) if info.is_file]
    return [_listed(folder, info) for info in sorted(found, key=lambda info: info.path)]


def _listed(folder: ObjectPath, info: pafs.FileInfo) -> ObjectPath:
    path = object_path(f"{folder.parts[0]}//{info.path}")
    path._found = info
    return path


def glob_base(pattern: ObjectPath) -> ObjectPath:
    """Return the longest beginning of a glob without special parts."""
    path = pattern
    while GLOB.search(str(path)) and len(path.parts) > 2:
        path = path.parent
    return path


def matches(path: ObjectPath, pattern: ObjectPath) -> bool:
    """Return whether a glob matches an object, or a folder that contains it.

    >>> path = object_path("s3://b/x/day=1/a.csv")
    >>> [matches(path, object_path(f"s3://b/{p}")) for p in ("x/*", "**/*.csv", "x/*.csv")]
    [True, True, False]
    """
    return re.match(rf"{_regex(str(pattern))}(/|$)", str(path)) is not None


def _regex(pattern: str) -> str:
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    text, end = "", 0
    for match in GLOB.finditer(pattern):
        text += re.escape(pattern[end : match.start()])
        text += special.get(match[0]) or match[0].replace("[!", "[^")
        end = match.end()
    return text + re.escape(pattern[end:])


def refuse_outage(path: Path, error: BaseException) -> None:
    """Raise an error if a file cannot be read for a reason that is not the file's.

    Raises:
        OutageError: its store does not answer, or does not accept the credentials any more; or
            this machine has no room for a copy of it.
    """
    if not isinstance(error, OSError):
        return
    if error.errno in NO_ROOM:
        remedy = f"set TMPDIR to a folder with more room than {tempfile.gettempdir()}"
    elif isinstance(path, ObjectPath) and _is_outage(path, error):
        remedy = STORE_REMEDY
    else:
        return
    raise OutageError(
        f"'{path}': {first_line(error)}; {remedy}; what is finished is kept, and the same command "
        "continues"
    ) from None


def _is_outage(path: ObjectPath, error: OSError) -> bool:
    if isinstance(error, FileNotFoundError):
        return False
    return bool(OUTAGE.search(str(error))) or not path.answers()


def ahead(function: Callable[[T], R], items: Iterable[T], count: int = REQUESTS) -> Iterator[R]:
    """Yield the function's result for each item in order, while later ones are computed.

    >>> list(ahead(str, range(3)))
    ['0', '1', '2']
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
