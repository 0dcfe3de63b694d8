"""Words go to stderr, numbers read well, and stdout has one line of JSON."""

from __future__ import annotations

import json
import math

import pytest

from pipelines import console


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (None, "–"),
        (1_234_567, "1,234,567"),
        (0.123456, "0.1235"),
        (1e-9, "1e-09"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_values_are_spelled_for_people(value: object, spelled: str) -> None:
    assert console.format_value(value) == spelled


def test_the_result_is_one_line_of_json_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    content = {"a": [1, None, "é"], "b": {"c": 0.1}}
    console.result(content)
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    assert json.loads(out) == content


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_json_is_never_printed(
    number: float, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.result({"score": number})
    assert capfd.readouterr().out == ""


def test_words_tables_and_bars_leave_stdout_alone(capfd: pytest.CaptureFixture[str]) -> None:
    console.info("plain [bold]words[/bold]")
    console.heading("a step [x]")
    console.table("Title", ("name", "value"), [("a [b]", 1_000), ("c", 0.5)])
    with console.progress("Working", 3) as (bar, task):
        bar.update(task, completed=3, note="done")
    out, err = capfd.readouterr()
    assert out == ""
    assert "plain [bold]words[/bold]" in err
    assert "a step [x]" in err
    assert "a [b]" in err
    assert "1,000" in err


def test_a_table_without_rows_shows_its_header(capfd: pytest.CaptureFixture[str]) -> None:
    console.table("Nothing", ("name", "value"), [])
    assert "name" in capfd.readouterr().err


def test_a_narrow_table_folds_what_it_cannot_fit(capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW" for days in (1, 7, 30)]
    header = ("column", *("a figure of some words",) * 5)
    console.table("Columns", header, [(name, *("12345678",) * 5) for name in names])
    words = capfd.readouterr().err
    assert "…" not in words
    first = "".join(line[:14].strip() for line in words.splitlines())
    assert all(name in first for name in names)
