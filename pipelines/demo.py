"""The whole path on simulated data, shown to somebody who has just arrived."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anomaly_vae.config import Config, load_config
from anomaly_vae.registry import TRAINED_RUN_TAG, Registry, Version
from pipelines import console
from pipelines.frozen import Frozen
from pipelines.models import open_source
from pipelines.run import run
from pipelines.score import score_files
from pipelines.simulate import write_transactions

ROWS, SEED = 20_000, 0
ID, LABEL = "TRANSACTION_ID", "TX_FRAUD"
NAME = "fraud-demo"
"""A name of its own: what it freezes must not judge the models of real data."""
SHOWN_ROWS, SHOWN_REASONS = 10, 3


def demo(out: Path) -> dict[str, Any]:
    """Simulate → train → calibrate → evaluate → register → promote → score.

    Everything it makes lies in ``out``, but the registry: that is the working folder's own.
    """
    console.step(f"Simulating {ROWS:,} card transactions")
    simulated = write_transactions(out, ROWS, SEED)
    config = demo_config("fraud.yaml", simulated["out"])
    answer, _ = run(config)
    registry = Registry(config.mlflow.tracking_uri)
    source = open_source(answer["model_uri"], config.mlflow.tracking_uri)
    console.step("Scoring every row")
    summary = score_files(source, [simulated["out"]], out / "scores", explain=SHOWN_REASONS)
    version = registry.version(config.name, answer["version"])
    pictures = _pictures(registry, version, out)
    _show(answer, simulated, summary)
    _show_flagged(Frozen.own(version).read(registry), out / "scores")
    _say_next(answer, pictures)
    return {**answer, "data": simulated, "scores": str(out / "scores"), "pictures": pictures}


def demo_config(name: str, path: str) -> Config:
    """A configuration that ships with the package, pointed at ``path``, under its own name."""
    installed = Path(str(files("anomaly_vae"))) / "configs" / name
    checkout = Path(__file__).parents[1] / "configs" / name
    overrides = [f"data.path={path}", f"name={NAME}"]
    return load_config(installed if installed.exists() else checkout, overrides)


def _pictures(registry: Registry, version: Version, out: Path) -> list[str]:
    """Copies of the plots of the runs that trained (where it is known) and calibrated."""
    place = out / "pictures"
    for run_id in filter(None, (version.tags.get(TRAINED_RUN_TAG), version.run_id)):
        shutil.copytree(registry.download(f"runs:/{run_id}/plots"), place, dirs_exist_ok=True)
    return sorted(str(path) for path in place.glob("*.png"))


def _show(answer: dict[str, Any], simulated: dict[str, Any], summary: dict[str, Any]) -> None:
    metrics = answer["metrics"]
    low, high = metrics["fpr_interval"]
    rows = [
        ("rows simulated", simulated["rows"]),
        ("of them frauds", simulated["frauds"]),
        ("test rows, the last by time", metrics["rows"]),
        ("AUROC", metrics["auroc"]),
        ("average precision", metrics["average_precision"]),
        (f"good payments flagged (alpha {metrics['alpha']:g})", metrics["fpr"]),
        ("  95% interval", f"{low:.4f} to {high:.4f}"),
        ("frauds flagged", metrics["recall"]),
        ("flagged in the whole file", summary["flagged"]),
    ]
    console.table("What the detector found", ("figure", "value"), rows)


def _show_flagged(tested: pa.Table, scores: Path) -> None:
    """The rows of the test period that are flagged, the highest scores first."""
    parts = pa.concat_tables(pq.read_table(p) for p in sorted(scores.glob("part-*.parquet")))
    known = dict(zip(tested[ID].to_pylist(), tested[LABEL].to_pylist(), strict=True))
    flagged = parts.filter(pc.and_(parts["is_anomaly"], pc.is_in(parts[ID], tested[ID])))
    top = flagged.sort_by([("score", "descending")]).slice(0, SHOWN_ROWS)
    rows = [
        (
            str(row[ID]),
            row["score"],
            row["p_value"],
            "fraud" if known[row[ID]] else "good",
            "\n".join(_reason(reason) for reason in row["contributions"]),
        )
        for row in top.to_pylist()
    ]
    title = (
        f"The {len(rows)} highest scores of the {len(flagged)} payments flagged in the test "
        f"period, each with its {SHOWN_REASONS} main reasons"
    )
    console.table(title, ("id", "score, nats", "p-value", "truth", "seen, where expected"), rows)


def _reason(reason: dict[str, Any]) -> str:
    seen, expected = reason["observed"] or "missing", reason["expected"]
    return f"{reason['feature']} {seen}, where {expected} (+{reason['nats']:.1f})"


def _say_next(answer: dict[str, Any], pictures: list[str]) -> None:
    console.say(f"Pictures: {', '.join(pictures)}")
    uri = f"models:/{answer['name']}@champion" if answer["promoted"] else answer["model_uri"]
    if not answer["promoted"]:
        console.say(f"It was refused as champion (see above), so this is version {uri}")
    console.step("Next, score over HTTP:")
    console.say(f"  anomaly-vae serve --model {uri}")
    record = '{"records": [{"TX_AMOUNT": 900, "TX_CHANNEL": "mail_order"}], "explain": 3}'
    console.say(f"  curl -s localhost:8000/score -H 'content-type: application/json' -d '{record}'")
    console.say("or your own files: copy configs/fraud.yaml, change data, and")
    console.say("  anomaly-vae run my.yaml --set data.path=my/*.parquet")
