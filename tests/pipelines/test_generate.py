"""Generated rows as files: what is written, what is said, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from pipelines import generate

Command = Callable[..., dict[str, Any]]
ROWWISE = [generate.reconstruct, generate.denoise, generate.latent]
COMMANDS = [generate.sample, *ROWWISE, generate.interpolate, generate.traverse]


def read(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)


@pytest.fixture(scope="module")
def some(transactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty transactions, two of which cannot be read."""
    table = pq.read_table(transactions).slice(0, 30)
    amount = table["TX_AMOUNT"].to_numpy().copy()
    amount[[4, 9]] = np.inf
    place = table.column_names.index("TX_AMOUNT")
    path = tmp_path_factory.mktemp("some") / "some.parquet"
    pq.write_table(table.set_column(place, "TX_AMOUNT", pa.array(amount)), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_without_input_rows_come_from_the_prior(
    calibrated: Bundle, tmp_path: Path, command: Command, suffix: str
) -> None:
    out = tmp_path / "new" / f"rows{suffix}"
    said = command(calibrated, out)
    assert json.loads(json.dumps(said)) == said
    table = read(out)
    assert said == {
        "out": str(out),
        "rows": len(table),
        "columns": table.column_names,
        "rejected": 0,
    }
    assert len(table) > 0


@pytest.mark.parametrize("command", ROWWISE)
def test_rows_keep_their_order_and_id_and_unusable_ones_are_counted(
    calibrated: Bundle, some: Path, tmp_path: Path, command: Command
) -> None:
    said = command(calibrated, tmp_path / "rows.parquet", [str(some)])
    assert (said["rows"], said["rejected"]) == (28, 2)
    ids = pq.read_table(tmp_path / "rows.parquet")["TRANSACTION_ID"].to_pylist()
    assert ids == [i for i in range(30) if i not in {4, 9}]


@pytest.mark.parametrize("command", [generate.interpolate, generate.traverse])
def test_a_path_starts_from_the_input(
    calibrated: Bundle, some: Path, tmp_path: Path, command: Command
) -> None:
    said = command(calibrated, tmp_path / "rows.csv", [str(some)], steps=4)
    assert said["rows"] % 4 == 0
    assert said["rejected"] == 2


def test_the_number_of_samples_and_their_seed_are_chosen(bundle: Bundle, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.csv" for i in range(3)]
    for file, seed in zip(files, (5, 5, 6), strict=True):
        assert generate.sample(bundle, file, rows=12, seed=seed)["rows"] == 12
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


# ---------------------------------------------------------------- the map


@pytest.mark.parametrize("with_threshold", [True, False])
def test_latents_are_drawn_as_a_map(
    bundle: Bundle, calibrated: Bundle, some: Path, tmp_path: Path, with_threshold: bool
) -> None:
    out = tmp_path / "map.png"
    said = generate.latent(calibrated if with_threshold else bundle, out, [str(some)])
    assert said["rows"] == 28
    with Image.open(out) as image:
        assert image.size == (840, 720)


@pytest.mark.parametrize(("rows", "dims"), [(1, 1), (1, 5), (3, 2), (2, 9), (50, 1)])
def test_the_plane_is_two_dimensional_whatever_the_latents(rows: int, dims: int) -> None:
    points, _ = generate.plane(
        np.random.default_rng(0).normal(size=(rows, dims)).astype(np.float32)
    )
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()


def test_the_plane_shows_two_dimensions_as_they_are_and_the_widest_of_more() -> None:
    z = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    np.testing.assert_array_equal(generate.plane(z[:, :2])[0], z[:, :2])
    points, labels = generate.plane(z * np.float32([1, 9, 1, 1, 4]))
    assert points.var(0) == pytest.approx([81, 16], rel=0.2)
    assert labels[0].startswith("component 1 (8")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("command", COMMANDS)
def test_another_ending_is_refused_before_anything_is_read(
    bundle: Bundle, tmp_path: Path, command: Command
) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.csv"):
        command(
            bundle,
            tmp_path / "rows.xlsx",
            **({} if command is generate.sample else {"paths": ["none"]}),
        )
    assert not list(tmp_path.iterdir())


def test_an_input_without_a_usable_row_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("TX_AMOUNT\ninf\n")
    with pytest.raises(DataError, match="no row of the input can be used, of 1; the first: column"):
        generate.reconstruct(bundle, tmp_path / "out.csv", [str(path)])
    assert not (tmp_path / "out.csv").exists()
