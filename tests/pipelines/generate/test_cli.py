"""The generating commands as users type them, for tables and for images."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from tests.support.flows import Command


@pytest.fixture(scope="module")
def scans_model(image_calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_calibrated.save(tmp_path_factory.mktemp("model") / "scans")


@pytest.fixture(scope="module")
def fraud_model(calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated.save(tmp_path_factory.mktemp("model") / "fraud")


LINES = {
    "sample": ["--rows", "4", "--seed", "2"],
    "reconstruct": ["--rows", "3"],
    "interpolate": ["--path", "spherical", "--steps", "4"],
    "traverse": ["--dim", "1", "--dim", "0", "--span", "2", "--steps", "3"],
    "latent": ["--color", "label"],
    "denoise": ["--corruption", "pixel", "--strength", "0.1", "--rows", "2"],
}


@pytest.mark.parametrize("name", LINES)
def test_images_are_generated_as_a_sheet(
    scans_model: Path, manifest: Path, tmp_path: Path, command: Command, name: str
) -> None:
    out = tmp_path / "sheet.png"
    source = [] if name == "sample" else ["--input", manifest]
    answer = command(name, "--model", scans_model, "--out", out, *source, *LINES[name])
    assert answer.code == 0, answer.err
    rows = {"sample": 4, "reconstruct": 3, "interpolate": 4, "traverse": 6, "latent": 140}
    assert answer.json["rows"] == rows.get(name, 2)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_several_paths_may_follow_one_input(
    scans_model: Path, manifest: Path, tmp_path: Path, command: Command
) -> None:
    """As a shell writes a glob."""
    paths = sorted((manifest.parent / "images").glob("00*.png"))
    out = tmp_path / "z.parquet"
    answer = command("latent", "--model", scans_model, "--out", out, "--input", *paths)
    assert answer.code == 0, answer.err
    assert pq.read_table(out)["path"].to_pylist() == [str(path) for path in paths]


@pytest.mark.parametrize("name", [name for name in LINES if name not in {"latent", "denoise"}])
def test_tables_take_the_same_options(
    fraud_model: Path, transactions: Path, tmp_path: Path, command: Command, name: str
) -> None:
    out = tmp_path / "rows.csv"
    source = [] if name == "sample" else ["--input", transactions]
    answer = command(name, "--model", fraud_model, "--out", out, *source, *LINES[name])
    assert answer.code == 0, answer.err
    rows = {"sample": 4, "interpolate": 4, "traverse": 6}
    assert answer.json["rows"] == rows.get(name, 1500)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("latent", ["--grid"], "--grid is for models of images"),
        ("denoise", ["--corruption", "mask"], "--corruption and --strength are for models"),
        ("latent", ["--color", "score"], "--color score is for maps"),
    ],
)
def test_what_is_for_images_is_refused_for_tables(
    fraud_model: Path, tmp_path: Path, command: Command, name: str, options: list[str], said: str
) -> None:
    answer = command(name, "--model", fraud_model, "--out", tmp_path / "rows.csv", *options)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("interpolate", ["--path", "crooked"]),
        ("latent", ["--color", "red"]),
        ("denoise", ["--corruption", "fire"]),
        ("denoise", ["--strength", "-1"]),
        ("sample", ["--rows", "0"]),
        ("traverse", ["--steps", "1"]),
    ],
)
def test_an_unknown_choice_is_wrong_usage(
    scans_model: Path, tmp_path: Path, command: Command, name: str, options: list[str]
) -> None:
    answer = command(name, "--model", scans_model, "--out", tmp_path / "a.png", *options)
    assert (answer.code, answer.out) == (2, "")


def test_a_grid_is_asked_for_by_its_option(
    scans_model: Path, tmp_path: Path, command: Command
) -> None:
    answer = command("latent", "--model", scans_model, "--out", tmp_path / "a.png", "--grid")
    assert (answer.code, answer.out) == (1, "")
    assert "--grid needs a model of 2 latents, this one has 4" in answer.err
