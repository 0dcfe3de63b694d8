"""Words go to stderr, numbers read well, and stdout has one line of JSON."""

from __future__ import annotations

import json
import math
import os
import re
import sys

import pytest

from anomaly_vae import messages
from pipelines import console
from tests.support.paths import ROOT
from tests.support.terminal import run_on_terminal

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


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
    with console.progress("Working", "steps", 3) as (bar, task):
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


REASON = "the rate rose after the release of the new checkout, and the fraud team agreed to it"
HISTORY = f"""
from pipelines import console
console.table("History", ("when", "decision", "version", "by", "reason"), [
    ("2026-11-30T08:00:00+00:00", "promoted", 3, "alice@example.com", None),
    ("2026-11-30T09:00:00+00:00", "promoted (forced)", 12, "night-job", {REASON!r}),
])
"""


def test_a_table_of_a_file_has_one_line_per_row(capfd: pytest.CaptureFixture[str]) -> None:
    rows = [("a", 1, REASON * 5), ("b\nb", 2, "short")]
    console.table("History", ("name", "version", "reason"), rows)
    lines = [line.split() for line in capfd.readouterr().err.splitlines()]
    assert ["a", "1", *(REASON * 5).split()] in lines
    assert ["b", "b", "2", "short"] in lines


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_table_keeps_its_columns_or_has_one_field_per_line(width: int) -> None:
    code, text = run_on_terminal([sys.executable, "-c", HISTORY], width, ENVIRONMENT)
    assert code == 0
    assert max(map(len, text.splitlines())) <= width
    assert REASON.split() == [word for word in text.split() if word in REASON.split()]
    header = next(line for line in text.splitlines() if "when" in line)
    wide = width >= 200
    assert ("decision" in header) == wide
    if wide:
        (row,) = (line for line in text.splitlines() if "night-job" in line)
        assert row.index("night-job") == header.index("by")
        assert row.index(REASON) == header.index("reason")
    else:
        indented = [line for line in text.splitlines() if line.startswith("  ")]
        fields = [line.split()[0] for line in indented if line[2:3].strip()]
        assert fields == ["when", "decision", "version", "by", "reason"] * 2


RESULT = """
import sys
from pipelines import console
console.print_json("--json" in sys.argv)
console.result({"model_uri": "models:/fraud/3", "rows": 1234, "figures": {"auroc": 0.9}})
"""


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_terminal_gets_json_only_where_asked(option: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", RESULT, *option]
    code, text = run_on_terminal(command, 80, ENVIRONMENT)
    assert code == 0
    if option:
        assert json.loads(text)["rows"] == 1234
    else:
        assert text.splitlines() == ["model uri  models:/fraud/3", "rows       1,234"]


# ---------------------------------------------------------------- the rate


def test_a_file_gets_a_line_with_rate_and_time_left_every_so_often(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "REPORT_SECONDS", 0.0)
    meter = console.Meter("Scoring", "rows", 1_000, done=200)
    with meter.shown():
        meter.advance(300, "3 flagged")
    line = capfd.readouterr().err
    assert re.search(r"Scoring: 500 of 1,000 rows, [\d,]+ rows/s, \d+:\d\d:\d\d left, 3 fl", line)
    monkeypatch.setattr(messages, "REPORT_SECONDS", 60.0)
    with meter.shown():
        meter.advance(300, "3 flagged")
    assert capfd.readouterr().err == ""


def test_without_a_total_there_is_no_time_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(messages, "REPORT_SECONDS", 0.0)
    meter = console.Meter("Scoring", "images", None, done=0)
    with meter.shown():
        meter.advance(2_000, "0 flagged")
    line = capfd.readouterr().err
    assert "Scoring: 2,000 images, " in line
    assert "left" not in line


# ---------------------------------------------------------------- bars in files


def test_a_bar_in_a_file_is_a_line_for_each_part_of_the_work(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with console.progress("Training", "epochs", None, lines=10) as (bar, task):
        for number in range(1, 41):
            bar.update(task, total=40, completed=number, note="ELBO 1.00 nats")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"Training: 4 of 40 epochs, \d+:\d\d:\d\d left, ELBO 1.00 nats", lines[0])
    assert lines[-1] == "Training: 40 of 40 epochs, ELBO 1.00 nats"


def test_a_resumed_bar_has_no_time_left_before_it_can_know(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with console.progress("Training", "epochs", None, lines=10) as (bar, task):
        bar.update(task, total=40, completed=20, note="")
    assert capfd.readouterr().err == "Training: 20 of 40 epochs\n"


def test_a_bar_without_parts_is_a_line_every_so_often(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with console.progress("Reading", "files", 3) as (bar, task):
        bar.update(task, completed=1)
        monkeypatch.setattr(messages, "REPORT_SECONDS", 0.0)
        bar.update(task, completed=2)
    assert re.fullmatch(r"Reading: 2 of 3 files, \d+:\d\d:\d\d left\n", capfd.readouterr().err)
