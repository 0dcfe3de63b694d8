"""Manifests, whose rows name files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.images.schema import ImageSchema
from pipelines.datasets.images.batches import read_all
from pipelines.datasets.images.dataset import read_labelled
from pipelines.datasets.images.listing import find_images, list_files
from tests.support.image_folders import Write, png
from tests.support.scans import blobs

SCHEMA = ImageSchema(16, 1)


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
    "ftp://bucket/a.png,0": "it is a URL; copy the file here and list its path",
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
