"""Files and folders that are whole or not there, whatever interrupts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anomaly_vae.files import atomic_folder, atomic_path, recover


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


def test_a_crash_between_the_two_renames_is_undone(folder: Path) -> None:
    write(folder, "old")
    folder.rename(previous(folder))
    recover(folder)
    assert content(folder) == {"a": "old"}
    assert not previous(folder).exists()


def test_a_crash_before_the_old_folder_was_removed_does_not_block_the_next(folder: Path) -> None:
    write(folder, "older")
    folder.rename(previous(folder))
    (folder.parent / "x").mkdir()
    (folder.parent / "x").rename(folder)
    recover(folder)
    assert content(folder) == {}, "the newer one stays"
    write(folder, "new")
    assert content(folder) == {"a": "new"}
    assert not previous(folder).exists()


def test_recovering_where_nothing_happened_does_nothing(folder: Path) -> None:
    recover(folder)
    write(folder, "old")
    recover(folder)
    assert content(folder) == {"a": "old"}


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
