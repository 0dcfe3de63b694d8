"""Test how packed events are placed and dropped."""

import struct

import pytest

from anomaly_vae.features.store.records import Hasher, kept, last_time, placed


def packed(*times):
    return b"".join(struct.pack("<qq", time, number) for number, time in enumerate(times))


def times(events):
    return [time for time, _ in struct.iter_unpack("<qq", events)]


@pytest.mark.parametrize("time", [-5, 1, 2, 3, 9])
def test_events_are_placed_in_order_of_time(time):
    assert times(placed(packed(1, 2, 3), packed(time))) == sorted([1, 2, 3, time])


def test_the_first_event_is_placed():
    assert times(placed(b"", packed(-7))) == [-7]


def test_old_events_and_too_many_are_dropped():
    events = packed(-3, 1, 2, 3)
    assert times(kept(events, 1, 16, 9)[0]) == [1, 2, 3]
    assert kept(events, 1, 16, 2) == (events[32:], 1)
    assert kept(events, 9, 16, 2) == (b"", 0)
    assert last_time(events, 16) == 3


def test_hashes_differ_by_kind_salt_and_layout():
    one = Hasher("pepper", "a")
    assert (
        len({one.id("1"), one.value("1"), Hasher("", "a").id("1"), Hasher("pepper", "b").id("1")})
        == 4
    )
    assert one.key("card", "1") != one.key("shop", "1") != Hasher("pepper", "b").key("shop", "1")
    assert len(Hasher("s" * 100, "a").check) == 32
