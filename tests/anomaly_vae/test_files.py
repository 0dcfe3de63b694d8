"""Files and folders that are whole or not there, whatever interrupts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anomaly_vae.files import atomic_folder, atomic_path, locked
from tests.support.paths import ROOT


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as whole:
        (whole / "a").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "down" / "folder"


def test_a_folder_appears_when_its_block_ends(folder: Path) -> None:
    with atomic_folder(folder) as whole:
        (whole / "a").write_text("new")
        assert not folder.exists()
        assert whole.parent == folder.parent
    assert content(folder) == {"a": "new"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_a_folder_replaces_the_previous_one_entirely(folder: Path) -> None:
    write(folder, "old")
    (folder / "b").write_text("of the old one")
    with atomic_folder(folder) as whole:
        assert content(folder) == {"a": "old", "b": "of the old one"}
        (whole / "a").write_text("new")
    assert content(folder) == {"a": "new"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_everything_as_it_was(
    error: type[BaseException], folder: Path
) -> None:
    def fail() -> None:
        with atomic_folder(folder) as whole:
            (whole / "a").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert not list(folder.parent.iterdir())
    write(folder, "old")
    with pytest.raises(error):
        fail()
    assert content(folder) == {"a": "old"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_rename_that_fails_leaves_the_previous_folder(
    nth: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether moving the old one aside fails or moving the new one into its place."""
    write(folder, "old")
    rename, calls = os.rename, []

    def fail(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == nth:
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        write(folder, "new")
    assert content(folder) == {"a": "old"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def test_a_crash_between_the_two_renames_is_undone_by_the_next_writer(folder: Path) -> None:
    write(folder, "old")
    folder.rename(previous(folder))
    with atomic_folder(folder) as whole:
        assert content(folder) == {"a": "old"}
        (whole / "a").write_text("new")
    assert content(folder) == {"a": "new"}
    assert not previous(folder).exists()


def test_a_crash_before_the_old_folder_was_removed_does_not_block_the_next(folder: Path) -> None:
    write(folder, "older")
    folder.rename(previous(folder))
    folder.mkdir()
    with atomic_folder(folder) as whole:
        assert content(folder) == {}, "the newer one stays"
        (whole / "a").write_text("new")
    assert content(folder) == {"a": "new"}
    assert not previous(folder).exists()


def test_what_may_stay_stays(folder: Path) -> None:
    write(folder, "old")
    with atomic_folder(folder, keep=lambda path: content(path) == {"a": "old"}) as whole:
        (whole / "a").write_text("new")
    assert content(folder) == {"a": "old"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_writers_of_one_folder_take_turns(folder: Path) -> None:
    """Each ends well, none leaves anything behind, and the last one's files are whole."""

    def several(writer: int) -> None:
        for turn in range(25):
            with atomic_folder(folder) as whole:
                for name in "ab":
                    (whole / name).write_text(f"{writer} {turn}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(several, range(8)))
    assert set(content(folder)) == {"a", "b"}
    assert len(set(content(folder).values())) == 1
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


WRITE = """
import sys
from pathlib import Path
from anomaly_vae.files import atomic_folder
for turn in range(50):
    with atomic_folder(Path(sys.argv[1])) as whole:
        (whole / "a").write_text(sys.argv[2])
"""


def test_writers_of_several_processes_take_turns(folder: Path) -> None:
    root = ROOT
    code = [sys.executable, "-c", WRITE, str(folder)]
    writers = [subprocess.Popen([*code, str(number)], cwd=root) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert content(folder)["a"] in {"0", "1", "2"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["folder"]


def test_only_one_holds_the_lock_of_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
        pass
    with locked(tmp_path, wait=False):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_folders_cannot_be_locked_they_are_written_without(
    code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    write(folder, "new")
    assert content(folder) == {"a": "new"}


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic_path(path) as whole:
        whole.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_whose_block_fails_stays_as_it_was(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as whole:
            whole.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_place_of_a_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    def write_over() -> None:
        with atomic_path(tmp_path) as whole:
            whole.write_text("new")

    with pytest.raises(IsADirectoryError) as caught:
        write_over()
    assert caught.value.filename == str(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))
