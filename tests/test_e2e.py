"""From simulated rows to a served champion, through the command line and over HTTP alone."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from anomaly_vae.client import Client, Model
from tests.support.command_line import CommandLine, server
from tests.support.paths import ROOT
from tests.support.registries import DATABASE, migrated

__all__ = ["migrated"]

RECORDS = 200

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_from_simulated_rows_to_a_served_champion(migrated: Path, tmp_path: Path) -> None:
    """The first `run` and the service are processes of their own."""
    line = CommandLine(tmp_path)
    shutil.copy(migrated, tmp_path / DATABASE)
    simulated = line("simulate", "transactions", "--out", "data", "--rows", 1_500, "--seed", 0)
    transactions = tmp_path / simulated["out"]
    config = yaml.safe_load((ROOT / "configs" / "fraud.yaml").read_text())
    config |= {"training": {"epochs": 3}, "calibration": {"alpha": 0.05}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    ran = line("run", "config.yaml")
    assert (ran["promoted"], ran["version"], ran["alias"]) == (True, "1", "champion")
    again = line.here("run", "config.yaml")
    assert again["digest"] == ran["digest"]
    assert line.here("models")["models"] == [
        {"name": "fraud", "aliases": {"champion": "1", "challenger": "1"}, "versions": ["1"]}
    ]

    scored = line.here("score", "--model", "models:/fraud@champion", "--input", transactions,
                       "--output", "scores", "--explain", "all")  # fmt: skip
    assert scored["scored"] == scored["rows"] == 1_500
    assert scored["model"]["digest"] == ran["digest"]
    batch = pq.read_table(tmp_path / "scores" / scored["parts"][0]).to_pylist()[:RECORDS]

    with server(line, "models:/fraud@champion") as (address, process):
        with Client(address) as client:
            answer = client.score(pq.read_table(transactions).slice(0, RECORDS), explain="all")
            metrics = client.metrics()
        assert answer.model == Model("fraud", "1", "champion")
        assert answer.alpha == scored["alpha"] == 0.05
        assert answer.threshold == scored["threshold"]
        for served, row in zip(answer, batch, strict=True):
            assert served.p_value == row["p_value"]
            assert served.is_anomaly == row["is_anomaly"]
            assert served.score == pytest.approx(row["score"], rel=1e-6)
            nats = sum(part.nats for part in served.contributions)
            assert nats + served.rest + served.kl == pytest.approx(served.score)

        flagged = sum(row["is_anomaly"] for row in batch)
        model = 'model="fraud",version="1"'
        assert f"anomaly_vae_scored_records_total{{{model}}} {RECORDS}.0" in metrics
        assert f"anomaly_vae_flagged_records_total{{{model}}} {flagged}.0" in metrics

        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        assert out == ""
