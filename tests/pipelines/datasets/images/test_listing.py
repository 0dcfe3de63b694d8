"""Files behind paths, folders and globs."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomaly_vae.errors import DataError
from anomaly_vae.images.schema import ImageSchema
from pipelines.datasets.images.batches import read_all
from pipelines.datasets.images.listing import find_images, list_files
from tests.support.image_folders import names, png
from tests.support.scans import blobs

SCHEMA = ImageSchema(16, 1)


def test_a_folder_is_searched_throughout_in_order_but_not_what_is_hidden(folder: Path) -> None:
    assert names(find_images([str(folder)]), folder) == ["a.png", "b.PNG", "sub/c.tif"]


def test_links_to_folders_are_followed_and_circles_end(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "a.png", elsewhere / "_d.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "back").symlink_to(folder)
    found = names(find_images([str(folder)]), folder)
    assert found == ["a.png", "b.PNG", "linked/_d.png", "sub/c.tif"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("*", ["a.png", "b.PNG", "sub/c.tif"]),
        ("**/*.tif", ["sub/c.tif"]),
        ("[ab].*", ["a.png", "b.PNG"]),
        ("sub", ["sub/c.tif"]),
    ],
)
def test_globs_find_images_and_look_into_folders(
    folder: Path, pattern: str, expected: list[str]
) -> None:
    found = names(find_images([str(folder / pattern)]), folder)
    assert [name for name in found if not name.startswith("_old")] == expected


def test_a_file_is_named_as_it_was_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    noted, image = list_files(["notes.txt", "sub/../a.png"])
    assert (noted.name, noted.problem) == ("notes.txt", "it is text and no image")
    assert (image.name, image.problem) == ("sub/../a.png", None)


def test_an_image_that_several_paths_lead_to_is_read_once(folder: Path) -> None:
    paths = [str(folder / "a.png"), str(folder), str(folder / "*.png")]
    assert names(find_images(paths), folder) == ["a.png", "b.PNG", "sub/c.tif"]


@pytest.mark.parametrize("path", ["nowhere", "*.jpg", "empty"])
def test_a_path_to_no_image_is_refused_by_name(folder: Path, path: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no image is there") as caught:
        find_images([str(folder), str(folder / path)])
    assert caught.value.path == str(folder / path)


def test_a_name_that_is_no_text_is_spelled_out(folder: Path) -> None:
    odd = Path(str(folder) + "/odd-\udcff.png")
    shutil.copy(folder / "a.png", odd)
    (item,) = find_images([str(folder / "odd*")])
    assert item.name.endswith("odd-\\xff.png")
    assert not read_all([item], SCHEMA).images.problems


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "dangling": (lambda path: path.symlink_to("nowhere"), "it is a link that leads nowhere"),
    "circle": (lambda path: path.symlink_to(path.name), "it is a link that leads in a circle"),
    "pipe": (os.mkfifo, "it is no file but a pipe"),
    "socket": (bind_socket, "it is no file but a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is no file but a device"),
    "empty": (Path.touch, "the file is empty; copy it again"),
    "zip": (lambda path: zipfile.ZipFile(path, "w").close(), "it is a ZIP archive; unpack it"),
    "tar": (lambda path: tarfile.open(path, "w").close(), "it is no PNG, JPEG, TIFF"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.4\n\0"), "it is a PDF document"),
    "text": (lambda path: path.write_text("x" + "\N{BULLET}" * 400), "it is text and no image"),
    "noise": (lambda path: path.write_bytes(bytes(range(99, 255))), "it is no PNG, JPEG, TIFF"),
}
"""Entries of a folder that are no images, and the reason that is given."""


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["odd.png", "odd"])
def test_what_is_no_image_has_a_problem_whatever_its_name(
    folder: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = ODD[kind]
    monkeypatch.chdir(folder)  # the path of a socket must be short
    make(Path(name))
    for path in (name, "odd*", str(folder)):
        (odd,) = [item for item in list_files([path]) if item.path.name == name]
        assert reason in (odd.problem or "")
        (problem,) = read_all([odd], SCHEMA).images.problems
        assert problem.reason == odd.problem
    assert len(find_images([str(folder)])) == 3


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".png", ".gz"])
def test_a_tar_archive_is_to_be_unpacked(folder: Path, suffix: str) -> None:
    path = folder / f"scans{suffix}"
    with tarfile.open(path, "w:gz" if "g" in suffix else "w") as archive:
        archive.add(folder / "a.png", "a.png")
    (file,) = list_files([str(path)])
    assert file.problem == "it is a tar archive; unpack it and give the folder"


def test_a_file_without_permission_is_one_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def denied(path: Path, *args: Any) -> Any:
        if path.name == "b.PNG":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", denied)
    problems = [file.problem for file in list_files([str(folder / "[ab]*")])]
    reason = "it cannot be opened: permission denied; change its permissions"
    assert problems == [None, reason]


IMAGES = {
    **{f"bare-{kind}": kind for kind in ("PNG", "JPEG", "TIFF")},
    **{"IM-0001.IMA": "TIFF", "x.0001": "JPEG", "slice.dic": "PNG", "scan.txt": "PNG"},
    **{"wrong.jpg": "PNG", "UPPER.JPG": "JPEG", "1.2.840.113619.2": "PNG", "table.csv": "PNG"},
}
"""Names of images, and their format."""


@pytest.mark.parametrize(("name", "kind"), IMAGES.items())
def test_the_content_decides_what_is_an_image(folder: Path, name: str, kind: str) -> None:
    Image.fromarray(blobs(1)[0]).save(folder / "sub" / name, kind)
    assert f"sub/{name}" in names(find_images([str(folder)]), folder)


@pytest.mark.parametrize("name", ["IM00001", "slice.dic", "report.txt", "x.png"])
@pytest.mark.parametrize("preamble", [bytes(128) + b"DICM", b""])
def test_dicom_is_an_image_whatever_its_name_but_no_dicomdir(
    folder: Path, name: str, preamble: bytes
) -> None:
    for path in (folder / name, folder / "DICOMDIR"):
        path.write_bytes(preamble + b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(400))
    problems = {file.path.name: file.problem for file in list_files([str(folder)])}
    assert problems[name] is None
    assert problems["DICOMDIR"] == (
        "a DICOMDIR lists other files and holds no image; give its folder"
    )


def test_hidden_files_are_listed_with_a_problem(folder: Path) -> None:
    (folder / "__MACOSX").mkdir()
    for name in (".DS_Store", "__MACOSX/._a.png", "sub/.b.png"):
        shutil.copy(folder / "a.png", folder / name)
    problems = {
        file.path.relative_to(folder).as_posix(): file.problem
        for file in list_files([str(folder)])
        if file.problem
    }
    hidden = "it is a hidden file; rename it or give the file itself"
    assert problems == {
        ".DS_Store": hidden,
        "__MACOSX/._a.png": hidden,
        "sub/.b.png": hidden,
        ".cache/d.png": "it lies in the hidden folder '.cache'; move it or give that folder itself",
        "notes.txt": "it is text and no image",
    }
    assert names(find_images([str(folder / ".cache")]), folder) == [".cache/d.png"]
    assert names(find_images([str(folder / "sub" / ".b.png")]), folder) == ["sub/.b.png"]


def test_a_folder_that_two_links_lead_to_is_searched_once(folder: Path) -> None:
    (folder / "again").symlink_to("sub")
    (folder / "zzz").symlink_to("sub")
    assert names(find_images([f"{folder}/"]), folder) == ["a.png", "b.PNG", "sub/c.tif"]


def test_a_folder_that_may_not_be_searched_is_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    reason = "the folder cannot be searched: Permission denied; change its permissions"
    with pytest.raises(DataError, match=f"'{folder / 'sub'}': {reason}") as caught:
        find_images([str(folder)])
    assert caught.value.path == str(folder / "sub")
    (closed,) = [file for file in list_files([str(folder)]) if file.path.name == "sub"]
    assert closed.problem == reason


def test_what_else_lies_in_a_folder_is_counted_and_named(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / ".cache" / "d.png").unlink()
    find_images([str(folder), str(folder), str(folder / "sub")])
    assert capfd.readouterr().err == "1 left out: it is text and no image ('notes.txt')\n"
    for name in ("odd\n\udcff", "list", "sub/b.txt", "sub/c.txt"):
        Path(f"{folder}/{name}").write_text("not an image")
    (folder / "empty").touch()
    find_images([str(folder), str(folder / "notes.txt")])
    assert capfd.readouterr().err == (
        "5 left out: it is text and no image ('list', 'notes.txt', 'odd\\n\\udcff' and 2 more)\n"
        "1 left out: the file is empty; copy it again ('empty')\n"
    )
    find_images([str(folder / "a.png"), str(folder / "*.png")])
    assert capfd.readouterr().err == ""


def test_a_file_is_the_same_by_its_relative_and_its_absolute_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "link.png").symlink_to("a.png")
    items = find_images(["a.png", str(folder / "a.png"), "sub/../a.png", ".", "link.png"])
    assert [item.name for item in items] == ["a.png", "b.PNG", "link.png", "sub/c.tif"]


def test_a_step_up_from_a_linked_folder_is_another_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    png(folder / "far" / "a.png", blobs(1, seed=5)[0])
    (folder / "far" / "below").mkdir()
    (folder / "linked").symlink_to("far/below")
    items = find_images(["a.png", "linked/../a.png"])
    assert [item.name for item in items] == ["a.png", "linked/../a.png"]
