"""Scans: X-rays with pneumonia, MRI slices with tumours, and lesions inserted where none was.

X-rays: the 1,214 training normals of PneumoniaMNIST (Yang et al. 2023), 28×28 enlarged to 32×32,
against its test split.
MRI: normal slices, split by groups of near-twins, against slices with a tumour, 64×64. Part of any
figure there is the source of the picture: compare it with what the mean or the standard deviation
of an image alone gives.
Lesions: 300 inserted into the held-out normal MRI slices (bright, dark, textured or displaced
tissue), where nothing but the lesion can help: image AUROC, and per pixel the average precision and
the AUROC of the smoothed map against the known masks.

Ours holds out 200 of the training normals, in small groups of near-twins, to standardise its
pixels; peers that need none learn from all. Peers see images standardised one by
one, but for those that say raw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyod.models.auto_encoder import AutoEncoder
from scipy.ndimage import uniform_filter
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from anomaly_vae.config import merged, validate_config
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.pixels import DecodedImage, DecodeOptions
from anomaly_vae.images.schema import ImageSchema, crop_and_resize, image_batch
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.simulation.scans import insert_lesions
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import Figure, Ledger, Options, cpu_seconds, environment, table

Images = NDArray[np.float32]
Scores = NDArray[np.float64]
Figures = dict[str, float]

XRAY, MRI = "chest X-ray", "brain MRI"
SIZES = {XRAY: 32, MRI: 64}
LESIONS, LESION_SEED = 300, 11
HELD_OUT, LARGEST_GROUP = 200, 5
"""Training normals that ours holds out, in groups of at most so many near-twins."""
TWINS = 0.95
"""Images whose correlation at 32×32, mirrored or not, exceeds this are near-twins."""
SHORT_THIN = 6


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Images (N, 1, S, S) on [0, 1] to learn from and to test on."""

    size: int
    train: Images
    test: Images
    anomaly: NDArray[np.bool_]
    """(N,) of the test images"""
    lesions: Images | None = None
    """test normals with something inserted"""
    masks: NDArray[np.bool_] | None = None
    """(N, S, S) where"""

    def split(self, seed: int) -> tuple[RawBatch, RawBatch]:
        """Training images less those held out, and these; near-twins stay together."""
        unit = near_twins(self.train)
        sizes = np.bincount(unit)
        small = np.random.default_rng(seed).permutation(np.flatnonzero(sizes <= LARGEST_GROUP))
        held = small[np.cumsum(sizes[small]) <= min(HELD_OUT, len(self.train) // 4)]
        mask = np.isin(unit, held)
        return image_batch(self.train[~mask]), image_batch(self.train[mask])


def near_twins(images: Images) -> NDArray[np.intp]:
    """(N,): the number of the group of near-twins that an image is in."""
    small = np.stack([_small(image[0]) for image in images])
    flipped = small.reshape(-1, 32, 32)[:, :, ::-1].reshape(len(small), -1)
    alike = np.maximum(small @ small.T, small @ flipped.T) > TWINS
    return np.asarray(connected_components(alike)[1], np.intp)


def _small(image: Images) -> Images:
    pixels = crop_and_resize((image * 65_535).astype(np.uint16), 32, 1).ravel()
    centred = pixels - pixels.mean()
    return np.asarray(centred / np.linalg.norm(centred), np.float32)


def load_xray(folder: Path, thin: int) -> Task:
    """PneumoniaMNIST."""
    data, size = np.load(folder / "pneumoniamnist.npz"), SIZES[XRAY]
    train, test = (
        np.stack([crop_and_resize(image.astype(np.uint16) * 257, size, 1) for image in data[name]])
        for name in ("train_images", "test_images")
    )
    labels = data["test_labels"].ravel() == 1
    return Task(SIZES[XRAY], train[::thin], test[::thin], labels[::thin])


def load_mri(folder: Path, thin: int) -> Task:
    """Brain slices, and lesions inserted into the normal ones of the test."""
    parts = ("train_normal", "test_normal", "test_abnormal")
    train, normal, tumour = (_read(folder / "mri" / part, SIZES[MRI])[::thin] for part in parts)
    anomaly = np.repeat([False, True], [len(normal), len(tumour)])
    chosen = np.random.default_rng(LESION_SEED).integers(len(normal), size=LESIONS // thin)
    lesions, masks, _ = insert_lesions(normal[chosen, 0], LESION_SEED)
    test = np.concatenate([normal, tumour])
    return Task(SIZES[MRI], train, test, anomaly, lesions[:, None], masks)


def _read(folder: Path, size: int) -> Images:
    files = sorted(folder.glob("*.jpg"))
    pictures = [picture for file in files for picture in read_file(file, DecodeOptions())]
    return np.stack(
        [crop_and_resize(p.pixels, size, 1) for p in pictures if isinstance(p, DecodedImage)]
    )


def standardised(images: Images) -> Images:
    """(N, F): each image by its own mean and deviation."""
    layout = ImageLayout(1, images.shape[-1])
    return ImageEncoding(layout, "standardise").encode(image_batch(images))


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """What is measured."""

    def fit(self, task: Task) -> None:
        """Learn from the training images."""

    def score(self, images: Images) -> Scores:
        """(N,), higher is more anomalous."""

    def maps(self, images: Images) -> Images | None:
        """(N, S, S), higher is more anomalous; None for a method that has none."""


@dataclass
class Ours:
    """The library as a user drives it; ``over`` is laid upon the default configuration."""

    over: Mapping[str, Any]
    seed: int
    scorer: Scorer | None = None

    def fit(self, task: Task) -> None:
        """See `Model`."""
        base = {
            "kind": "image",
            "name": "scans",
            "data": {"path": "images", "size": task.size},
            "training": {"seed": self.seed},
        }
        config = validate_config(merged(base, self.over))
        train, validation = task.split(self.seed)
        prepared = prepare(config, ImageSchema(task.size, 1), train, validation)
        self.scorer = fit_bundle(config, prepared, data={}).bundle.scorer

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        assert self.scorer
        return self.scorer.score(image_batch(images))

    def maps(self, images: Images) -> Images | None:
        """See `Model`."""
        assert self.scorer
        side = images.shape[-1]
        return (
            self.scorer.explain(image_batch(images)).nats.reshape(-1, side, side).astype(np.float32)
        )


@dataclass
class Trivial:
    """A number that anybody can read off an image."""

    value: Callable[[Images], Any]

    def fit(self, task: Task) -> None:
        """There is nothing to learn."""

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.value(images[:, 0]), np.float64)

    def maps(self, images: Images) -> Images | None:
        """None."""


@dataclass
class Peer:
    """A detector of rows (N, F)."""

    estimator: Any
    rows: Callable[[Images], Images] = standardised

    def fit(self, task: Task) -> None:
        """See `Model`."""
        self.estimator.fit(self.rows(task.train))

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.estimator.decision_function(self.rows(images)), np.float64)

    def maps(self, images: Images) -> Images | None:
        """None."""


class Flatness:
    """Where local contrast is lost: no model, but pixels standardised on the training images."""

    WINDOW, FLOOR = 7, 4e-3

    def fit(self, task: Task) -> None:
        """See `Model`."""
        flat = self._flat(task.train)
        self.center, self.scale = flat.mean(0), flat.std(0) + 0.1 * flat.std()

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.maps(images).mean((1, 2)), np.float64)

    def maps(self, images: Images) -> Images:
        """See `Model`."""
        return np.asarray((self._flat(images) - self.center) / self.scale, np.float32)

    def _flat(self, images: Images) -> Images:
        pixels = standardised(images).reshape(-1, *images.shape[-2:])
        mean, square = (
            uniform_filter(p, (0, self.WINDOW, self.WINDOW)) for p in (pixels, pixels**2)
        )
        return np.asarray(self.FLOOR / (np.maximum(square - mean**2, 0) + self.FLOOR))


