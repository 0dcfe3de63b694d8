"""The decimal mark of a column follows from its cells, and is never guessed."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.reading.numbers import Spelling, mark_of_file, rewritten


def spelling(*cells: str | None) -> Spelling:
    found = Spelling()
    found.count(pa.array(cells, pa.string()))
    return found


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["12,50", "7", None], ","),
        (["1.234,50", "3"], ","),
        (["0,123"], ","),
        (["1.234.567"], ","),
        (["1 234,5", "-7,25", "1,5e3", "NA"], ","),
        (["1,234.50", "7"], "."),
        (["1,234,567"], "."),
        (["1'234.50"], "."),
        (["12.50", "7"], None),
        (["7", "8"], None),
        (["1,234", "7"], None),
        (["1.234", "7"], None),
        (["12,50", "12.50"], None),
        (["12,50", "x", "y", "z"], None),
        (["1,2,3", "4,5"], None),
        (["192.168.100.101", "192.168.200.102"], None),
        (["x"], None),
        ([], None),
    ],
)
def test_the_mark_is_decided_where_the_cells_leave_no_doubt(
    cells: list[str | None], mark: str | None
) -> None:
    assert spelling(*cells).decide(None) == mark


@pytest.mark.parametrize(
    ("cells", "of_file", "mark"),
    [
        (["1,234", "7"], ",", ","),
        (["1,234", "7"], ".", "."),
        (["1.234", "7"], ",", ","),
        (["1.234", "7"], ".", None),
        (["12.5", "7"], ",", None),
        (["7"], ",", None),
        (["a,b"], ",", None),
    ],
)
def test_the_file_decides_where_a_column_is_in_doubt(
    cells: list[str], of_file: Any, mark: str | None
) -> None:
    assert spelling(*cells).decide(of_file) == mark


def test_columns_that_disagree_decide_nothing_for_others() -> None:
    comma, point, none = spelling("1,5"), spelling("1.5"), spelling("1,234")
    assert mark_of_file({"a": comma, "b": none}) == ","
    assert mark_of_file({"a": comma, "b": point}) is None
    assert mark_of_file({"a": none}) is None


@pytest.mark.parametrize(
    ("cell", "mark", "expected"),
    [
        ("12,50", ",", "12.50"),
        ("-1.234.567,5", ",", "-1234567.5"),
        ("1 234,5", ",", "1234.5"),
        ("1\u202f234,5", ",", "1234.5"),
        ("7", ",", "7"),
        ("12.50", ",", "12.50"),
        ("1,234.5", ".", "1234.5"),
        ("1’234", ".", "1234"),
        ("x, y", ",", "x, y"),
        (None, ",", None),
    ],
)
def test_numbers_are_rewritten_and_other_text_stays(
    cell: str | None, mark: Any, expected: str | None
) -> None:
    assert rewritten(pa.array([cell], pa.string()), mark).to_pylist() == [expected]


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.sampled_from([",", "."]))
def test_numbers_come_back_whatever_their_mark(cents: list[int], mark: Any) -> None:
    texts = [f"{value / 100:,.2f}" for value in cents]
    if mark == ",":
        texts = [text.translate(str.maketrans(",.", ".,")) for text in texts]
    numbers = rewritten(pa.array(texts), mark).cast(pa.float64()).to_pylist()
    assert numbers == [value / 100 for value in cents]
