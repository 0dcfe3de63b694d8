"""Plans of runs: how the input is cut, and how two plans differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.batch.result.plan import Input, Piece, Place, Plan, Unit, cut, input_of

MODEL = {"uri": "m", "name": "fraud", "version": None, "alias": None, "digest": "a" * 64}


def plan(*inputs: Input) -> Plan:
    units = (Unit(Place(0), Place(1, 3)), Unit(Place(1, 3), Place(2)))
    return Plan(MODEL, {"--explain": None}, inputs, units)


@given(
    st.lists(st.lists(st.floats(0, 2), min_size=1, max_size=4), min_size=1, max_size=6),
    st.none() | st.integers(0, 5),
)
def test_units_cover_every_row_group_once_and_in_order(
    shares: list[list[float]], text: int | None
) -> None:
    pieces = [
        Piece(Place(file, group), share)
        for file, groups in enumerate(shares)
        for group, share in enumerate(groups)
    ]
    in_order = text if text is not None and text < len(shares) else None
    units = cut(pieces, Place(len(shares)), in_order)
    read = [
        (file, group)
        for unit in units
        for file, groups in unit.files
        for group in range(len(shares[file]))[groups]
    ]
    assert read == [piece.start for piece in pieces]
    assert sum(1 for unit in units if in_order is not None and unit.end.file > in_order) <= 1
    if in_order is None:
        for unit in units[:-1]:
            inside = [p.share for p in pieces if unit.first <= p.start < unit.end]
            assert sum(inside) >= 1
            assert sum(inside[:-1]) < 1


def test_a_stored_plan_is_the_plan() -> None:
    stored = plan(Input("a", 1, 2, None), Input("b\udce9", 3, 4, 5, "x"))
    again = Plan.from_bytes(stored.to_bytes())
    assert again == stored
    assert again is not None
    assert again.digest == stored.digest
    assert replace(stored, pipe="-").digest != stored.digest


def test_files_in_another_order_are_another_input() -> None:
    first, second = Input("a", 1, 2, None), Input("b", 1, 2, None)
    difference = plan(first, second).difference(plan(second, first))
    assert difference == "of the same files in another order"
    assert plan(first, second).difference(plan(first, second)) is None


def test_an_option_that_an_older_plan_lacks_has_its_default() -> None:
    old, new = plan(), replace(plan(), options={"--explain": None, "--top": None})
    assert old.difference(new) is None
    assert "without --top, and not with --top 3" in str(
        old.difference(replace(new, options={"--top": 3}))
    )


def test_a_path_that_leads_nowhere_is_an_input_too(tmp_path: Path) -> None:
    assert input_of(tmp_path / "gone", 0).bytes == -1
