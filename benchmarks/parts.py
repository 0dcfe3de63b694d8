"""Measure detection and localisation of defects on magnetic tiles, which are industrial pictures.

Train on the good tiles of the training folder (Huang et al. 2018), and test on good tiles against
tiles with blowholes and with breaks. The metrics are the image AUROC, and over all pixels of the
test images, in source pixels, the pixel AUROC, the pixel average precision and the region overlap
of the smoothed maps. "kNN" is the distance to the nearest training image, in pixels at 192 × 192,
raw or standardised image by image, and "size" compares nothing but the height and width of the
files. They have no map.

Our models hold out a tenth of the training images to be measured on, and a tenth for the threshold,
which no figure here depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from anomaly_vae import ImageVAEDetector
from anomaly_vae.evaluation.localization import pixel_figures
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.schema import ImageSchema
from benchmarks.common import Column, Ledger, Options, cpu_seconds, environment, summary_table

Floats = NDArray[np.floating[Any]]
GOOD, DEFECTS = "good", ("blowhole", "break")
"""Folders of the test images."""
RAW_SIDE = 192
"""Side of the images whose raw pixels are compared, in pixels."""
HELD_OUT: dict[str, Any] = {"validation_fraction": 0.1, "calibration_fraction": 0.1}
"""Fractions of the training images that are held out."""
SHORT_STRIDE = 8
"""Distance between the images that the short form uses."""


@dataclass(frozen=True)
class Task:
    """Paths of the images, and the masks of the test images."""

    train: list[str]
    test: list[str]
    kind: NDArray[np.str_]
    """(N,): folder of each test image."""
    masks: list[NDArray[np.bool_]]


def load(folder: Path, stride: int) -> Task:
    """Find every ``stride``-th image."""
    train = sorted((folder / "train" / GOOD).iterdir())[::stride]
    test = [
        path
        for kind in (GOOD, *DEFECTS)
        for path in sorted((folder / "test" / kind).iterdir())[::stride]
    ]
    kinds = np.array([path.parent.name for path in test])
    masks = [_mask(folder, path) for path in test]
    return Task([str(path) for path in train], [str(path) for path in test], kinds, masks)


def _mask(folder: Path, path: Path) -> NDArray[np.bool_]:
    if path.parent.name == GOOD:
        width, height = Image.open(path).size
        return np.zeros((height, width), bool)
    mask = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return np.asarray(Image.open(mask).convert("L")) > 0


Scored = tuple[Floats, list[Floats] | None]
"""Scores (N,) of the test images, and their maps in source pixels."""


def ours(task: Task, seed: int, **arguments: Any) -> tuple[Scored, float, float]:
    """Return scores and maps of our detector, and the CPU-seconds of fit and scores."""
    detector = ImageVAEDetector(random_state=seed, **HELD_OUT, **arguments)
    _, fit = cpu_seconds(lambda: detector.fit(task.train))
    scores, seconds = cpu_seconds(lambda: detector.anomaly_score(task.test))
    return (scores, _maps(detector, task.test)), fit, seconds


def _maps(detector: ImageVAEDetector, paths: list[str]) -> list[Floats]:
    """Return maps in source pixels, smoothed as `evaluate --masks` smooths them."""
    schema, maps = detector.bundle_.scorer.schema, smoothed(detector.heatmap(paths))
    assert isinstance(schema, ImageSchema)
    images: Any = map(schema.read, map(Path, paths))
    return [schema.to_source(heat, image, np.nan) for heat, image in zip(maps, images, strict=True)]


def nearest(read: Callable[[str], Floats], task: Task, seed: int) -> tuple[Scored, float, float]:
    """Return the distance to the nearest training image, by what ``read`` returns of a file."""
    del seed
    known, new = (np.stack([read(path) for path in paths]) for paths in (task.train, task.test))
    model, fit = cpu_seconds(lambda: NearestNeighbors(n_neighbors=1).fit(known))
    found, seconds = cpu_seconds(lambda: model.kneighbors(new)[0][:, 0])
    return (found, None), fit, seconds


def _raw(path: str) -> Floats:
    image = Image.open(path).convert("L").resize((RAW_SIDE, RAW_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32).ravel() / 255


def _standardised(path: str) -> Floats:
    pixels = _raw(path)
    return (pixels - pixels.mean()) / pixels.std()


def _size(path: str) -> Floats:
    return np.log(Image.open(path).size)


Method = Callable[[Task, int], tuple[Scored, float, float]]
BACKBONE = partial(ours, backbone="efficientnet_lite0")
HEAD = partial(
    ours, size=96, epochs=48, batch_size=16, localization_head=True, score_type="contamination"
)
NEAREST: dict[str, Method] = {
    "kNN, k = 1, raw": partial(nearest, _raw),
    "kNN, k = 1, standardised": partial(nearest, _standardised),
    "kNN, k = 1, size": partial(nearest, _size),
}
METHODS: dict[str, Method] = {
    "ours, backbone": BACKBONE,
    "ours, localisation head, 96 px": HEAD,
    "ours, 192 px, no backbone": partial(ours, size=RAW_SIDE),
    **NEAREST,
}


def measure(method: Method, task: Task, seed: int) -> dict[str, float]:
    """Measure one method with one seed."""
    (scores, maps), fit, seconds = method(task, seed)
    metrics = {"fit_seconds": fit, "score_seconds": seconds}
    for defect in ("all", *np.unique(task.kind[task.kind != GOOD])):
        chosen = (task.kind == GOOD) | (defect == "all") | (task.kind == defect)
        name = "" if defect == "all" else f"_{defect}"
        anomaly = task.kind[chosen] != GOOD
        metrics[f"auroc{name}"] = float(roc_auc_score(anomaly, scores[chosen]))
        if defect == "all":
            metrics["ap"] = float(average_precision_score(anomaly, scores[chosen]))
        if maps is not None:
            index = np.flatnonzero(chosen)
            found = pixel_figures([maps[i] for i in index], [task.masks[i] for i in index])
            metrics[f"pixel_auroc{name}"] = found.auroc or 0.0
            metrics[f"pixel_ap{name}"] = found.average_precision or 0.0
            metrics[f"overlap{name}"] = found.region_overlap or 0.0
    return metrics


# ---------------------------------------------------------------- the run

COLUMNS = {
    "auroc": Column("image AUROC"),
    "auroc_blowhole": Column("blowholes"),
    "auroc_break": Column("breaks"),
    "pixel_auroc": Column("pixel AUROC"),
    "pixel_ap": Column("pixel average precision"),
    "pixel_ap_blowhole": Column("blowholes"),
    "pixel_ap_break": Column("breaks"),
    "overlap": Column("region overlap"),
    "fit_seconds": Column("fit, CPU-s", ".0f", show_deviation=False),
    "score_seconds": Column("score, CPU-s", ".0f", show_deviation=False),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the table."""
    stride = SHORT_STRIDE if options.short else 1
    ledger = Ledger(options.result_path("parts.csv"), ("method", "seed"))

    @cache
    def task() -> Task:
        return load(options.data_folder("tiles"), stride)

    for name, seed in _plan(options):
        if (name, seed) not in ledger:
            ledger.add((name, seed), measure(METHODS[name], task(), seed))
    rows = ledger.rows.reindex(columns=["method", "seed", *COLUMNS])  # some have no map
    table = f"{summary_table(rows, 'method', COLUMNS)}\n{environment()}"
    options.result_path("parts.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")


def _plan(options: Options) -> Iterator[tuple[str, int]]:
    for seed in range(1 if options.short else options.seeds):
        for name in METHODS:
            if options.wants(name) and (seed == 0 or name.startswith("ours")):
                yield name, seed
