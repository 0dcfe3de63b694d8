"""Simulated transactions as a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from anomaly_vae.simulate import simulate_transactions
from pipelines.simulate import write_transactions
from tests.pipelines.conftest import Command


def test_the_file_holds_the_simulated_rows(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "new" / "data"
    answer = command("simulate", "transactions", "--out", out, "--rows", 1_000, "--seed", 3)
    assert answer.code == 0
    table = pq.read_table(out / "transactions.parquet")
    assert table.equals(simulate_transactions(1_000, 3))
    frauds = pc.sum(table["TX_FRAUD"]).as_py()
    assert answer.json == {
        "out": str(out / "transactions.parquet"), "rows": 1_000, "frauds": frauds, "seed": 3
    }  # fmt: skip
    assert [path.name for path in out.iterdir()] == ["transactions.parquet"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_transactions(tmp_path / name, 200, seed=1)
    first, second = (tmp_path / n / "transactions.parquet" for n in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["transactions", "--out", "x", "--rows", "0"], 2),
        (["transactions", "--out", "x", "--rows", "many"], 2),
        (["nonsense", "--out", "x"], 2),
        (["transactions"], 2),
        (["transactions", "--out", "x", "--rows", "1000000000"], 1),
        (["transactions", "--out", "x", "--seed", "-1"], 1),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    place: Path, command: Command, arguments: list[str], code: int
) -> None:
    answer = command("simulate", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert "unexpected" not in answer.err
    assert not (place / "x").exists()


def test_a_folder_that_cannot_be_made_is_one_line(place: Path, command: Command) -> None:
    Path("file").write_text("")
    answer = command("simulate", "transactions", "--out", "file/below", "--rows", 10)
    assert answer.code == 1
    assert "file/below" in answer.err
    assert "unexpected" not in answer.err
    assert "Traceback" not in answer.err
