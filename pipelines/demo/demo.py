"""The whole path on simulated data, shown to somebody who has just arrived."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score

from anomaly_vae.config import Config, load_config
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import IMAGE
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.pixels import DecodeOptions
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.lifecycle.registry import TRAINED_RUN_TAG, Registry, Version
from pipelines import console
from pipelines.batch.images import HeatmapOptions, score_images
from pipelines.batch.tables import score_files
from pipelines.datasets.image_files import find_images, read_images
from pipelines.demo.simulate import write_scans, write_transactions
from pipelines.registry.frozen_test import Frozen
from pipelines.registry.model_uri import LoadedModel, open_source
from pipelines.run import run

ROWS, SCANS, SEED = 20_000, 300, 0
ID, LABEL = "TRANSACTION_ID", "TX_FRAUD"
SHOWN_ROWS, SHOWN_REASONS = 10, 3
HALF = 0.5
"""A pixel of a resized mask is lesion above this."""
QUICKLY = ("training.epochs=40", "training.batch_size=16")
"""About 400 small steps: enough to find lesions and to draw scans, and to be done in a minute."""
FEW = ("evaluation.top=10",)
"""Customers that are looked into each day, of some hundred."""


def demo(out: Path, kinds: Sequence[str] = ("tabular", "image")) -> dict[str, Any]:
    """Each kind's whole path; everything it makes lies in ``out``, but the registry.

    That is the working folder's own.
    """
    return {kind: DEMOS[kind](out) for kind in kinds}


def tabular(out: Path) -> dict[str, Any]:
    """Simulate → train → calibrate → evaluate → register → promote → score."""
    console.step(f"Simulating {ROWS:,} card transactions")
    simulated = write_transactions(out, ROWS, SEED)
    config = demo_config("fraud.yaml", simulated["out"], FEW)
    answer, source, version = _run(config)
    console.step("Scoring every row")
    summary = score_files(source, [simulated["out"]], out / "scores", explain=SHOWN_REASONS)
    registry = Registry(config.mlflow.tracking_uri)
    pictures = _pictures(registry, version, out / "pictures")
    _show(answer, simulated, summary)
    _show_flagged(Frozen.own(version).read(registry), out / "scores")
    console.say(f"Pictures: {', '.join(pictures)}")
    record = '{"records": [{"TX_AMOUNT": 900, "TX_CHANNEL": "mail_order"}], "explain": 3}'
    _say_next(answer, f"-H 'content-type: application/json' -d '{record}'", "fraud.yaml")
    return {**answer, "data": simulated, "scores": str(out / "scores"), "pictures": pictures}


def image(out: Path) -> dict[str, Any]:
    """The same for scans with lesions, which are drawn; and what the model imagines."""
    folder = out / "scans"
    console.step(f"Simulating {SCANS:,} scans")
    simulated = write_scans(folder, SCANS, SEED)
    config = demo_config("scans.yaml", simulated["out"], QUICKLY)
    answer, source, version = _run(config)
    console.step("Scoring every scan")
    scores, options = folder / "scores", HeatmapOptions(png=True)
    summary = score_images(source, [simulated["out"]], scores, heatmaps=options)
    located = _located(source, Path(simulated["out"]))
    pictures = _pictures(Registry(config.mlflow.tracking_uri), version, folder / "pictures")
    pictures += _sheets(source, simulated["images"], folder / "pictures")
    _show_scans(answer, simulated, summary, located)
    console.say(f"Pictures: {', '.join(pictures)}")
    console.say(f"Heatmaps of the {summary['heatmaps']} flagged scans: {scores / 'heatmaps'}")
    scan = f"{simulated['images']}/scan-00000.png"
    _say_next(answer, f"-H 'content-type: image/png' --data-binary @{scan}", "scans.yaml")
    made = {"data": simulated, "scores": str(scores), "pictures": pictures}
    return {**answer, **made, "pixel_average_precision": located}


DEMOS = {"tabular": tabular, "image": image}


def demo_config(name: str, path: str, overrides: Sequence[str] = ()) -> Config:
    """A configuration that ships with the package, pointed at ``path``, under a name of its own.

    What the demo freezes must not judge the models of real data.
    """
    installed = Path(str(files("anomaly_vae"))) / "configs" / name
    checkout = Path(__file__).parents[2] / "configs" / name
    own = [f"data.path={path}", f"name={Path(name).stem}-demo", *overrides]
    return load_config(installed if installed.exists() else checkout, own)


def _run(config: Config) -> tuple[dict[str, Any], LoadedModel, Version]:
    """Train to champion: the answer, the model and its version."""
    answer, _ = run(config)
    source = open_source(answer["model_uri"], config.mlflow.tracking_uri)
    version = Registry(config.mlflow.tracking_uri).version(config.name, answer["version"])
    return answer, source, version


def _located(source: LoadedModel, manifest: Path) -> float:
    """Average precision of the pixels of all lesions, by the smoothed maps of their scans."""
    items = [item for item in find_images([str(manifest)]) if item.attributes["label"] == "1"]
    scorer = source.bundle.scorer
    assert isinstance(scorer.schema, ImageSchema), "a model of scans"
    side, heat, truth = scorer.schema.size, [], []
    for batch in read_images(items, scorer.schema):
        heat.append(smoothed(scorer.explain(batch.images).nats.reshape(-1, side, side)))
        masks = (manifest.parent / "masks" / items[number].path.name for number in batch.files)
        read = scorer.schema.from_images(
            p for mask in masks for p in read_file(mask, DecodeOptions())
        )
        truth.append(np.asarray(read.values[IMAGE])[:, 0] > HALF)
    flat = (np.concatenate(parts).ravel() for parts in (truth, heat))
    return float(average_precision_score(*flat))


def _sheets(source: LoadedModel, images: str, place: Path) -> list[str]:
    """What the model imagines: samples, scans as it would have them, and its latents."""
    from pipelines.generate import images as generate

    paths = [f"{images}/scan-0000{i}.png" for i in range(8)]
    bundle = source.bundle
    generate.sample(bundle, place / "samples.png", seed=SEED)
    generate.reconstruct(bundle, place / "reconstructions.png", paths)
    generate.interpolate(bundle, place / "interpolation.png", paths[:2])
    generate.latent(bundle, place / "latents.png", [images])
    names = ("samples", "reconstructions", "interpolation", "latents")
    return [str(place / f"{name}.png") for name in names]


def _show_scans(
    answer: dict[str, Any], simulated: dict[str, Any], summary: dict[str, Any], located: float
) -> None:
    metrics = answer["metrics"]
    low, high = metrics["fpr_interval"]
    rows = [
        ("scans simulated", simulated["rows"]),
        ("of them with a lesion", simulated["lesions"]),
        ("test scans", metrics["rows"]),
        ("AUROC", metrics["auroc"]),
        ("average precision", metrics["average_precision"]),
        ("pixels of lesions, average precision", located),
        (f"good scans flagged (alpha {metrics['alpha']:g})", metrics["fpr"]),
        ("  95% interval", f"{low:.4f} to {high:.4f}"),
        ("lesions flagged", metrics["recall"]),
        ("flagged in the whole folder", summary["flagged"]),
    ]
    console.table("What the detector found", ("figure", "value"), rows)


def _pictures(registry: Registry, version: Version, place: Path) -> list[str]:
    """Copies of the plots of the runs that trained (where it is known) and calibrated."""
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


def _say_next(answer: dict[str, Any], body: str, example: str) -> None:
    uri = f"models:/{answer['name']}@champion" if answer["promoted"] else answer["model_uri"]
    if not answer["promoted"]:
        console.say(f"It was refused as champion (see above), so this is version {uri}")
    console.step("Next, score over HTTP:")
    console.say(f"  anomaly-vae serve --model {uri}")
    console.say(f"  curl -s localhost:8000/score {body}")
    console.say(f"or your own files: copy configs/{example}, change data, and")
    console.say("  anomaly-vae run my.yaml --set data.path=PATH")
