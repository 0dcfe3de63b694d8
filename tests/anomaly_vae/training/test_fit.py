"""A bundle depends on its data and seeds alone, and its units hide together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.type_inference import infer_schema
from anomaly_vae.training import kinds
from anomaly_vae.training.augmentation import NoisyCells, View
from anomaly_vae.training.fit import Prepared, fit_bundle, prepare
from pipelines.datasets.dataset import Dataset
from tests.support.merchants import payments
from tests.support.paths import ROOT


def test_two_fits_of_a_configuration_have_one_digest(
    config: Config, prepared: Prepared, dataset: Dataset
) -> None:
    """`tests/test_e2e.py` finds the digest of a fit in another process once more."""
    first, second = (fit_bundle(config, prepared, dataset.summary()).bundle for _ in range(2))
    assert first.digest == second.digest


@pytest.mark.slow
def test_a_fit_in_a_fresh_process_has_the_same_digest(
    config: Config, prepared: Prepared, dataset: Dataset, tmp_path: Path
) -> None:
    first = fit_bundle(config, prepared, dataset.summary()).bundle.digest
    script = tmp_path / "again.py"
    script.write_text(
        "import sys\n"
        "from anomaly_vae.config import TabularConfig\n"
        "from anomaly_vae.training.fit import fit_bundle, prepare\n"
        "from anomaly_vae.data.splitting import TRAIN, VALIDATION\n"
        "from pipelines.datasets.loading import load_dataset\n"
        "config = TabularConfig.model_validate_json(sys.stdin.read())\n"
        "data = load_dataset(config.data)\n"
        "rows = prepare(config, data.schema, data.part(TRAIN), data.part(VALIDATION))\n"
        "print(fit_bundle(config, rows, data.summary()).bundle.digest)\n"
    )
    fresh = subprocess.run(
        [sys.executable, str(script)],
        input=config.model_dump_json(),
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert fresh.stdout.strip() == first, fresh.stderr


def test_a_bundle_is_fitted_with_its_encodings_sources(
    config: Config, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    class Seen(NoisyCells):
        def __call__(self, x: torch.Tensor, generator: torch.Generator) -> View:
            seen.append(self.units.tolist())
            return super().__call__(x, generator)

    monkeypatch.setattr(kinds, "NoisyCells", Seen)
    fit_bundle(config, prepared, {})
    assert seen[0] == prepared.encoding.sources.tolist()
    assert len(set(seen[0])) < len(seen[0])  # the hour's sine and cosine


def test_training_rows_are_left_out_of_the_counts_of_their_values_and_held_out_rows_are_not() -> (
    None
):
    config = validate_config({"name": "shop", "data": {"path": "x.csv"}})
    table = payments()
    schema = infer_schema(table, config.data).schema
    batch = schema.from_arrow(table)
    train, validation = batch.take(np.arange(500)), batch.take(np.arange(500, 600))
    rows = prepare(config, schema, train, validation)
    np.testing.assert_array_equal(rows.train, rows.encoding.encode_training(train))
    np.testing.assert_array_equal(rows.validation, rows.encoding.encode(validation))
    assert (rows.encoding.encode(train)[:, -1] == 0).sum() == 0 < (rows.train[:, -1] == 0).sum()
    [pooled] = rows.pooled
    assert (pooled.column, pooled.kept, pooled.banded) == ("merchant", 10, True)
