"""The choice of the highest rows: the same from the whole as from its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.batch.result.ranking import DAY, Ranking


def rows(seed: int, n: int = 400) -> pa.Table:
    """Rows with many equal scores, days and values; some have no day or no value."""
    chance = np.random.default_rng(seed)
    day = chance.integers(0, 4, n)
    card = chance.integers(0, 30, n)
    return pa.table(
        {
            DAY: pa.array(day, pa.int32(), mask=day == 3).cast(pa.date32()),
            "id": [f"{i:03d}" for i in chance.permutation(n)],
            "card": pa.array(card, pa.int64(), mask=card == 7),
            "score": chance.integers(0, 12, n) / 4,
        }
    )


def expected(table: pa.Table, n: int, per_day: bool, by: str | None) -> list[tuple[Any, ...]]:
    """The same choice, one row after the other."""
    found: list[tuple[Any, ...]] = []
    seen: dict[Any, int] = {}
    taken = set()
    for row in sorted(table.to_pylist(), key=lambda row: (-row["score"], row["id"])):
        day, value = row[DAY] if per_day else 0, row[by] if by else None
        if (value is None or (day, value) not in taken) and seen.get(day, 0) < n:
            seen[day] = seen.get(day, 0) + 1
            taken.add((day, value))
            found.append((str(day), seen[day], row["id"]))
    return sorted(found)


@pytest.mark.parametrize("per_day", [True, False])
@pytest.mark.parametrize("by", ["card", None])
@pytest.mark.parametrize("n", [1, 5, 1_000])
def test_the_choice_is_that_of_a_plain_loop_in_one_go_and_by_parts(
    per_day: bool, by: str | None, n: int
) -> None:
    table = rows(seed=n)
    ranking = Ranking(n, per_day, by, ("id",))
    parts = [ranking.highest(table.slice(start, 70)) for start in range(0, len(table), 70)]
    for chosen in (ranking.highest(table), ranking.highest(pa.concat_tables(parts))):
        days = chosen[DAY].to_pylist() if per_day else [0] * len(chosen)
        ranks, ids = ranking.ranks(chosen).tolist(), chosen["id"].to_pylist()
        found = sorted(zip(map(str, days), ranks, ids, strict=True))
        assert found == expected(table, n, per_day, by)


def test_equal_ids_are_in_the_order_of_the_input() -> None:
    table = pa.table({"id": ["a"] * 4, "score": [1.0, 2.0, 2.0, 1.0], "at": [0, 1, 2, 3]})
    assert Ranking(3, keys=("id",)).highest(table)["at"].to_pylist() == [1, 2, 0]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([2, None, 1], pa.duration("s")),
        pa.array([b"b", None, b"a"]),
        pa.array(["b", None, "a"], pa.large_string()),
        pa.array([2, None, 1], pa.timestamp("ns", "UTC")),
        pa.array([2, None, 1], pa.time32("s")),
        pa.array([True, None, False]),
    ],
    ids=str,
)
def test_ids_of_every_type_decide_and_rows_without_one_come_last(ids: pa.Array) -> None:
    table = pa.table({"id": ids, "score": [1.0] * 3, "at": [0, 1, 2]})
    assert Ranking(3, keys=("id",)).highest(table)["at"].to_pylist() == [2, 0, 1]
