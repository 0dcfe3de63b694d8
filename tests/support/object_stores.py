"""Start a local S3 server and point clients to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipelines.datasets.reading import objects

BUCKET = "bank"


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve an empty bucket on a free port; yield the address of the server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        address = f"http://{host}:{port}"
        use_server(address, patch)
        client = pafs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True)
        client.create_dir(BUCKET)
        yield address
    objects.file_system.cache_clear()
    server.stop()


def use_server(address: str, patch: pytest.MonkeyPatch, secret: str = "secret") -> None:
    """Have clients of this process and its children use a server."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "someone")
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    objects.file_system.cache_clear()


def upload(folder: Path, prefix: str) -> None:
    """Copy a folder into the bucket."""
    store = objects.file_system("s3", BUCKET)
    pafs.copy_files(
        str(folder),
        f"{BUCKET}/{prefix}",
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=store,
    )


def download(prefix: str, folder: Path) -> Path:
    """Copy a folder of the bucket to this machine."""
    folder.mkdir()
    for path in objects.objects_in(objects.object_path(f"s3://{BUCKET}/{prefix}")):
        target = folder / str(path).removeprefix(f"s3://{BUCKET}/{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder
