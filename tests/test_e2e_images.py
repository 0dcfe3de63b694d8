"""From simulated scans to a champion, its heatmaps and a second model, by the command line alone.

What the second model was made of is looked up in the registry, beside what the first one froze.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.config import Config, load_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.lifecycle.registry import Registry
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.training.train import read_data
from tests.support.command_line import CommandLine
from tests.support.paths import ROOT
from tests.support.registries import DATABASE, frozen_rows, migrated

__all__ = ["migrated"]

ROWS = 200
SMALL = (
    "data.size=24", "training.epochs=2", "model.network=convolutional", "model.width=4",
    "model.hidden_dim=16", "model.latent_dim=4", "model.localization_head=false", "score=neg_elbo",
    "calibration.alpha=0.1",
)  # fmt: skip
OTHER_SEED = ("data.splits.seed=1", "training.seed=1")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def options(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def pixels(data: Dataset, *splits: int) -> set[bytes]:
    """The images of some splits, as prepared."""
    rows = np.concatenate([data.assignment.rows(split) for split in splits])
    return as_bytes(np.asarray(data.batch.values[IMAGE])[rows])


def as_bytes(images: NDArray[np.float32]) -> set[bytes]:
    return {image.tobytes() for image in images}


def frozen_pixels(config: Config, data: Dataset) -> set[bytes]:
    frozen = frozen_rows(Registry(config.mlflow.tracking_uri), config.name)
    assert frozen is not None
    assert isinstance(data.schema, ImageSchema)
    return as_bytes(np.asarray(data.schema.from_arrow(frozen).values[IMAGE]))


def test_from_simulated_scans_to_a_champion_and_a_second_model(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simulate` and `score` are processes of their own; the second model may not be promoted."""
    shutil.copy(migrated, tmp_path / DATABASE)
    line, scans = CommandLine(tmp_path), ROOT / "configs" / "scans.yaml"
    simulated = line("simulate", "scans", "--out", "data", "--rows", ROWS)
    assert simulated["rows"] == ROWS
    manifest = tmp_path / simulated["out"]

    ran = line.here("run", scans, *options(*SMALL))
    assert (ran["promoted"], ran["version"], ran["alias"]) == (True, "1", "champion")
    assert ran["metrics"]["alpha"] == 0.1

    scored = line("score", "--model", "models:/scans@champion", "--input", manifest,
                  "--output", "scores", "--heatmaps", "--explain", "3")  # fmt: skip
    assert scored["scored"] == scored["rows"] == ROWS
    assert scored["unit"] == "sd"
    assert scored["model"]["digest"] == ran["digest"]
    rows = pq.read_table(tmp_path / "scores" / scored["parts"][0]).to_pylist()
    assert rows[0]["path"] == "images/scan-00000.png"
    flagged = [row for row in rows if row["is_anomaly"]]
    assert {row["score"] > scored["threshold"] for row in flagged} == {True}
    drawn = sorted((tmp_path / "scores" / "heatmaps").iterdir())
    assert 0 < len(drawn) == scored["heatmaps"] == scored["flagged"] == len(flagged)
    with Image.open(drawn[0]) as picture:
        picture.load()

    judged = line.here("evaluate", "--model", "models:/scans@champion", "--data", manifest,
                       "--label", "label")  # fmt: skip
    assert judged["model"]["version"] == "1"

    monkeypatch.setattr(Figure, "draw", lambda self, renderer: None)  # drawn for the first model
    again = line.here("run", scans, *options(*SMALL, *OTHER_SEED), codes={0, 3})
    assert again["version"] == "2"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load_config(scans, [*SMALL, *OTHER_SEED])
    used, planned = read_data(config), load_dataset(config.data)
    recorded = Registry(config.mlflow.tracking_uri).fetch("models:/scans/2").load().manifest
    assert recorded["data"]["digest"] == used.digest != planned.digest
    frozen, making = frozen_pixels(config, used), (TRAIN, VALIDATION, CALIBRATION)
    assert len(frozen) > 40
    assert frozen & pixels(planned, *making)  # what the other seed alone would do
    assert not frozen & pixels(used, *making)
    assert recorded["data"]["unused"]["in the frozen test split"] > 0
    assert pixels(used, *making) < pixels(planned, *making)
