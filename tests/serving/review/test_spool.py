"""Cases that wait on disk: they survive, they are bounded, and one process empties the folder."""

import datetime as dt

import pytest

from anomaly_vae.review import Case, PValueCounts
from serving.review.spool import Batch, Spool


def case(row):
    return Case.of(model="fraud", row=row, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01)


def batch(*rows):
    counts = PValueCounts.of("fraud", "3", dt.date(2024, 1, 31), [0.001, 0.5])
    return Batch([case(row) for row in rows], [counts])


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path, "postgresql://host/db", 100_000)


def test_batches_wait_in_order_and_come_back_whole(spool, tmp_path):
    batches = [batch(1, 2), batch(3)]
    assert all(map(spool.put, batches))
    again = Spool(tmp_path, "postgresql://host/db", 100_000)
    paths, found = zip(*again.waiting(), strict=True)
    assert list(found) == batches
    again.remove(paths[0])
    assert [one for _, one in spool.waiting()] == batches[1:]
    assert list(Spool(tmp_path, "postgresql://other/db", 1).waiting()) == []


def test_there_is_room_for_so_much(tmp_path):
    spool = Spool(tmp_path, "store", 2_000)
    outcomes = [spool.put(batch(row)) for row in range(5)]
    assert outcomes[0]
    assert not outcomes[-1]
    assert 0 < spool.size <= 2_000


def test_a_folder_that_cannot_be_written_to_is_no_room(tmp_path):
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file", "store", 100_000)
    assert not spool.put(batch(1))
    assert (spool.size, list(spool.waiting())) == (0, [])
    assert spool.is_leader()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"cases": 3}'])
def test_a_damaged_file_is_set_aside(spool, content):
    assert spool.put(batch(1))
    (path,) = (path for path, _ in spool.waiting())
    path.write_bytes(content)
    ((found, nothing),) = spool.waiting()
    assert (found, nothing) == (path, None)
    spool.set_aside(path)
    assert list(spool.waiting()) == []
    assert [one.suffix for one in spool.folder.iterdir()] == [".damaged"]


def test_one_process_empties_the_folder(spool, tmp_path):
    other = Spool(tmp_path, "postgresql://host/db", 100_000)
    assert spool.is_leader()
    assert spool.is_leader()
    assert not other.is_leader()
    spool.close()
    assert other.is_leader()
    other.close()
