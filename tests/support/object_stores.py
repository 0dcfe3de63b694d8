"""Start a local S3 server and point clients to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipelines.datasets.reading import objects

BUCKET = "bank"


class S3Server:
    """A local S3 server, which may stop answering for a while and keeps its objects."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answer, on a free port, later on the same one."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        """Refuse all connections."""
        self._server.stop()


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """Serve an empty bucket on a free port."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        use_server(server.address, patch)
        client = pafs.S3FileSystem(endpoint_override=server.address, allow_bucket_creation=True)
        client.create_dir(BUCKET)
        yield server
    objects.file_system.cache_clear()
    server.stop()


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve an empty bucket on a free port; yield the address of the server."""
    with running_s3_server() as server:
        yield server.address


def use_server(address: str, patch: pytest.MonkeyPatch, secret: str = "secret") -> None:
    """Have clients of this process and its children use a server."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "someone")
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    objects.file_system.cache_clear()


def upload(folder: Path, prefix: str, scheme: str = "s3") -> None:
    """Copy a folder into the bucket."""
    store = objects.file_system(scheme, BUCKET)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = f"{BUCKET}/{prefix}/{path.relative_to(folder).as_posix()}"
        with store.open_output_stream(name, compression=None) as stream:
            stream.write(path.read_bytes())


def download(prefix: str, folder: Path, scheme: str = "s3") -> Path:
    """Copy a folder of the bucket to this machine."""
    folder.mkdir()
    source = objects.object_path(f"{scheme}://{BUCKET}/{prefix}")
    for path in objects.objects_in(source):
        target = folder / str(path).removeprefix(f"{source}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder
