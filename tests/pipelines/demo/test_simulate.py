"""Simulated transactions as a file, simulated scans as pictures with a manifest."""

from __future__ import annotations

import csv
import errno
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.config import load_config
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.simulation.scans import simulate_scans
from anomaly_vae.simulation.transactions import simulate_transactions
from pipelines.demo.simulate import write_scans, write_transactions
from pipelines.training.train import read_data
from tests.support.flows import Command
from tests.support.paths import ROOT


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


@pytest.mark.parametrize("name", ["fraud", "fraud-windows"])
def test_the_shipped_configurations_resolve_their_alpha_from_2000_rows(
    tmp_path: Path, name: str, place: Path
) -> None:
    path = write_transactions(tmp_path, 2_000, seed=0)["out"]
    data = read_data(load_config(ROOT / "configs" / f"{name}.yaml", [f"data.path={path}"]))
    assert len(data.calibration_rows) > 99
    assert "TX_FRAUD_SCENARIO" not in data.schema.names
    assert {"TX_AMOUNT", "TX_CHANNEL"} < set(data.schema.names)
    assert not any("see less" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "more"),
    [("fraud", []), ("fraud-windows", ["data.features=[TX_AMOUNT, TX_DATETIME]"])],
)
def test_the_shipped_configurations_fit_the_columns_of_the_handbook(
    tmp_path: Path, name: str, more: list[str], place: Path
) -> None:
    """The Handbook's table has no channel, and two columns more that hold the time."""
    table = simulate_transactions(2_000, seed=0).drop_columns("TX_CHANNEL")
    seconds = pc.subtract(table["TX_DATETIME"].cast("int64"), table["TX_DATETIME"][0].cast("int64"))
    table = table.append_column("TX_TIME_SECONDS", pc.divide(seconds, 1_000_000))
    pq.write_table(table, tmp_path / "rows.parquet")
    own = [f"data.path={tmp_path}/rows.parquet", *more]
    data = read_data(load_config(ROOT / "configs" / f"{name}.yaml", own))
    assert not {"TX_TIME_SECONDS", "TX_FRAUD_SCENARIO"} & set(data.schema.names)


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


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        return np.asarray(picture)


def test_scans_read_back_as_they_were_simulated(tmp_path: Path) -> None:
    out = tmp_path / "new" / "data"
    answer = write_scans(out, 30, seed=3)
    scans = simulate_scans(30, seed=3)
    with (out / "manifest.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["path"] for row in rows] == [f"images/scan-{i:05d}.png" for i in range(30)]
    assert [int(row["label"]) for row in rows] == scans.labels.tolist()
    assert [row["group"] for row in rows] == [f"patient-{group:05d}" for group in scans.groups]
    for row, image, mask in zip(rows, scans.images, scans.masks, strict=True):
        np.testing.assert_array_equal(pixels(out / row["path"]), image)
        shown = pixels(out / row["path"].replace("images/", "masks/"))
        np.testing.assert_array_equal(shown, np.where(mask, 255, 0))
    assert answer == {
        "out": str(out / "manifest.csv"),
        "images": str(out / "images"),
        "rows": 30,
        "lesions": int(scans.labels.sum()),
        "patients": len(set(scans.groups.tolist())),
        "seed": 3,
    }


def test_the_same_seed_writes_the_same_scans(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scans(tmp_path / name, 6, seed=1)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    assert len(files_in(tmp_path / "a")) == 6 + 6 + 1


def test_scans_replace_earlier_ones_and_leave_the_transactions(tmp_path: Path) -> None:
    write_transactions(tmp_path / "out", 100, seed=0)
    transactions = files_in(tmp_path / "out")
    write_scans(tmp_path / "out", 8, seed=0)
    write_scans(tmp_path / "out", 5, seed=2)
    write_scans(tmp_path / "alone", 5, seed=2)
    assert files_in(tmp_path / "out") == transactions | files_in(tmp_path / "alone")


@pytest.mark.parametrize(
    "name",
    ["images/mine.jpg", "images/scan-00000.png", "masks/scan-00000.png", "manifest.csv", "images",
     "images/folder/deep.txt"],
)  # fmt: skip
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_not_simulated_is_never_replaced(tmp_path: Path, name: str, before: int) -> None:
    if before and name != "images":
        write_scans(tmp_path, before, seed=0)
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("path,label,group\nimages/a.png,0,x\n")
    kept = files_in(tmp_path)
    in_the_way = tmp_path / Path(*Path(name).parts[:2])
    with pytest.raises(DataError, match=f"'{in_the_way}' is no simulated scan and would be lost"):
        write_scans(tmp_path, 2, seed=1)
    assert files_in(tmp_path) == kept


def test_a_picture_of_the_users_is_known_from_a_simulated_one(tmp_path: Path) -> None:
    """By what the file says of itself, not by its name."""
    write_scans(tmp_path, 2, seed=0)
    path = tmp_path / "images" / "scan-00001.png"
    Image.fromarray(pixels(path)).save(path)
    with pytest.raises(DataError, match=r"scan-00001\.png' is no simulated scan"):
        write_scans(tmp_path, 2, seed=0)


@pytest.mark.parametrize("name", ["scan-00002.png", "favourite.png", "scan-1.png"])
@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_copy_that_the_manifest_does_not_list_is_the_users(
    tmp_path: Path, part: str, name: str
) -> None:
    """It says of itself that it is simulated, as an edited one may."""
    write_scans(tmp_path, 2, seed=0)
    shutil.copy(tmp_path / "images" / "scan-00001.png", tmp_path / part / name)
    kept = files_in(tmp_path)
    with pytest.raises(DataError, match=f"{name}' is no simulated scan and would be lost"):
        write_scans(tmp_path, 5, seed=1)
    assert files_in(tmp_path) == kept


def test_copies_without_a_manifest_are_known_by_their_names(tmp_path: Path) -> None:
    write_scans(tmp_path, 2, seed=0)
    (tmp_path / "manifest.csv").unlink()
    (tmp_path / "images" / "scan-00001.png").rename(tmp_path / "images" / "best.png")
    with pytest.raises(DataError, match=r"best\.png' is no simulated scan and would be lost"):
        write_scans(tmp_path, 2, seed=1)


@pytest.mark.parametrize("name", ["images", "images/scan-00001.png", "manifest.csv"])
def test_links_are_the_users_even_where_they_lead_nowhere(tmp_path: Path, name: str) -> None:
    if name != "images":
        write_scans(tmp_path, 2, seed=0)
        (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{name}' is no simulated scan and would be lost"):
        write_scans(tmp_path, 2, seed=1)
    assert (tmp_path / name).is_symlink()


def test_a_failure_while_writing_leaves_the_earlier_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path, 4, seed=0)
    before = files_in(tmp_path)
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_scans(tmp_path, 4, seed=1)
    assert files_in(tmp_path) == before


def full_disk(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failure_between_the_folders_leaves_no_manifest_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scans(tmp_path, 4, seed=0)
    with monkeypatch.context() as broken:
        broken.setattr("anomaly_vae.files._replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_scans(tmp_path, 3, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]
    write_scans(tmp_path, 3, seed=1)
    assert len(files_in(tmp_path)) == 3 + 3 + 1


@pytest.mark.parametrize(("rows", "seed"), [(0, 0), (100_001, 0), (1, -1)])
def test_scans_that_cannot_be_simulated_are_refused(tmp_path: Path, rows: int, seed: int) -> None:
    with pytest.raises(DataError, match=r"^(scans|seed): expected"):
        write_scans(tmp_path / "x", rows, seed)
    assert not (tmp_path / "x").exists()


def test_scans_say_which_extra_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'anomaly-vae\[images\]'"):
        write_scans(tmp_path / "x", 1, seed=0)
    assert files_in(tmp_path) == {}
