"""What somebody sees who has just arrived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.config import load_config
from anomaly_vae.lifecycle.registry import Registry
from anomaly_vae.scoring.detector import Contribution
from anomaly_vae.scoring.wording import Wording
from anomaly_vae.simulation.transactions import simulate_transactions
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.demo import demo as module
from pipelines.demo.demo import SHOWN_CONTRIBUTIONS, SHOWN_ROWS, demo_config
from pipelines.registry.frozen_test import FrozenTest
from pipelines.registry.model_uri import open_model
from pipelines.training.calibrate import calibrate
from tests.support.flows import Command, World
from tests.support.paths import ROOT
from tests.support.registries import copy_registry


def small(patch: pytest.MonkeyPatch) -> None:
    """Fewer rows and epochs than a newcomer gets, so that it takes seconds."""
    patch.setattr(module, "ROWS", 2_000)
    patch.setattr(module, "SCANS", 150)
    whole = module.demo_config

    def quick(name: str, path: str, overrides: Sequence[str] = ()) -> object:
        small = ["training.epochs=3", "calibration.alpha=0.05"]
        tiny = ["data.size=16", "model.width=4"] if name == "scans.yaml" else []
        return whole(name, path, [*overrides, *small, *tiny])

    patch.setattr(module, "demo_config", quick)


@pytest.mark.usefixtures("blank_figures")
def test_it_finds_explains_and_says_how_to_go_on(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(console.console, "width", 200)
    answer = command("demo", "--out", "shown", "--kind", "tabular")
    assert answer.code == 0
    result = answer.json["tabular"]
    assert result["promoted"] is True
    assert result["alias"] == "champion"
    assert result["data"]["rows"] == 2_000
    assert {"auroc", "average_precision", "fpr", "recall"} <= set(result["metrics"])

    summary = json.loads((Path(result["scores"]) / "summary.json").read_text())
    assert summary["scored"] == summary["rows"] == result["metrics"]["rows"]
    assert not summary["warnings"], "the windows of new payments see the past"
    assert f"{result['metrics']['auroc']:.4g}" in answer.err

    tested = FrozenTest.own(Registry().version("fraud-demo", "1")).read(Registry())
    truth = dict(
        zip(tested["TRANSACTION_ID"].to_pylist(), tested["TX_FRAUD"].to_pylist(), strict=True)
    )
    scored = pq.read_table(Path(result["scores"]) / summary["parts"][0])
    ranked = scored.sort_by([("score", "descending")]).to_pylist()
    flagged = [r for r in ranked if r["is_anomaly"] and r["TRANSACTION_ID"] in truth]
    top = flagged[:SHOWN_ROWS]
    assert len(flagged) == result["metrics"]["flagged"]
    assert f"The {len(top)} highest scores of the {len(flagged)} payments flagged" in answer.err
    table = answer.err[answer.err.index("highest scores") :]
    source = open_model("models:/fraud-demo/1")
    wording = Wording.of(source.bundle.scorer.encoding, source.data)
    for row in top:
        (line,) = (x for x in table.splitlines() if f" {row['TRANSACTION_ID']} " in x)
        assert (" fraud " if truth[row["TRANSACTION_ID"]] else " good ") in line
        assert len(row["contributions"]) == SHOWN_CONTRIBUTIONS
        for reason in row["contributions"]:
            if reason["nats"] > 0.05 * row["score"]:
                assert wording.sentence(Contribution(**reason)) in line
    assert "usually " in table
    assert "nats" not in table.partition("Pictures:")[0]

    shown = {Path(picture).stem for picture in result["pictures"]}
    assert shown == {
        "loss", "reconstruction", "scores", "ranking", "p_values", "slices", "highest", "flagged"
    }  # fmt: skip
    for picture in result["pictures"]:
        assert picture in answer.err
        with Image.open(picture) as image:
            assert image.format == "PNG"
            image.load()
    for word in (
        "export ANOMALY_VAE_WINDOWS=sqlite:///shown/windows.db",
        "anomaly-vae windows load --model models:/fraud-demo@champion --input shown/transactions",
        "anomaly-vae serve --model models:/fraud-demo@champion",
        "curl",
        "--set data.path=",
    ):
        assert word in answer.err


@pytest.mark.usefixtures("blank_figures")
def test_what_it_makes_lies_in_its_folder_and_the_working_folders_registry(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    assert command("demo", "--out", "shown", "--kind", "tabular").code == 0
    assert sorted(path.name for path in place.iterdir()) == [
        "bundles", "mlartifacts", "mlflow.db", "shown"
    ]  # fmt: skip
    assert sorted(path.name for path in (place / "shown").iterdir()) == [
        "new.parquet", "pictures", "scores", "transactions.parquet"
    ]  # fmt: skip
    again = command("demo", "--out", "shown", "--kind", "tabular").json
    assert again["tabular"]["version"] == "1", "the same inputs make no second version"


@pytest.mark.slow
def test_scans_are_flagged_drawn_and_imagined(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    answer = command("demo", "--out", "shown", "--kind", "image")
    assert answer.code == 0, answer.err
    result = answer.json["image"]
    assert result["data"]["rows"] == 150
    summary = json.loads((Path(result["scores"]) / "summary.json").read_text())
    assert summary["scored"] == 150
    drawn = list((Path(result["scores"]) / "heatmaps").glob("*.png"))
    assert len(drawn) == summary["heatmaps"] == summary["flagged"]
    assert 0 < result["pixel_average_precision"] <= 1
    sheets = {"samples", "reconstructions", "interpolation", "latents"}
    assert sheets <= {Path(picture).stem for picture in result["pictures"]}
    assert "anomaly-vae serve --model models:/scans-demo" in answer.err


def test_a_refused_demo_says_so_and_names_the_version(capfd: pytest.CaptureFixture[str]) -> None:
    answer = {"name": "fraud-demo", "promoted": False, "model_uri": "models:/fraud-demo/2"}
    module._show_next_steps(answer, "-d BODY", "fraud.yaml")
    said = capfd.readouterr().err
    assert "refused" in said
    assert "--model models:/fraud-demo/2" in said
    assert "@champion" not in said


@pytest.mark.parametrize("found", [None, "/usr/bin/anomaly-vae"])
def test_an_environment_that_is_not_active_is_activated_first(
    found: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: found)
    answer = {"name": "scans-demo", "promoted": True, "model_uri": "models:/scans-demo/2"}
    module._show_next_steps(answer, "-d BODY", "scans.yaml")
    assert (f"  . {sys.prefix}/bin/activate" in capfd.readouterr().err) is (found is None)


def test_pictures_of_a_version_calibrated_from_a_folder_are_those_of_its_calibration(
    world: World, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which run trained it."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    again = calibrate(world.config, str(world.folder / world.trained.folder), dataset)
    pictures = module._plots(Registry(), again.version, tmp_path / "out")
    assert {Path(p).stem for p in pictures} == {
        "scores", "ranking", "p_values", "slices", "highest"
    }  # fmt: skip


def test_its_record_to_post_is_a_raw_payment_after_the_simulated_ones() -> None:
    record = json.loads(module.RECORD)
    assert set(record) == set(module.RAW)
    assert record["TRANSACTION_ID"] == module.ROWS
    past = simulate_transactions(module.ROWS, module.SEED)
    assert record["TX_DATETIME"] > past["TX_DATETIME"][-1].as_py().isoformat()
    for column in ("CUSTOMER_ID", "TERMINAL_ID"):
        assert record[column] in past[column].to_pylist()


def test_the_configuration_is_the_one_that_ships() -> None:
    """But under a name of its own, so that no model of real data is judged by what it froze."""
    name = "fraud-windows.yaml"
    shipped = load_config(ROOT / "configs" / name, ["data.path=x.parquet", "name=fraud-demo"])
    assert demo_config(name, "x.parquet") == shipped
    assert shipped.calibration.alpha == 0.01


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1_200)
def test_as_a_newcomer_runs_it(tmp_path: Path) -> None:
    """All of it, in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "demo"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows, scans = (json.loads(done.stdout)[kind] for kind in ("tabular", "image"))
    assert rows["promoted"] is True
    assert rows["metrics"]["auroc"] > 0.8
    assert rows["metrics"]["alpha"] == 0.01
    assert scans["metrics"]["auroc"] > 0.7
    assert scans["pixel_average_precision"] > 0.4
    assert (tmp_path / "mlflow.db").exists()
    assert "Traceback" not in done.stderr
