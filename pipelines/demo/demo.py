"""Run the whole pipeline on simulated data and show a newcomer what it finds."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score

from anomaly_vae import plots
from anomaly_vae.config import Config, load_config
from anomaly_vae.data.arrow import times_from_arrow
from anomaly_vae.data.splitting import DAY
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.pixels import DecodeOptions
from anomaly_vae.lifecycle.registry import TRAINED_RUN_TAG, Registry, Version
from anomaly_vae.messages import plain_number
from anomaly_vae.scoring.detector import Contribution, Explanation
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.batch.common import HeatmapOptions
from pipelines.batch.images import score_images
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.datasets.images.batches import read_images
from pipelines.datasets.images.listing import find_images
from pipelines.demo.simulate import write_scans, write_transactions
from pipelines.registry.frozen_test import FrozenTest
from pipelines.registry.model_uri import LoadedModel, open_model
from pipelines.run import run

AGAIN = RunOptions(restart=True)
ROWS, SCANS, SEED = 50_000, 300, 0
ID, LABEL, TIME = "TRANSACTION_ID", "TX_FRAUD", "TX_DATETIME"
RAW = (ID, TIME, "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_CHANNEL")
"""Columns of a payment that is not labelled yet."""
SHOWN_ROWS, SHOWN_CONTRIBUTIONS, DRAWN_ROWS = 10, 3, 2
LESION_THRESHOLD = 0.5
"""Value above which a pixel of a resized mask is a lesion."""
SCAN_OVERRIDES = ("training.epochs=40", "training.batch_size=16")
"""About 400 small training steps, enough to find lesions and draw scans, in about a minute."""
FRAUD_OVERRIDES = ("evaluation.top=10",)
"""Number of customers that are reviewed each day, of some hundred."""


MODELS = {"fraud-windows.yaml": "fraud-demo", "scans.yaml": "scans-demo"}
"""Name of the demo's model, by configuration."""
RECORD = (
    '{"TRANSACTION_ID": 50000, "TX_DATETIME": "2024-04-22T02:10:00", "CUSTOMER_ID": 12, '
    '"TERMINAL_ID": 345, "TX_AMOUNT": 900, "TX_CHANNEL": "mail_order"}'
)
"""A raw payment of the night after the simulated ones."""
PAYMENT = f"""-H 'content-type: application/json' -d '{{"records": [{RECORD}], "explain": 3}}'"""
"""Arguments with which curl posts this payment."""


def demo(out: Path, kinds: Sequence[str] = ("tabular", "image")) -> dict[str, Any]:
    """Run the pipeline for each kind of data.

    Args:
        out: the folder for all output. The registry is in the working folder.
        kinds: ``tabular``, ``image`` or both.
    """
    return {kind: DEMOS[kind](out) for kind in kinds}


def tabular(out: Path) -> dict[str, Any]:
    """Simulate raw transactions, train with windows, calibrate, register, promote and score."""
    console.heading(f"Simulating {ROWS:,} card transactions")
    simulated = write_transactions(out, ROWS, SEED)
    config = demo_config("fraud-windows.yaml", simulated["out"], FRAUD_OVERRIDES)
    answer, source, version = _run(config)
    registry = Registry(config.mlflow.tracking_uri)
    tested = FrozenTest.own(version).read(registry)
    new = _write_new(simulated["out"], tested, out / "new.parquet")
    console.heading(f"Scoring {new}, whose windows see the past in {simulated['out']}")
    score_files(
        source,
        [str(new)],
        out / "scores",
        explain=SHOWN_CONTRIBUTIONS,
        run=AGAIN,
        highest=False,
        history=[simulated["out"]],
    )
    pictures = _plots(registry, version, out / "pictures")
    flagged, truth = _flagged(tested, out / "scores")
    pictures += _draw_flagged(flagged, truth, out / "pictures")
    _show_transactions(answer, simulated, tested)
    _show_flagged(flagged, truth, Wording.of(source.bundle.scorer.encoding, source.data))
    console.info(f"Pictures: {', '.join(pictures)}")
    _show_next_steps(answer, PAYMENT, "fraud-windows.yaml", (out / "windows.db", simulated["out"]))
    made = {"data": simulated, "new": str(new), "scores": str(out / "scores")}
    return {**answer, **made, "pictures": pictures}


