"""Compare designs of the default image model without the test images of the protocol ``scans``.

X-rays: train on the normal training images of PneumoniaMNIST and rank its validation split, which
has labels.

MRI: about 200 training slices, in whole groups of near-duplicates, are held out, and the others
train. The held-out slices are tested as they are against changed copies. The kinds of change are
lesions (`anomaly_vae.simulation.scans.insert_lesions`); a mass that displaces what surrounds it; a
haze, which takes local contrast from a region and brightens it; a region out of focus; a grainy
region; and a head whose parts are displaced. None of them tells where a picture is from. The metric
is the AUROC of each kind, and the mean over the kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.metrics import roc_auc_score

from anomaly_vae.simulation.scans import insert_lesions
from benchmarks.common import Column, Ledger, Options, cpu_seconds, environment, summary_table
from benchmarks.duplicates import near_duplicates
from benchmarks.scans import (
    MRI,
    SHORT_STRIDE,
    SIZES,
    XRAY,
    Images,
    Metrics,
    Model,
    Scores,
    Task,
    ours,
    prepared,
    read_folder,
)

Floats = NDArray[np.floating[Any]]
Change = Callable[[Floats, np.random.Generator], Floats]

TESTED, TESTED_GROUP, TEST_SEED = 200, 3, 1000
"""Number of held-out slices, largest group of near-duplicates among them, and seed."""
CHANGE_SEED = 77
"""Seed of the changes."""
METHODS = (
    ours("default, beta 0.03"),
    ours("beta 0.1", training={"beta": 0.1}),
    ours("beta 1", training={"beta": 1.0}),
    ours("autoencoder", model={"type": "autoencoder"}),
)


# ---------------------------------------------------------------- the changes


def mass(image: Floats, rng: np.random.Generator) -> Floats:
    """Insert a smooth mass, brighter or darker, which displaces what surrounds it."""
    place = _Region.draw(rng, 0.08, 0.18)
    pushed = _displaced(image, *place.push(len(image), rng.uniform(0.3, 0.6)))
    contrast = rng.choice([-1, 1]) * rng.uniform(0.3, 1) * image.std()
    return _blended(pushed, gaussian_filter(pushed, 2) + contrast, place.share(len(image), rng))


def haze(image: Floats, rng: np.random.Generator) -> Floats:
    """Take local contrast from a large region, and brighten it."""
    share = _Region.draw(rng, 0.2, 0.4).share(len(image), rng)
    faded, brightness = rng.uniform(0.3, 0.7), rng.uniform(0, 0.4) * image.std()
    return _blended(image, image + faded * (gaussian_filter(image, 3) - image) + brightness, share)


def soft(image: Floats, rng: np.random.Generator) -> Floats:
    """Blur a region."""
    share = _Region.draw(rng, 0.15, 0.35).share(len(image), rng)
    return _blended(image, gaussian_filter(image, rng.uniform(0.8, 1.6)), share)


def grain(image: Floats, rng: np.random.Generator) -> Floats:
    """Add fine noise to a region."""
    share = _Region.draw(rng, 0.15, 0.35).share(len(image), rng)
    noise = _waves(len(image), rng.uniform(0.5, 1), rng)
    return _blended(image, image + noise * rng.uniform(0.15, 0.4) * image.std(), share)


def displacement(image: Floats, rng: np.random.Generator) -> Floats:
    """Displace parts of the whole image by 2% to 4.5% of its side."""
    side = len(image)
    rows, columns = (_waves(side, side / 8, rng) for _ in range(2))
    distance = rng.uniform(0.02, 0.045) * side
    return _displaced(image, distance * rows, distance * columns)


CHANGES: dict[str, Change] = {
    "mass": mass,
    "haze": haze,
    "soft": soft,
    "grain": grain,
    "displacement": displacement,
}


@dataclass(frozen=True)
class _Region:
    """A region of an image; lengths are relative to its side."""

    row: float
    column: float
    radius: float
    ratio: float
    """Ratio of width to height, square root."""

    @classmethod
    def draw(cls, rng: np.random.Generator, smallest: float, largest: float) -> Self:
        """Draw a region near the middle with a radius in these bounds."""
        row, column = rng.uniform(0.3, 0.7, 2)
        return cls(row, column, rng.uniform(smallest, largest), rng.uniform(0.7, 1.4))

    def share(self, side: int, rng: np.random.Generator) -> Floats:
        """Return the share of the region in each pixel (S, S), with an irregular soft edge."""
        y, x = np.indices((side, side)) / side
        across, along = (y - self.row) * self.ratio, (x - self.column) / self.ratio
        edge = np.hypot(across, along) / self.radius - 1
        return np.asarray(1 / (1 + np.exp(8 * edge + 1.2 * _waves(side, side / 12, rng))))

    def push(self, side: int, strength: float) -> tuple[Floats, Floats]:
        """Return the displacement (S, S) away from the centre, in rows and in columns."""
        y, x = np.indices((side, side)) - np.reshape((self.row, self.column), (2, 1, 1)) * side
        near = strength * np.exp(-(y**2 + x**2) / (1.8 * self.radius * side) ** 2)
        return -y * near, -x * near


def _displaced(image: Floats, rows: Floats, columns: Floats) -> Floats:
    """Return an image (S, S) whose pixels come from so many rows below and columns to the right."""
    y, x = np.indices(image.shape)
    return np.asarray(map_coordinates(image, [y + rows, x + columns], order=1, mode="nearest"))


def _blended(image: Floats, other: Floats, share: Floats) -> Floats:
    return np.clip(image + share * (other - image), 0, 1)


def _waves(side: int, length: float, rng: np.random.Generator) -> Floats:
    """Draw smooth noise (S, S) with standard deviation 1."""
    noise = gaussian_filter(rng.normal(size=(side, side)), length)
    return np.asarray(noise / noise.std())


def changed(images: Images) -> dict[str, Images]:
    """Return a changed copy of every image (N, 1, S, S), for each kind of change."""
    copies = {
        kind: np.stack([_copy(image[0], change, place) for place, image in enumerate(images)])
        for kind, change in CHANGES.items()
    }
    lesions, _, _ = insert_lesions(images[:, 0], CHANGE_SEED)
    return {kind: copy[:, None] for kind, copy in {"lesion": lesions, **copies}.items()}


def _copy(image: Images, change: Change, place: int) -> Images:
    rng = np.random.default_rng([CHANGE_SEED, place])
    return change(image.astype(np.float64), rng).astype(np.float32)


# ---------------------------------------------------------------- the tasks


def load_validation(folder: Path, stride: int) -> Task:
    """Load the X-rays with the validation split to test on."""
    data, size = np.load(folder / "pneumoniamnist.npz"), SIZES[XRAY]
    train, test = (prepared(data[name], size) for name in ("train_images", "val_images"))
    labels = data["val_labels"].ravel() == 1
    return Task(size, train[::stride], test[::stride], labels[::stride])


def load_changes(folder: Path, stride: int) -> Task:
    """Load the MRI training slices; some are held out to test on, and are followed by copies."""
    images = read_folder(folder / "mri" / "train_normal", SIZES[MRI])[::stride]
    groups = near_duplicates(images)
    sizes = np.bincount(groups)
    small = np.random.default_rng(TEST_SEED).permutation(np.flatnonzero(sizes <= TESTED_GROUP))
    held = np.isin(groups, small[np.cumsum(sizes[small]) <= TESTED // stride])
    tested = images[held]
    copies = np.concatenate(list(changed(tested).values()))
    anomaly = np.repeat([False, True], [len(tested), len(copies)])
    return Task(SIZES[MRI], images[~held], np.concatenate([tested, copies]), anomaly)


def measure(model: Model, task: Task, kinds: Sequence[str]) -> Metrics:
    """Measure the AUROC of each kind of anomaly and their mean, and the seconds of the fit.

    Args:
        model: the untrained model.
        task: anomalies of each kind follow one another, as many as normal images if there are
            several kinds.
        kinds: names of the kinds.
    """
    _, fit = cpu_seconds(lambda: model.fit(task))
    scores = model.score(task.test)
    normal, parts = scores[~task.anomaly], np.split(scores[task.anomaly], len(kinds))
    aurocs = {kind: _auroc(normal, part) for kind, part in zip(kinds, parts, strict=True)}
    return {**aurocs, "mean": float(np.mean(list(aurocs.values()))), "fit_seconds": fit}


def _auroc(normal: Scores, anomalous: Scores) -> float:
    labels = np.repeat([False, True], [len(normal), len(anomalous)])
    return float(roc_auc_score(labels, np.concatenate([normal, anomalous])))


# ---------------------------------------------------------------- the run

PNEUMONIA = "pneumonia"
FIT = {"fit_seconds": Column("fit, CPU-s", ".0f", show_deviation=False)}
COLUMNS = {
    XRAY: {PNEUMONIA: Column("AUROC", ".4f"), **FIT},
    MRI: {kind: Column(kind) for kind in ("mean", "lesion", *CHANGES)} | FIT,
}
TASKS = {
    XRAY: (load_validation, (PNEUMONIA,)),
    MRI: (load_changes, ("lesion", *CHANGES)),
}
"""Function that loads each task, and the kinds of anomaly in it."""


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    ledger = Ledger(options.result_path("scan_designs.csv"), ("method", "task", "seed"))
    for name, (load, kinds) in TASKS.items():
        task = load(options.data_root(), SHORT_STRIDE if options.short else 1)
        for seed in range(1 if options.short else options.seeds):
            for method in METHODS:
                key = (method.name, name, seed)
                if options.wants(method.name) and key not in ledger:
                    ledger.add(key, measure(method.make(seed), task, kinds))
    tables = _report(ledger.rows)
    options.result_path("scan_designs.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


def _report(rows: pd.DataFrame) -> str:
    parts = (
        f"{name}\n\n{summary_table(rows[rows['task'] == name], 'method', COLUMNS[name])}\n"
        for name in TASKS
    )
    return "".join([*parts, environment()])
