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

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from pipelines.generate import tables as generate

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


def test_a_path_may_be_spherical(calibrated: Bundle, some: Path, tmp_path: Path) -> None:
    amounts = []
    for shape in ("linear", "spherical"):
        generate.interpolate(calibrated, tmp_path / "rows.csv", [str(some)], shape=shape)
        amounts.append(read(tmp_path / "rows.csv")["TX_AMOUNT"].to_numpy())
    np.testing.assert_allclose(amounts[0][[0, -1]], amounts[1][[0, -1]], rtol=1e-3)
    assert not np.allclose(*amounts, rtol=1e-3)


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


def test_a_map_is_coloured_by_the_label_column_of_the_model(
    calibrated: Bundle, some: Path, tmp_path: Path
) -> None:
    assert calibrated.manifest["config"]["data"]["label"] == "TX_FRAUD"
    source = generate.read_source(calibrated, [str(some)])
    assert len(source.labels) == 28
    assert set(source.labels) <= {"0", "1"}
    out = tmp_path / "map.png"
    assert generate.latent(calibrated, out, [str(some)], colour="label")["rows"] == 28
    with pytest.raises(DataError, match="no input has a 'TX_FRAUD'"):
        generate.latent(calibrated, out, colour="label")


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


@pytest.mark.parametrize("more", [{"corruption": "mask"}, {"strength": 0.1}])
def test_rows_are_not_corrupted(bundle: Bundle, tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="are for models of images; leave them out"):
        generate.denoise(bundle, tmp_path / "rows.csv", **more)


def test_a_grid_of_rows_and_a_colour_of_a_table_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--grid is for models of images"):
        generate.latent(bundle, tmp_path / "rows.csv", grid=True)
    with pytest.raises(ConfigError, match="--color score is for maps; write to a file that ends"):
        generate.latent(bundle, tmp_path / "rows.csv", colour="score")
