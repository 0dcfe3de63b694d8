"""Counts of values by hash: exact, bounded in size, and divided into bands."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from anomaly_vae.data import frequency
from anomaly_vae.data.frequency import FrequencyBands, ValueCounts, fit_bands, hash_values
from anomaly_vae.errors import DataError

texts = st.text(max_size=8)


@given(st.lists(texts), st.lists(texts))
def test_counts_are_those_of_a_counter(seen: list[str], wanted: list[str]) -> None:
    naive = Counter(seen)
    counts = ValueCounts.of_values(list(naive), np.array(list(naive.values()), np.int64))
    assert counts.look_up(wanted).tolist() == [naive[name] for name in wanted]


@given(st.lists(texts, min_size=1, unique=True))
def test_counts_survive_a_file(names: list[str]) -> None:
    counts = ValueCounts.of_values(names, np.arange(1, len(names) + 1))
    stored = save(counts.tensors("a/b"))
    restored = ValueCounts.from_tensors("a/b", load(stored))
    np.testing.assert_array_equal(restored.look_up(names), np.arange(1, len(names) + 1))


def test_a_hash_is_the_same_on_every_machine() -> None:
    assert hash_values(["Rome", "", "\ud800"]).tolist() == [
        int.from_bytes(bytes.fromhex(digest), "little")
        for digest in ("9c8d976daa3afef0", "e4a6a0577479b2b4", "4208783e927d0d68")
    ]


def test_counts_of_values_with_one_hash_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def collide(names: list[str]) -> np.ndarray:
        return np.array([len(name) for name in names], np.uint64)

    monkeypatch.setattr(frequency, "hash_values", collide)
    counts = ValueCounts.of_values(["ab", "c", "de"], np.array([2, 5, 3]))
    assert counts.look_up(["xy", "z", "xyz"]).tolist() == [5, 5, 0]


def test_only_the_most_frequent_values_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "MAX_VALUES", 2)
    counts = ValueCounts.of_values(["a", "b", "c", "d"], np.array([1, 7, 1, 9]))
    assert counts.look_up(["a", "b", "c", "d"]).tolist() == [0, 7, 0, 9]
    assert len(counts.keys) == 2


def test_a_count_beyond_32_bits_is_limited() -> None:
    counts = ValueCounts.of_values(["a"], np.array([2**40]))
    assert counts.look_up(["a"]).tolist() == [2**32 - 1]


@pytest.mark.parametrize(
    "change",
    [
        {"x/keys": np.array([2, 1], np.uint64)},
        {"x/keys": np.array([1, 1], np.uint64)},
        {"x/keys": np.array([1, 2], np.int64)},
        {"x/counts": np.array([1], np.uint32)},
        {"x/counts": np.array([1.0, 2.0])},
        {"x/keys": np.ones((1, 2), np.uint64), "x/counts": np.ones((1, 2), np.uint32)},
    ],
    ids=["unsorted", "repeated", "signed", "too few", "no counts", "matrices"],
)
def test_damaged_counts_are_refused(change: dict[str, np.ndarray]) -> None:
    sound = {"x/keys": np.array([1, 2], np.uint64), "x/counts": np.array([5, 6], np.uint32)}
    ValueCounts.from_tensors("x", sound)
    with pytest.raises(DataError, match="column 'x' are absent or damaged"):
        ValueCounts.from_tensors("x", sound | change)
    with pytest.raises(DataError, match="column 'y' are absent"):
        ValueCounts.from_tensors("y", sound)


def test_more_counts_than_are_ever_stored_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency, "MAX_VALUES", 1)
    tensors = {"x/keys": np.array([1, 2], np.uint64), "x/counts": np.array([5, 6], np.uint32)}
    with pytest.raises(DataError, match="damaged"):
        ValueCounts.from_tensors("x", tensors)


def test_bands_double_and_the_last_is_open() -> None:
    bands = FrequencyBands(rows=9, values=(1,) * 5, rarity=0.0)
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 10**9])
    assert bands.band(counts).tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert bands.names == (
        "(never seen)", "(seen once)", "(seen 2 to 3 times)", "(seen 4 to 7 times)",
        "(seen 8 times or more)",
    )  # fmt: skip


@given(st.lists(st.integers(1, 300), min_size=1))
def test_the_last_band_is_one_that_training_rows_reach_without_themselves(
    counts: list[int],
) -> None:
    bands = fit_bands(np.array(counts), sum(counts), 1.0)
    without = bands.band(np.array(counts) - 1)
    assert without.max() == len(bands.values) - 1
    assert sum(bands.values[1:]) == (bands.band(np.array(counts)) > 0).sum()
    assert bands.values[0] == counts.count(1)


def test_rarity_weighs_the_number_of_values_of_a_band() -> None:
    whole = FrequencyBands(rows=9, values=(0, 1, 100), rarity=1.0)
    half = whole.model_copy(update={"rarity": 0.5})
    np.testing.assert_allclose(whole.log_shares, [0, 0, -np.log(100)])
    np.testing.assert_allclose(half.log_shares, [0, 0, -np.log(100) / 2])


def test_counts_are_described_in_words() -> None:
    bands = FrequencyBands(rows=40_000, values=(1, 1), rarity=0.0)
    assert bands.describe(0) == "never seen in 40,000 training rows"
    assert bands.describe(1) == "seen once in 40,000 training rows"
    assert bands.describe(1_234) == "seen 1,234 times in 40,000 training rows"
    assert bands.names == ("(never seen)", "(seen at least once)")