def image(out: Path) -> dict[str, Any]:
    """Run the pipeline on scans with lesions, draw heatmaps and generate images."""
    folder = out / "scans"
    console.heading(f"Simulating {SCANS:,} scans")
    simulated = write_scans(folder, SCANS, SEED)
    config = demo_config("scans.yaml", simulated["out"], SCAN_OVERRIDES)
    answer, source, version = _run(config)
    console.heading("Scoring every scan")
    scores, heatmaps = folder / "scores", HeatmapOptions(png=True)
    summary = score_images(source, [simulated["out"]], scores, heatmaps=heatmaps, run=AGAIN)
    located = _localization(source, Path(simulated["out"]))
    pictures = _plots(Registry(config.mlflow.tracking_uri), version, folder / "pictures")
    pictures += _sheets(source, simulated["images"], folder / "pictures")
    _show_scans(answer, simulated, summary, located)
    console.info(f"Pictures: {', '.join(pictures)}")
    console.info(f"Heatmaps of the {summary['heatmaps']} flagged scans: {scores / 'heatmaps'}")
    scan = f"{simulated['images']}/scan-00000.png"
    _show_next_steps(answer, f"-H 'content-type: image/png' --data-binary @{scan}", "scans.yaml")
    made = {"data": simulated, "scores": str(scores), "pictures": pictures}
    return {**answer, **made, "pixel_average_precision": located}


DEMOS = {"tabular": tabular, "image": image}


