"""Images in files, folders, globs and manifests → a data set: named, split, frozen, told apart."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import shutil
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

from anomaly_vae.config import ImageConfig
from anomaly_vae.config.data import ImageData
from anomaly_vae.data.schema import RowProblem
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, UNUSED, VALIDATION
from anomaly_vae.errors import DataError
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.schema import ImageSchema, image_batch
from pipelines.datasets.image_batches import BATCH_SIZE, concatenate, read_all, read_images
from pipelines.datasets.image_files import MAX_REASONS, ImageFile, Reasons, is_dicom
from pipelines.datasets.image_listing import find_images, list_files
from pipelines.datasets.images import ImageDataset, load_images, read_labelled
from pipelines.datasets.loading import load_dataset
from tests.support.image_uploads import dicom_file
from tests.support.scans import N_ANOMALIES, N_SCANS, blobs, coloured

SCHEMA = ImageSchema(16, 1)
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png, b.PNG and sub/c.tif, beside what is no image, hidden."""
    images = blobs(4)
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    for name, image in zip(("a.png", "b.PNG", "sub/c.tif", ".cache/d.png"), images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def listing(folder: Path) -> Write:
    """Write a manifest beside the images of `folder`."""

    def write(text: str, encoding: str = "utf-8") -> Path:
        path = folder / "list.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def names(items: list[ImageFile], folder: Path) -> list[str]:
    return [item.path.relative_to(folder).as_posix() for item in items]


def png(path: Path, image: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def tiff(path: Path, images: NDArray[Any]) -> Path:
    first, *others = map(Image.fromarray, images)
    first.save(path, save_all=True, append_images=others)
    return path


# ---------------------------------------------------------------- files, folders, globs


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


def test_many_reasons_are_a_few_lines() -> None:
    reasons = Reasons([ImageFile.from_path(Path(f"{i}"), f"reason {i % 11}") for i in range(30)])
    *lines, last = reasons.lines()
    assert len(lines) == MAX_REASONS
    assert last == "and 6 more for 3 other reasons"
    assert reasons.counts.total() == 30


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


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_manifest_names_files_beside_it_and_what_is_known_of_them(
    listing: Write, encoding: str
) -> None:
    path = listing("path,label,site\na.png,0,x\nsub/c.tif,1,\n", encoding)
    first, second = find_images([str(path)])
    assert (first.name, first.path) == ("a.png", path.parent / "a.png")
    assert first.attributes == {"label": "0", "site": "x"}
    assert second.attributes == {"label": "1", "site": None}


def test_a_column_without_a_name_is_a_column(listing: Write) -> None:
    """As pandas writes its index."""
    path = listing(",path,label\n0,a.png,1\n1,b.PNG,0\n")
    items = find_images([str(path)])
    assert [item.attributes["label"] for item in items] == ["1", "0"]
    table, _, _ = read_labelled([str(path)], SCHEMA, "label")
    assert table.column_names == ["path", "frame", "label"]


def test_paths_of_a_manifest_may_be_absolute_and_quoted(listing: Write, folder: Path) -> None:
    other = png(folder / "comma, and more" / "x.png", blobs(1)[0])
    path = listing(f'path\n"{other}"\n')
    assert [item.path for item in find_images([str(path)])] == [other]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\na.png,0\n",
            "a manifest needs a column 'path', found 'file', 'label'; the model scores",
        ),
        ("", "cannot be read as a manifest: the file is empty"),
        (
            "path,label\na.png,0\nb.PNG,0\n./a.png,1\n",
            r"line 4 of 'list.csv': './a.png': it is listed a second time, after line 2 of",
        ),
        ("path\n", "no image is there"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(
    listing: Write, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_images([str(listing(text))])


def test_a_file_that_a_manifest_lists_by_two_paths_is_refused(listing: Write) -> None:
    path = listing("path,label\na.png,0\n")
    path.write_text(path.read_text() + f"{path.parent / 'a.png'},1\n")
    with pytest.raises(DataError, match=r"line 3 .*a\.png': it is listed a second"):
        find_images([str(path)])


ROWS = {
    ",0": "the path is empty; fill it in",
    "  ,0": "the path is empty; fill it in",
    "a.png,0,7": "expected 2 fields, found 3",
    "gone.png,0": "there is no such file; check its path",
    "sub,0": "it is no file but a folder; list its files, or give the folder itself",
    "a.png/b.png,0": "there is no such file; check its path",
    "notes.txt,0": "it is text and no image",
    "s3://bucket/a.png,0": "it is a URL; copy the file here and list its path",
    "\udcff.png,0": "column 'path' is not UTF-8 text; name its encoding in data.csv.encoding "
    "(score: --csv encoding=latin-1), or save the file as UTF-8",
    f"{'long' * 99}.png,0": "it cannot be opened: File name too long; check its path",
}
"""Rows of a manifest that give no image, and the reason."""


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_row_of_a_manifest_is_one_problem_and_the_others_are_read(
    folder: Path, row: str
) -> None:
    path = folder / "list.csv"
    path.write_text(f"path,label\na.png,0\n{row}\nb.PNG,1\n", errors="surrogateescape")
    items = sorted(find_images([str(path)]), key=lambda item: item.row or 0)
    assert [item.row for item in items] == [0, 1, 2]
    assert [item.problem for item in items] == [None, ROWS[row], None]
    assert items[1].place == "line 3 of 'list.csv'"
    batch = read_all(items, SCHEMA).images
    assert batch.usable.tolist() == [True, False, True]


@pytest.mark.parametrize("cell", ["sub\\c.tif", " sub/c.tif ", "sub/../sub/c.tif", "./sub/c.tif"])
def test_paths_of_a_manifest_are_understood(listing: Write, cell: str) -> None:
    (item,) = find_images([str(listing(f"path\n{cell}\n"))])
    assert (item.name, item.problem) == (cell, None)
    assert item.path.samefile(item.path.parent / "c.tif")


def test_a_path_that_is_there_as_it_is_written_is_that_file(listing: Write, folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "sub\\c.tif")
    (item,) = find_images([str(listing("path\nsub\\c.tif\n"))])
    assert item.path == folder / "sub\\c.tif"


def test_repeated_and_empty_rows_are_listed_one_by_one(listing: Write) -> None:
    path = listing("path,label\na.png,0\n,1\n,1\na.png,1\nb.PNG,0\n")
    items = list_files([str(path), str(path)])
    assert [(item.row, item.problem is None) for item in items] == [
        (0, True), (1, False), (2, False), (3, False), (4, True)
    ]  # fmt: skip
    assert items[3].problem == (
        "it is listed a second time, after line 2 of 'list.csv'; keep one of its rows"
    )


def test_a_manifest_can_be_parquet(folder: Path) -> None:
    cells = {
        "path": ["a.png", None, "b.PNG"],
        "label": [0.0, 1.0, 1.0],
        "flag": [True, None, False],
    }
    pq.write_table(pa.table(cells), folder / "list.parquet")
    first, bad, last = find_images([str(folder / "list.parquet")])
    assert first.attributes == {"label": "0", "flag": "true"}
    assert last.attributes == {"label": "1", "flag": "false"}
    assert (bad.problem, bad.place) == ("the path is empty; fill it in", "row 1 of 'list.parquet'")


@pytest.mark.parametrize("manifest_first", [True, False])
def test_what_a_manifest_says_is_kept_beside_a_folder_that_says_nothing(
    listing: Write, manifest_first: bool
) -> None:
    path = listing("path,label\na.png,1\n")
    paths = [str(path), str(path.parent)]
    items = find_images(paths if manifest_first else paths[::-1])
    assert [item.attributes for item in items if item.path.name == "a.png"] == [{"label": "1"}]
    assert len(items) == 3


# ---------------------------------------------------------------- reading


def test_images_are_streamed_in_order_with_file_and_frame(tmp_path: Path) -> None:
    tiff(tmp_path / "a.tif", blobs(3))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    png(tmp_path / "c.png", blobs(1, seed=3)[0])
    items = find_images([str(tmp_path)])
    items.append(ImageFile.from_path(tmp_path / "gone.png"))
    (batch,) = read_images(items, SCHEMA)
    assert batch.files == (0, 0, 0, 1, 2, 3)
    assert batch.frames == (0, 1, 2, None, 0, None)
    assert batch.images.usable.tolist() == [True] * 3 + [False, True, False]
    assert all(problem.reason for problem in batch.images.problems)


def test_batches_are_bounded_and_join_to_the_whole(tmp_path: Path) -> None:
    pages = blobs(BATCH_SIZE + 5)
    pages[BATCH_SIZE + 2] = 7  # shows nothing
    tiff(tmp_path / "a.tif", pages)
    items = find_images([str(tmp_path)])
    parts = list(read_images(items, SCHEMA))
    assert [len(part.files) for part in parts] == [BATCH_SIZE, 5]
    whole = read_all(items, SCHEMA)
    assert len(whole.images) == BATCH_SIZE + 5
    assert [problem.row for problem in whole.images.problems] == [BATCH_SIZE + 2]
    np.testing.assert_array_equal(
        np.asarray(whole.images.values[IMAGE])[BATCH_SIZE:], parts[1].images.values[IMAGE]
    )


def test_joined_batches_keep_their_problems_at_their_rows() -> None:
    images = np.zeros((2, 1, 16, 16), np.float32)
    problem = RowProblem(1, IMAGE, "torn")
    whole = concatenate(
        [image_batch(images), image_batch(images, [problem]), image_batch(images, [problem])]
    )
    assert [p.row for p in whole.problems] == [3, 5]
    assert len(whole) == 6


def test_dicom_is_told_by_its_content(tmp_path: Path) -> None:
    """A DICOM file without a preamble is recognised by its first element."""
    dicom, bare, other = tmp_path / "one", tmp_path / "two", tmp_path / "three.dcm"
    dicom.write_bytes(bytes(128) + b"DICM" + bytes(10))
    bare.write_bytes(b"\x08\x00\x05\x00" + bytes(200))
    other.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert is_dicom(dicom)
    assert is_dicom(bare)
    assert not is_dicom(other)


def test_labelled_images_come_with_their_index(listing: Write) -> None:
    path = listing("path,verdict,group\na.png,ill,p1\nsub/c.tif,,p2\nmissing.png,well,p3\n")
    table, batch, files = read_labelled([str(path)], SCHEMA, "verdict")
    assert [file.name for file in files] == ["a.png", "c.tif", "missing.png"]
    assert table.to_pydict() == {
        "path": ["a.png", "sub/c.tif", "missing.png"],
        "frame": [0, 0, None],
        "verdict": ["ill", None, "well"],
        "group": ["p1", "p2", "p3"],
    }
    assert batch.usable.tolist() == [True, True, False]
    with pytest.raises(DataError, match="no manifest has the column 'diagnosis'; found 'group'"):
        read_labelled([str(path)], SCHEMA, "diagnosis")


# ---------------------------------------------------------------- data sets


def test_a_data_set_has_every_image_labelled_grouped_and_split(
    image_dataset: ImageDataset, image_config: ImageConfig
) -> None:
    data = image_dataset
    assert len(data.table) == len(data.batch) == len(data.rows) == N_SCANS
    assert int(data.rows.anomaly.sum()) == N_ANOMALIES
    assert (data.label, data.group) == ("label", "group")
    assert sum(data.assignment.counts.values()) == N_SCANS
    trained = np.concatenate([data.assignment.rows(s) for s in (TRAIN, VALIDATION, CALIBRATION)])
    assert not data.rows.anomaly[trained].any()
    assert data.table.column("path")[0].as_py() == "images/000.png"
    assert data.summary()["rows"] == N_SCANS
    assert load_dataset(image_config.data).digest == data.digest


def test_a_group_lies_in_one_split_and_calibrates_once(image_dataset: ImageDataset) -> None:
    groups = np.array(image_dataset.table.column("group").to_pylist())
    codes = image_dataset.assignment.codes
    for group in set(groups[:20]):
        assert len(set(codes[groups == group]) - {UNUSED}) <= 1
    calibrating = groups[image_dataset.calibration_rows]
    assert len(set(calibrating)) == len(calibrating)
    assert set(codes[image_dataset.calibration_rows]) == {CALIBRATION}


def stack(folder: Path, count: int, per: int) -> Path:
    """So many TIFFs of so many pages, no two alike."""
    pages = blobs(count * per).reshape(count, per, 24, 24)
    for number, images in enumerate(pages):
        tiff(folder / f"{number:02d}.tif", images)
    return folder


def test_the_frames_of_a_file_stay_together_where_nothing_else_is_said(tmp_path: Path) -> None:
    data = load_images(ImageData(path=str(stack(tmp_path, 12, 3)), size=16))
    assert data.group == "group"
    codes = data.assignment.codes.reshape(12, 3)
    assert (codes == codes[:, :1]).all()
    assert data.table.column("frame").to_pylist() == [0, 1, 2] * 12
    rows = data.calibration_rows
    assert len({row // 3 for row in rows}) == len(rows)


def test_files_of_one_image_need_no_groups(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(20)):
        png(tmp_path / f"{number:02d}.png", image)
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert (data.label, data.group, data.rows.group) == (None, None, None)
    assert not data.rows.anomaly.any()


def test_an_image_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(30)):
        png(tmp_path / f"{number:02d}.png", image)
    (tmp_path / "07.png").write_bytes(b"torn")
    (tmp_path / "08.png").write_bytes((tmp_path / "08.png").read_bytes()[:60])
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert len(data.table) == 29
    assert data.assignment.codes[7] == UNUSED
    text = "1 left out: it is text and no image ('07.png')"
    torn = "1 left out: it is cut short; copy the file again ('08.png')"
    assert data.notes == (text, torn)
    assert data.left_out == {"it is text and no image": 1}


def test_images_without_a_label_are_told(tmp_path: Path) -> None:
    lines = []
    for number, image in enumerate(blobs(20)):
        png(tmp_path / f"{number:02d}.png", image)
        lines.append(f"{number:02d}.png,{'' if number < 3 else 0}")
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    data = load_images(ImageData(path=str(tmp_path / "list.csv"), size=16))
    assert int(data.rows.unlabelled.sum()) == 3
    assert data.label == "label"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "diagnosis"}, "no manifest has the column 'diagnosis'"),
        ({"group": "patient"}, "no manifest has the column 'patient'"),
        ({"positive": "ill"}, "never has the value 'ill'"),
    ],
)
def test_a_column_that_is_not_there_is_refused(
    image_config: ImageConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_images(image_config.data.model_copy(update=changes))


# ---------------------------------------------------------------- digests and twins


def test_the_digest_follows_pixels_labels_and_split(
    image_dataset: ImageDataset, image_config: ImageConfig
) -> None:
    images = np.asarray(image_dataset.batch.values[IMAGE]).copy()
    images[5, 0, 3, 3] += 0.01
    labels = image_dataset.rows.anomaly.copy()
    labels[0] = True
    rows = dataclasses.replace(image_dataset.rows, anomaly=labels)
    splits = image_config.data.splits.model_copy(update={"seed": 1})
    others = [
        dataclasses.replace(image_dataset, batch=image_batch(images)),
        dataclasses.replace(image_dataset, rows=rows),
        load_images(image_config.data.model_copy(update={"splits": splits})),
        load_images(image_config.data.model_copy(update={"size": 20})),
    ]
    assert len({image_dataset.digest, *(other.digest for other in others)}) == 5


def test_the_digest_knows_no_path(image_config: ImageConfig, tmp_path: Path) -> None:
    place = Path(image_config.data.paths[0]).parent
    shutil.copytree(place, tmp_path / "moved")
    data = image_config.data.model_copy(update={"path": str(tmp_path / "moved" / "manifest.csv")})
    assert load_images(data).digest == load_images(image_config.data).digest


def test_near_twins_are_counted_mirrored_and_brighter_ones_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 200, (40, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    for number, image in enumerate(images):
        png(tmp_path / f"{number:02d}.png", image)
    plain = load_images(ImageData(path=str(tmp_path), size=32))
    test, train = plain.assignment.rows(TEST), plain.assignment.rows(TRAIN)
    png(tmp_path / f"{test[0]:02d}.png", images[train[0]])
    png(tmp_path / f"{test[1]:02d}.png", images[train[1], :, ::-1])
    png(tmp_path / f"{test[2]:02d}.png", images[train[2]] + 40)
    encoding: Any = None  # pixels decide, not how they are encoded
    assert not plain.test_twins(encoding).any()
    twins = load_images(ImageData(path=str(tmp_path), size=32)).test_twins(encoding)
    assert np.flatnonzero(twins).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- the frozen test split


def test_the_frozen_table_gives_the_same_images_again(
    image_dataset: ImageDataset, tmp_path: Path
) -> None:
    pq.write_table(image_dataset.test_table, tmp_path / "test.parquet")
    frozen = pq.read_table(tmp_path / "test.parquet")
    batch = image_dataset.schema.from_arrow(frozen)
    assert not batch.problems
    np.testing.assert_array_equal(batch.values[IMAGE], image_dataset.part(TEST).values[IMAGE])
    rows = image_dataset.assignment.rows(TEST)
    assert set(frozen.column_names) == {IMAGE, "label", "group"}  # no path: it may name a patient
    assert frozen["label"].equals(image_dataset.table["label"].take(pa.array(rows)))
    assert image_dataset.rows.group is not None
    np.testing.assert_array_equal(frozen["group"].to_numpy(), image_dataset.rows.group[rows])


def test_the_frozen_table_has_the_frames_that_test_and_no_others(tmp_path: Path) -> None:
    data = load_images(ImageData(path=str(stack(tmp_path, 12, 3)), size=16))
    table = data.test_table
    assert len(table) == len(data.assignment.rows(TEST))
    batch = data.schema.from_arrow(table)
    np.testing.assert_array_equal(batch.values[IMAGE], data.part(TEST).values[IMAGE])


def test_the_frozen_table_keeps_colour(tmp_path: Path) -> None:
    for number, image in enumerate(coloured(blobs(20))):
        png(tmp_path / f"{number:02d}.png", image)
    data = load_images(ImageData(path=str(tmp_path), size=16, channels=3))
    batch = data.schema.from_arrow(data.test_table)
    np.testing.assert_array_equal(batch.values[IMAGE], data.part(TEST).values[IMAGE])


def write_all(folder: Path, images: NDArray[np.uint8]) -> Path:
    for number, image in enumerate(images):
        png(folder / f"{number:02d}.png", image)
    return folder


def test_colour_that_the_model_does_not_see_is_told_at_training(tmp_path: Path) -> None:
    images = coloured(blobs(20))
    images[6:] = images[6:, ..., :1]  # grey, though stored as RGB
    path = str(write_all(tmp_path, images))
    data = load_images(ImageData(path=path, size=16))
    expected = "6 of 20 images are in colour, but the model sees grey; set data.channels: 3 if"
    assert any(note.startswith(expected) for note in data.notes)
    data = load_images(ImageData(path=path, size=16, channels=3))
    assert not any("colour" in note for note in data.notes)


def test_grey_images_for_a_model_of_colours_are_told_at_training(tmp_path: Path) -> None:
    path = str(write_all(tmp_path, blobs(20)))
    data = load_images(ImageData(path=path, size=16, channels=3))
    assert "none of the 20 images is in colour; data.channels: 1 suffices" in data.notes
    assert not any("colour" in note for note in load_images(ImageData(path=path, size=16)).notes)


def test_windows_that_hide_nearly_all_are_told_at_training(tmp_path: Path) -> None:
    for number, image in enumerate(blobs(20)):
        scan = dcmread(io.BytesIO(dicom_file(image[None])))
        scan.WindowCenter, scan.WindowWidth = int(np.median(image)), 1
        scan.save_as(tmp_path / f"{number:02d}.dcm")
    data = load_images(ImageData(path=str(tmp_path), size=16))
    assert data.notes[0] == (
        "the windows in the files make nearly all pixels of 20 images black or white; "
        "set data.intensity_window: percentile"
    )
    data = load_images(ImageData(path=str(tmp_path), size=16, intensity_window="percentile"))
    assert not data.notes


def test_what_is_frozen_neither_trains_nor_calibrates(image_dataset: ImageDataset) -> None:
    train = image_dataset.assignment.rows(TRAIN)[:3]
    table = image_dataset.table.take(pa.array(train))
    frozen = table.append_column(IMAGE, pa.array(image_dataset._encode(train), pa.binary()))
    without = image_dataset.without(frozen)
    assert set(without.assignment.codes[train]) == {UNUSED}
    assert without.assignment.unused["in the frozen test split"] >= 3
    assert without.origin == image_dataset.digest
    assert without.digest != image_dataset.digest


def test_its_own_test_split_frozen_changes_nothing(image_dataset: ImageDataset) -> None:
    without = image_dataset.without(image_dataset.test_table)
    np.testing.assert_array_equal(without.assignment.codes, image_dataset.assignment.codes)
    assert without.digest == image_dataset.digest