class Neighbours:
    """Distance to the nearest training image."""

    def __init__(self) -> None:
        self.index = NearestNeighbors(n_neighbors=1)

    def fit(self, x: Images) -> None:
        """Keep (N, F)."""
        self.index.fit(x)

    def decision_function(self, x: Images) -> Scores:
        """(N,)"""
        return np.asarray(self.index.kneighbors(x)[0][:, 0])


class Components:
    """PCA, and what it leaves unexplained of the structure: 1 − SSIM (Wang et al. 2004)."""

    COMPONENTS = 256

    def __init__(self, seed: int) -> None:
        self.pca = PCA(self.COMPONENTS, random_state=seed)

    def fit(self, task: Task) -> None:
        """See `Model`."""
        self.pca.set_params(n_components=min(self.COMPONENTS, len(task.train) - 1))
        self.pca.fit(standardised(task.train))

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.maps(images).mean((1, 2)), np.float64)

    def maps(self, images: Images) -> Images:
        """See `Model`."""
        x, side = standardised(images), images.shape[-1]
        expected = self.pca.inverse_transform(self.pca.transform(x))
        pairs = zip(x.reshape(-1, side, side), expected.reshape(-1, side, side), strict=True)
        return np.stack([1 - similarity(a, b) for a, b in pairs]).astype(np.float32)


