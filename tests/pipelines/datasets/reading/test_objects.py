"""Images in an object store: what folders, globs and manifests list; the S3 server is real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.images.schema import ImageSchema
from pipelines.datasets.images.batches import read_all
from pipelines.datasets.images.listing import list_files
from pipelines.datasets.reading.objects import ahead, object_path
from tests.support.image_folders import write_formats
from tests.support.object_stores import BUCKET, s3_server, upload

AT = f"s3://{BUCKET}/scans"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images of several formats on this machine and in the bucket, in the folder `scans`."""
    folder = write_formats(tmp_path_factory.mktemp("images") / "scans", 3)
    (folder / "sub").mkdir()
    (folder / "01.png").rename(folder / "sub" / "01.png")
    with s3_server():
        upload(folder, "scans")
        yield folder


@pytest.mark.parametrize(
    "pattern", ["", "/", "/*", "/*.png", "/**/*.png", "/s*", "/[0-9]*", "/a.dcm", "/.hidden/d.png"]
)
def test_the_same_files_have_the_same_problems_as_on_this_machine(
    scans: Path, pattern: str
) -> None:
    here = {
        (file.path.relative_to(scans).as_posix(), file.problem)
        for file in list_files([f"{scans}{pattern}"])
    }
    there = list_files([f"{AT}{pattern}"])
    assert {(file.name.removeprefix(f"{AT}/"), file.problem) for file in there} == here
    assert len(there) == len(here)


def test_all_formats_are_read_as_on_this_machine(scans: Path) -> None:
    schema = ImageSchema(16, 1)
    here, there = (read_all(list_files([str(at)]), schema) for at in (scans, AT))
    assert len(there.images.problems) == 3
    assert [p.reason for p in there.images.problems] == [p.reason for p in here.images.problems]
    assert there.images.values["image"].tobytes() == here.images.values["image"].tobytes()


LISTED = {
    "00.png": None,
    "sub/../sub/01.png": None,
    f"{AT}/02.png": None,
    "  a.dcm ": None,
    "sub\\01.png": "it is listed a second time, after line 3 of 'list.csv'; keep one of its rows",
    "gone.png": "there is no such file; check its path",
    f"{AT}/lost.png": "there is no such file; check its path",
    "notes.txt": "it is text and no image",
    "sub": "it is no file but a folder; list its files, or give the folder itself",
    "/etc/hosts": "it is a path of one machine; list s3://…, or a path from the manifest on",
    "https://host/a.png": "it is a URL; copy the file here and list its path",
    "s3://": "'s3://' names no bucket; write s3://BUCKET/NAME",
}
"""Cells of a manifest in the bucket, and the problems of their rows."""


def test_a_manifest_in_the_bucket_lists_what_is_beside_it(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,id\n" + "".join(f"{cell},x\n" for cell in LISTED))
    upload(tmp_path, "scans")
    files = list_files([f"{AT}/list.csv"])
    assert [file.problem for file in files] == list(LISTED.values())
    assert {file.attributes["id"] for file in files} == {"x"}


def test_a_manifest_on_this_machine_may_list_addresses(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path\n{AT}/00.png\n{scans / '00.png'}\n")
    first, second = list_files([str(tmp_path / "list.csv")])
    assert (first.name, first.problem, second.problem) == (f"{AT}/00.png", None, None)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (f"{AT}/nothing", "no image is there"),
        (f"{AT}/*.jpg", "no image is there"),
        ("s3://nowhere/scans", "check the name of the bucket and the credentials"),
        ("azure://bank/scans", "is no address of s3:// or gs://"),
        ("https://host/a.png", "is no address of s3:// or gs://"),
    ],
)
def test_an_address_without_images_is_one_line(scans: Path, path: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as told:
        list_files([path])
    assert str(told.value).startswith(f"'{path}'")
    assert "\n" not in str(told.value)


def test_an_object_is_a_path_in_every_respect(scans: Path) -> None:
    file, folder, gone = (object_path(f"{AT}/{name}") for name in ("00.png", "sub", "gone"))
    assert [path.is_file() for path in (file, folder, gone)] == [True, False, False]
    assert [path.is_dir() for path in (file, folder, gone)] == [False, True, False]
    assert [path.exists() for path in (file, folder, gone)] == [True, True, False]
    assert file.resolve() == file


def test_results_are_in_order_and_an_error_ends_the_rest() -> None:
    done = []

    def note(number: int) -> int:
        done.append(number)
        return 1 // (number - 50) + number

    with pytest.raises(ZeroDivisionError):
        list(ahead(note, range(1_000), 4))
    assert len(done) < 60
    assert list(ahead(str, range(30), 4)) == list(map(str, range(30)))
