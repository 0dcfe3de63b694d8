"""The state of followed models is shared between worker processes through a file."""

import asyncio

import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from serving.registry.board import Board, FollowedModel, FollowState

URI = "models:/fraud@champion"
SOURCE = BundleRef("folder", "0" * 64, "fraud", "2", "champion", 1.5)
STATE = FollowState((FollowedModel(URI, "fraud", False, SOURCE, "registry", "gone", 7.0),), 8.0)


def test_a_board_in_a_file_is_read_by_others_as_it_was_written(tmp_path):
    Board.shared(tmp_path / "board.json", STATE)
    other = Board(path=tmp_path / "board.json")
    assert other.read() == STATE
    other.write(FollowState())
    assert Board(path=tmp_path / "board.json").read() == FollowState()
    assert [path.name for path in tmp_path.iterdir()] == ["board.json"]


def test_a_board_in_memory_is_its_own():
    board = Board(STATE)
    assert board.read() is STATE
    board.write(FollowState())
    assert board.read() == FollowState()
    assert Board().read() == FollowState()


def test_only_a_file_is_shared(tmp_path):
    assert not Board().is_shared
    assert Board(path=tmp_path / "board.json").is_shared


def test_a_change_is_noticed_once(tmp_path):
    board = Board.shared(tmp_path / "board.json", FollowState())
    assert board.has_changed(), "it was never looked at"
    assert not board.has_changed()
    Board(path=tmp_path / "board.json").write(STATE)
    assert board.has_changed()
    assert not board.has_changed()


def test_a_board_in_memory_never_changes_by_others():
    board = Board()
    board.write(STATE)
    assert not board.has_changed()


@pytest.mark.parametrize("shared", [True, False])
def test_processes_check_the_registry_one_after_another(tmp_path, shared):
    """Boards in memory belong to one process each, so they do not wait."""
    paths = [tmp_path / "board.json" if shared else None] * 2
    events = []

    async def check(name, board):
        async with board.exclusive():
            events.append(f"{name} starts")
            await asyncio.sleep(0.1)
            events.append(f"{name} ends")

    async def both():
        await asyncio.gather(*(check(n, Board(path=path)) for n, path in enumerate(paths)))

    asyncio.run(both())
    ends_first = ["0 starts", "0 ends", "1 starts", "1 ends"]
    assert events == (ends_first if shared else ["0 starts", "1 starts", "0 ends", "1 ends"])


def test_a_check_that_fails_keeps_nobody_waiting(tmp_path):
    async def check(board, fail):
        async with board.exclusive():
            if fail:
                raise ZeroDivisionError
            return True

    with pytest.raises(ZeroDivisionError):
        asyncio.run(check(Board(path=tmp_path / "board.json"), True))
    assert asyncio.run(check(Board(path=tmp_path / "board.json"), False))


def test_a_model_is_unchecked_until_the_registry_answers_or_fails():
    assert FollowedModel(URI).is_unchecked
    assert not FollowedModel(URI, checked_at=0.0).is_unchecked
    assert not FollowedModel(URI, reason="registry").is_unchecked


def test_the_version_is_that_of_the_bundle():
    assert FollowedModel(URI).version is None
    assert FollowedModel(URI, source=SOURCE).version == "2"
    assert FollowedModel(URI, source=BundleRef("folder")).version is None