def similarity(x: Images, y: Images, window: int = 7) -> Images:
    """Structural similarity of two images (S, S), pixel by pixel."""

    def average(values: Images) -> Images:
        return np.asarray(uniform_filter(values, window))

    mean_x, mean_y = average(x), average(y)
    var_x, var_y = average(x * x) - mean_x**2, average(y * y) - mean_y**2
    both = average(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return np.asarray(light * (2 * both + 9e-4) / (var_x + var_y + 9e-4))


def raw(images: Images) -> Images:
    """(N, F): intensities as they are."""
    return images.reshape(len(images), -1)


def border(images: Images) -> Images:
    """(N,): the mean of the outermost pixels."""
    inside = images[:, 1:-1, 1:-1].sum((1, 2))
    count = images.shape[1] * images.shape[2] - (images.shape[1] - 2) * (images.shape[2] - 2)
    return np.asarray((images.sum((1, 2)) - inside) / count)


@dataclass(frozen=True)
class Method:
    """A name, and how to make it from a seed; ``once``: its first seed will do."""

    name: str
    make: Callable[[int], Model]
    once: bool = False


def ours(name: str, **over: Any) -> Method:
    """A configuration of this project."""
    return Method(name, lambda seed: Ours(over, seed))


def trivial(name: str, value: Callable[[Images], Any]) -> Method:
    """A cue."""
    return Method(name, lambda _: Trivial(value), once=True)


PLAIN = {"corruption": {"type": "none"}}
CONTAMINATION: Mapping[str, Any] = {
    "model": {"localization_head": True},
    "score": {"type": "contamination"},
    "training": {"epochs": 48},  # about 1,500 steps: what it finds grows with what it was shown
}
OURS = (
    ours("VAE (ours)"),
    ours("ours, score: contamination, 48 epochs", **CONTAMINATION),
    ours("ours, score: reconstruction", score={"type": "reconstruction"}),
    ours("ours, not standardised", score={"standardise": False}),
    ours("ours, no corruption", training=PLAIN),
    ours("ours, likelihood: structural", model={"likelihood": "structural"}),
    ours("ours, likelihood: gaussian", model={"likelihood": "gaussian"}),
    ours("ours, likelihood: laplace", model={"likelihood": "laplace"}),
    ours("ours, network: convolutional", model={"network": "convolutional"}),
    ours("ours, network: residual", model={"network": "residual"}),
    ours(
        "ours, convolutional, gaussian, not standardised (a plain VAE)",
        model={"network": "convolutional", "likelihood": "gaussian"},
        score={"standardise": False},
        training=PLAIN,
    ),
    ours("ours, type: autoencoder", model={"type": "autoencoder"}),
)
PEERS = (
    trivial("minus the mean of the image", lambda x: -x.mean((1, 2))),
    trivial("minus its standard deviation", lambda x: -x.std((1, 2))),
    trivial("border brightness", border),
    Method("flatness, no model", lambda _: Flatness(), once=True),
    Method("kNN, k = 1, raw", lambda _: Peer(Neighbours(), raw), once=True),
    Method("kNN, k = 1", lambda _: Peer(Neighbours()), once=True),
    Method("PCA 256, structural similarity", Components, once=True),
    Method("PyOD AutoEncoder", lambda seed: Peer(AutoEncoder(random_state=seed, verbose=0))),
)
METHODS = (*OURS, *PEERS)
SHORT = (
    "VAE (ours)",
    "ours, score: contamination, 48 epochs",
    *(method.name for method in PEERS[:7]),
)


# ---------------------------------------------------------------- the figures


def measure(model: Model, task: Task) -> Figures:
    """How well the model ranks the test images, finds what was inserted, and what that costs."""
    _, fit = cpu_seconds(lambda: model.fit(task))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    figures = {
        "auroc": float(roc_auc_score(task.anomaly, scores)),
        "average_precision": float(average_precision_score(task.anomaly, scores)),
        "fit_seconds": fit,
        "score_seconds": score,
    }
    if task.lesions is None or task.masks is None:
        return figures
    return figures | _lesions(model, task.lesions, task.masks, scores[~task.anomaly])


def _lesions(model: Model, lesions: Images, masks: NDArray[np.bool_], normal: Scores) -> Figures:
    """Images with a lesion against the normal ones, and pixels of it against all others."""
    scores = np.concatenate([normal, model.score(lesions)])
    labels = np.repeat([False, True], [len(normal), len(lesions)])
    figures = {"lesion_auroc": float(roc_auc_score(labels, scores))}
    maps = model.maps(lesions)
    if maps is not None:
        heat = smoothed(maps).ravel()
        figures["pixel_ap"] = float(average_precision_score(masks.ravel(), heat))
        figures["pixel_auroc"] = float(roc_auc_score(masks.ravel(), heat))
    return figures


# ---------------------------------------------------------------- the run

KEYS = ("method", "task", "seed")
RANKING = {
    "auroc": Figure("AUROC"),
    "average_precision": Figure("average precision"),
    "fit_seconds": Figure("fit, CPU-s", ".0f", deviation=False),
    "score_seconds": Figure("score, CPU-s", ".2f", deviation=False),
}
LOCATING = {
    "lesion_auroc": Figure("image AUROC"),
    "pixel_ap": Figure("pixel average precision"),
    "pixel_auroc": Figure("pixel AUROC"),
}


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the tables."""
    folder, thin = options.root(), SHORT_THIN if options.short else 1
    found = Ledger(options.result("scans.csv"), KEYS)

    @cache
    def task(name: str) -> Task:
        return {XRAY: load_xray, MRI: load_mri}[name](folder, thin)

    for method, name, seed in _plan(options):
        if (key := (method.name, name, seed)) not in found:
            found.add(key, measure(method.make(seed), task(name)))
    tables = _report(found.rows)
    options.result("scans.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


def _plan(options: Options) -> Iterator[tuple[Method, str, int]]:
    """Every seed of a method on every task, the first seed of all methods first."""
    wanted = [method for method in METHODS if options.wants(method.name)]
    if options.short:
        wanted = [method for method in wanted if method.name in SHORT]
    for seed in range(1 if options.short else options.seeds):
        for method in wanted:
            if seed == 0 or not method.once:
                yield from ((method, name, seed) for name in SIZES)


def _report(found: pd.DataFrame) -> str:
    place = {method.name: index for index, method in enumerate(METHODS)}
    found = found.sort_values("method", key=lambda names: names.map(place), kind="stable")
    parts = [
        f"{name}\n\n{table(found[found['task'] == name], 'method', RANKING)}\n" for name in SIZES
    ]
    lesions = found[found["task"] == MRI].dropna(subset=["lesion_auroc"])
    parts.append(f"Inserted lesions\n\n{table(lesions, 'method', LOCATING)}\n")
    return "".join([*parts, environment()])