def demo_config(name: str, path: str, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration of the package, with ``path`` as its data.

    It gets a model name of its own, so that the demo's frozen test split never judges models of
    real data.
    """
    installed = Path(str(files("anomaly_vae"))) / "configs" / name
    checkout = Path(__file__).parents[2] / "configs" / name
    own = [f"data.path={path}", f"name={MODELS[name]}", *overrides]
    return load_config(installed if installed.exists() else checkout, own)


def _run(config: Config) -> tuple[dict[str, Any], LoadedModel, Version]:
    """Run the pipeline; return its JSON object, the model and its version."""
    answer, _ = run(config)
    source = open_model(answer["model_uri"], config.mlflow.tracking_uri)
    version = Registry(config.mlflow.tracking_uri).version(config.name, answer["version"])
    return answer, source, version


def _write_new(transactions: str, tested: pa.Table, path: Path) -> Path:
    """Write the raw columns of the test rows, as payments that arrive without labels."""
    table = pq.read_table(transactions, columns=list(RAW))
    pq.write_table(table.filter(pc.is_in(table[ID], tested[ID])), path)
    return path


def _localization(source: LoadedModel, manifest: Path) -> float:
    """Return the average precision of pixels in scans with lesions, ranked by smoothed maps."""
    items = [item for item in find_images([str(manifest)]) if item.attributes["label"] == "1"]
    scorer = source.bundle.scorer
    schema, _ = image_modality(scorer.schema, scorer.encoding)
    heat, lesion = [], []
    for batch in read_images(items, schema):
        nats = scorer.explain(batch.images).nats
        heat.append(smoothed(nats.reshape(-1, schema.size, schema.size)))
        masks = (manifest.parent / "masks" / items[number].path.name for number in batch.files)
        read = schema.from_images(p for mask in masks for p in read_file(mask, DecodeOptions()))
        lesion.append(np.asarray(read.values[IMAGE])[:, 0] > LESION_THRESHOLD)
    flat = (np.concatenate(parts).ravel() for parts in (lesion, heat))
    return float(average_precision_score(*flat))


def _sheets(source: LoadedModel, images: str, folder: Path) -> list[str]:
    """Draw samples, reconstructions, an interpolation and the latents; return the files."""
    from pipelines.generate import images as generate

    paths = [f"{images}/scan-0000{i}.png" for i in range(8)]
    bundle = source.bundle
    generate.sample(bundle, folder / "samples.png", seed=SEED)
    generate.reconstruct(bundle, folder / "reconstructions.png", paths)
    generate.interpolate(bundle, folder / "interpolation.png", paths[:2])
    generate.latent(bundle, folder / "latents.png", [images])
    names = ("samples", "reconstructions", "interpolation", "latents")
    return [str(folder / f"{name}.png") for name in names]


def _show_scans(
    answer: dict[str, Any], simulated: dict[str, Any], summary: dict[str, Any], located: float
) -> None:
    rows = [
        ("scans simulated", simulated["rows"]),
        ("of them with a lesion", simulated["lesions"]),
        *_figures(answer["metrics"], "test scans", "good scans", "lesions"),
        ("pixels of lesions, average precision", located),
        ("flagged in the whole folder", summary["flagged"]),
    ]
    console.table("What the detector found", ("figure", "value"), rows)


def _show_transactions(answer: dict[str, Any], simulated: dict[str, Any], tested: pa.Table) -> None:
    metrics = answer["metrics"]
    rows = [
        ("rows simulated", simulated["rows"]),
        ("of them frauds", simulated["frauds"]),
        *_figures(metrics, "test rows, the last by time", "good payments", "frauds"),
        ("flagged in the test period", metrics["flagged"]),
    ]
    console.table("What the detector found", ("figure", "value"), rows)
    days = max(np.ptp(times_from_arrow(tested[TIME])[0]) / DAY, 1.0)
    found = metrics["recall"] * metrics["anomalies"]
    false_alarms, share = metrics["flagged"] - found, found / max(metrics["flagged"], 1)
    console.info(
        f"In the test period about {false_alarms / days:.0f} good payments are flagged a day; "
        f"about {100 * share:.0f} of 100 flags are fraud."
    )


def _figures(
    metrics: dict[str, Any], test: str, normal: str, anomalies: str
) -> list[tuple[str, object]]:
    low, high = metrics["fpr_interval"]
    return [
        (test, metrics["rows"]),
        ("AUROC", metrics["auroc"]),
        ("average precision", metrics["average_precision"]),
        (f"{normal} flagged (alpha {metrics['alpha']:g})", metrics["fpr"]),
        ("  95% interval", f"{low:.4f} to {high:.4f}"),
        (f"{anomalies} flagged", metrics["recall"]),
    ]


def _plots(registry: Registry, version: Version, folder: Path) -> list[str]:
    """Copy the plots of the training and calibration runs into a folder; return the files."""
    for run_id in filter(None, (version.tags.get(TRAINED_RUN_TAG), version.run_id)):
        shutil.copytree(registry.download(f"runs:/{run_id}/plots"), folder, dirs_exist_ok=True)
    return sorted(str(path) for path in folder.glob("*.png"))


def _flagged(tested: pa.Table, scores: Path) -> tuple[list[dict[str, Any]], dict[Any, str]]:
    """Return the flagged rows of the test period, highest scores first, and each row's truth."""
    parts = pa.concat_tables(pq.read_table(p) for p in sorted(scores.glob("part-*.parquet")))
    labels = ("fraud" if fraud else "good" for fraud in tested[LABEL].to_pylist())
    truth = dict(zip(tested[ID].to_pylist(), labels, strict=True))
    flagged = parts.filter(pc.and_(parts["is_anomaly"], pc.is_in(parts[ID], tested[ID])))
    return flagged.sort_by([("score", "descending")]).to_pylist(), truth


def _draw_flagged(
    flagged: Sequence[dict[str, Any]], truth: dict[Any, str], place: Path
) -> list[str]:
    """Draw what raises the highest scores; return the path of the picture, if any."""
    found = {
        f"payment {row[ID]} ({truth[row[ID]]}): score {row['score']:.1f} nats, "
        f"p-value {row['p_value']:.2g}": _explanation(row)
        for row in flagged[:DRAWN_ROWS]
    }
    if not found:
        return []
    picture = place / "flagged.png"
    plots.contributions(found, complete=False).savefig(picture)
    return [str(picture)]


def _explanation(row: dict[str, Any]) -> Explanation:
    parts = tuple(Contribution(**part) for part in row["contributions"])
    return Explanation(parts, row["rest"], row["kl"])


def _show_flagged(
    flagged: Sequence[dict[str, Any]], truth: dict[Any, str], wording: Wording
) -> None:
    """Print the highest scores with their reasons."""
    rows = [
        (
            str(row[ID]),
            plain_number(row["p_value"]),
            truth[row[ID]],
            "; ".join(wording.reasons(_explanation(row))),
        )
        for row in flagged[:SHOWN_ROWS]
    ]
    title = (
        f"The {len(rows)} highest scores of the {len(flagged)} payments flagged in the test "
        f"period, each with its {SHOWN_CONTRIBUTIONS} main reasons at most"
    )
    console.table(title, ("id", "p-value", "truth", "what is unusual"), rows)


def _show_next_steps(
    answer: dict[str, Any], body: str, example: str, past: tuple[Path, str] | None = None
) -> None:
    """Print the commands to try next.

    Args:
        answer: the JSON object of the run.
        body: the arguments with which curl posts a record or an image.
        example: the name of the configuration.
        past: the window store for the service, and the file of past events that fills it.
    """
    uri = f"models:/{answer['name']}@champion" if answer["promoted"] else answer["model_uri"]
    if not answer["promoted"]:
        console.info(f"The model was refused as champion (see above); its version is {uri}")
    console.heading("Next, score over HTTP:")
    if not shutil.which("anomaly-vae"):
        console.info(f"  . {Path(sys.prefix, 'bin', 'activate')}")
    if past:
        store, events = past
        console.info(f"  export ANOMALY_VAE_WINDOWS=sqlite:///{store}   # past events, for windows")
        console.info(f"  anomaly-vae windows load --model {uri} --input {events}")
    console.info(f"  anomaly-vae serve --model {uri}")
    console.info(f"  curl -s localhost:8000/score {body}")
    console.info(f"or score your own files: copy configs/{example}, change its data section, and")
    console.info("  anomaly-vae run my.yaml --set data.path=PATH")
