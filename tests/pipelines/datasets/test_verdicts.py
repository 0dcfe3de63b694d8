"""Which rows verdicts are about, what labels mean, and which verdict counts."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, UNSURE
from pipelines.datasets.verdicts import ID_TYPE, NONE, Verdicts, id_texts, newest


def verdicts(*rows: tuple[str, int, float]) -> Verdicts:
    ids, codes, at = zip(*rows, strict=True) if rows else ((), (), ())
    return Verdicts(pa.array(ids, ID_TYPE), np.array(codes, np.int8), np.array(at, float))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([12, None, 7]),
        pa.array([12, None, 7], pa.uint8()),
        pa.array([12.0, None, 7.0]),
        pa.array([12.0, math.nan, 7.0]),
        pa.array(["12", None, " 7 "]),
        pa.array(["12.0", None, "7."]),
        pa.array([b"12", None, b"7"]),
        pa.array(["12", None, "7"]).dictionary_encode(),
        pa.chunked_array([["12"], [None, "7"]]),
        pa.array([12, None, 7]).cast(pa.decimal128(25, 2)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_any_type_are_the_same_text(ids: pa.Array) -> None:
    assert id_texts(ids).to_pylist() == ["12", None, "7"]


@pytest.mark.parametrize("text", ["012", "1.5", "a-1", "1e3", "9" * 25])
def test_ids_that_only_resemble_numbers_stay_as_they_are(text: str) -> None:
    assert id_texts(pa.array([text])).to_pylist() == [text]


def test_long_whole_ids_keep_their_digits() -> None:
    assert id_texts(pa.array([2**53 - 1, 2.0**40])).to_pylist() == [str(2**53 - 1), str(2**40)]
    assert id_texts(pa.array([2**63 - 1])).to_pylist() == [str(2**63 - 1)]


def test_the_newest_verdict_counts_else_the_last() -> None:
    found = newest(
        verdicts(
            ("a", ANOMALY, 2), ("a", NORMAL, 1), ("b", NORMAL, math.nan), ("b", ANOMALY, math.nan),
            ("c", NORMAL, 5), ("c", UNSURE, 5), ("d", ANOMALY, math.nan), ("d", ANOMALY, math.nan),
        )
    )  # fmt: skip
    kept = dict(zip(found.verdicts.ids.to_pylist(), found.verdicts.codes.tolist(), strict=True))
    assert kept == {"a": ANOMALY, "b": ANOMALY, "c": UNSURE, "d": ANOMALY}
    assert "8 late labels are about 4 ids" in found.notes[0]
    assert "2 ids: 'b', 'c'" in found.notes[1], "a has times, and d agrees with itself"


def test_verdicts_that_agree_are_no_conflict() -> None:
    assert newest(verdicts(("a", ANOMALY, math.nan))).notes == ()
    assert len(newest(verdicts()).verdicts) == 0


rows = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(0, 2), st.sampled_from([1.0, 2.0, 3.0, math.nan])
    ),
    max_size=12,
)


@given(rows)
def test_the_newest_verdicts_are_those_of_a_plain_loop(rows: list[tuple[str, int, float]]) -> None:
    best: dict[str, tuple[float, int]] = {}
    for name, code, at in rows:
        time = -math.inf if math.isnan(at) else at
        if name not in best or time >= best[name][0]:
            best[name] = (time, code)
    found = newest(verdicts(*rows)).verdicts
    assert dict(zip(found.ids.to_pylist(), found.codes.tolist(), strict=True)) == {
        name: code for name, (_, code) in best.items()
    }


def test_verdicts_find_their_rows_and_survive_a_table() -> None:
    some = verdicts(("a", ANOMALY, 1), ("b", UNSURE, math.nan))
    again = Verdicts.from_table(some.table)
    ids = pa.array(["b", None, "c", "a", "a"], ID_TYPE)
    assert again.on(ids).tolist() == [UNSURE, NONE, NONE, ANOMALY, ANOMALY]
    np.testing.assert_array_equal(again.at, some.at)
    over = verdicts(("a", NORMAL, 0)).over(some)
    assert over.on(ids).tolist() == [UNSURE, NONE, NONE, NORMAL, NORMAL]
    assert Verdicts.empty().on(ids).tolist() == [NONE] * 5
    assert len(Verdicts.from_table(Verdicts.empty().table)) == 0
