"""Measure detection on medical images: X-rays, MRI slices, and synthetic lesions in MRI slices.

X-rays: train on the 1,214 normal training images of PneumoniaMNIST (Yang et al. 2023), enlarged
from 28×28 to 32×32, and test on its test split (normal against pneumonia).

MRI: train on normal brain slices and test on normal slices against slices with a tumour, 64×64.
Normal slices are split by groups of near-duplicates. The two classes come from different sources,
and part of every result is due to that: compare it with the mean or the standard deviation of an
image alone.

Lesions: insert 300 synthetic lesions (bright, dark, textured or displaced tissue) into the normal
test slices of the MRI task, so that only the lesion distinguishes the classes. The metrics are the
image AUROC, and the pixel average precision and pixel AUROC of the smoothed anomaly map against the
known masks.

Our models hold out 200 of the normal training images, in small groups of near-duplicates, to
standardise their pixel scores; peers train on all of them. Peers read images that are standardised
one by one, except methods labelled "raw".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from anomaly_vae.config import validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.pixels import DecodedImage, DecodeOptions
from anomaly_vae.images.schema import ImageSchema, crop_and_resize, image_batch
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.simulation.scans import insert_lesions
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import (
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    pyod,
    summary_table,
)
from benchmarks.duplicates import near_duplicates

Images = NDArray[np.float32]
Scores = NDArray[np.float64]
Metrics = dict[str, float]

XRAY, MRI = "chest X-ray", "brain MRI"
SIZES = {XRAY: 32, MRI: 64}
"""Side of the images of each task, in pixels."""
LESIONS, LESION_SEED = 300, 11
"""Number of synthetic lesions, and the seed that places them."""
HELD_OUT, LARGEST_GROUP = 200, 5
"""Maximum number of held-out training images, and of images in a held-out group."""
SHORT_STRIDE = 6
"""Stride of the subsample that the short form reads."""


# ---------------------------------------------------------------- the task


@dataclass(frozen=True, eq=False)
class Task:
    """Training and test images (N, 1, S, S) with values in [0, 1]."""

    size: int
    """Side S of the images, in pixels."""
    train: Images
    test: Images
    anomaly: NDArray[np.bool_]
    """Whether each test image is an anomaly, (N,)."""
    lesions: Images | None = None
    """Normal test images with an inserted lesion."""
    masks: NDArray[np.bool_] | None = None
    """Pixels of the inserted lesions, (N, S, S)."""

    def split(self, seed: int) -> tuple[RawBatch, RawBatch]:
        """Split into training and held-out images without separating near-duplicates."""
        groups = near_duplicates(self.train)
        sizes = np.bincount(groups)
        small = np.random.default_rng(seed).permutation(np.flatnonzero(sizes <= LARGEST_GROUP))
        held = small[np.cumsum(sizes[small]) <= min(HELD_OUT, len(self.train) // 4)]
        mask = np.isin(groups, held)
        return image_batch(self.train[~mask]), image_batch(self.train[mask])


def prepared(images: Iterable[NDArray[np.uint8]], size: int) -> Images:
    """Crop and resize 8-bit images (H, W) as a model of this size reads them, (N, 1, S, S)."""
    return np.stack([crop_and_resize(image.astype(np.uint16) * 257, size, 1) for image in images])


def load_xray(folder: Path, stride: int) -> Task:
    """Load the X-ray task: PneumoniaMNIST."""
    data, size = np.load(folder / "pneumoniamnist.npz"), SIZES[XRAY]
    train, test = (prepared(data[name], size) for name in ("train_images", "test_images"))
    labels = data["test_labels"].ravel() == 1
    return Task(SIZES[XRAY], train[::stride], test[::stride], labels[::stride])


def load_mri(folder: Path, stride: int) -> Task:
    """Load the MRI task, with lesions inserted into normal test slices."""
    parts = ("train_normal", "test_normal", "test_abnormal")
    train, normal, tumour = (
        read_folder(folder / "mri" / part, SIZES[MRI])[::stride] for part in parts
    )
    anomaly = np.repeat([False, True], [len(normal), len(tumour)])
    chosen = np.random.default_rng(LESION_SEED).integers(len(normal), size=LESIONS // stride)
    lesions, masks, _ = insert_lesions(normal[chosen, 0], LESION_SEED)
    test = np.concatenate([normal, tumour])
    return Task(SIZES[MRI], train, test, anomaly, lesions[:, None], masks)


def read_folder(folder: Path, size: int) -> Images:
    """Read the JPEG images of a folder as a model of this size does, (N, 1, S, S)."""
    files = sorted(folder.glob("*.jpg"))
    images = [image for file in files for image in read_file(file, DecodeOptions())]
    return np.stack(
        [
            crop_and_resize(image.pixels, size, 1)
            for image in images
            if isinstance(image, DecodedImage)
        ]
    )


def standardised(images: Images) -> Images:
    """Standardise each image by its own mean and standard deviation; return (N, F)."""
    layout = ImageLayout(1, images.shape[-1])
    return ImageEncoding(layout, "standardise").encode(image_batch(images))


# ---------------------------------------------------------------- the methods


class Model(Protocol):
    """A detector to measure."""

    def fit(self, task: Task) -> None:
        """Train on the training images."""

    def score(self, images: Images) -> Scores:
        """Return scores (N,); higher is more anomalous."""

    def maps(self, images: Images) -> Images | None:
        """Return anomaly maps (N, S, S), higher is more anomalous; None if there are none."""


@dataclass
class Ours:
    """Our library, with overrides of the default configuration."""

    overrides: Mapping[str, Any]
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
        config = validate_config(merged(base, self.overrides))
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
class ImageStatistic:
    """Detector without a model: the score is a simple statistic of the image."""

    value: Callable[[Images], Any]

    def fit(self, task: Task) -> None:
        """Do nothing."""

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.value(images[:, 0]), np.float64)

    def maps(self, images: Images) -> Images | None:
        """Return None: the method has no maps."""


@dataclass
class Peer:
    """A detector of another library, which reads images as rows (N, F)."""

    estimator: Any
    rows: Callable[[Images], Images] = standardised

    def fit(self, task: Task) -> None:
        """See `Model`."""
        self.estimator.fit(self.rows(task.train))

    def score(self, images: Images) -> Scores:
        """See `Model`."""
        return np.asarray(self.estimator.decision_function(self.rows(images)), np.float64)

    def maps(self, images: Images) -> Images | None:
        """Return None: the method has no maps."""


class Flatness:
    """Loss of local contrast, standardised per pixel on the training images; there is no model."""

    WINDOW, FLOOR = 7, 4e-3
    """Side of the window in pixels, and variance at which flatness is 1/2."""

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


class NearestNeighbour:
    """Distance to the nearest training image."""

    def __init__(self) -> None:
        self.index = NearestNeighbors(n_neighbors=1)

    def fit(self, x: Images) -> None:
        """Index training rows (N, F)."""
        self.index.fit(x)

    def decision_function(self, x: Images) -> Scores:
        """Return the distances (N,)."""
        return np.asarray(self.index.kneighbors(x)[0][:, 0])


class PCASimilarity:
    """Dissimilarity between an image and its PCA reconstruction: 1 − SSIM (Wang et al. 2004)."""

    COMPONENTS = 256
    """Maximum number of principal components."""

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
        reconstructed = self.pca.inverse_transform(self.pca.transform(x))
        pairs = zip(x.reshape(-1, side, side), reconstructed.reshape(-1, side, side), strict=True)
        return np.stack([1 - similarity(a, b) for a, b in pairs]).astype(np.float32)


def similarity(x: Images, y: Images, window: int = 7) -> Images:
    """Compute the structural similarity of two images (S, S) at every pixel."""

    def average(values: Images) -> Images:
        return np.asarray(uniform_filter(values, window))

    mean_x, mean_y = average(x), average(y)
    var_x, var_y = average(x * x) - mean_x**2, average(y * y) - mean_y**2
    covariance = average(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return np.asarray(luminance * (2 * covariance + 9e-4) / (var_x + var_y + 9e-4))


def raw_pixels(images: Images) -> Images:
    """Return the unchanged intensities as rows (N, F)."""
    return images.reshape(len(images), -1)


def border_brightness(images: Images) -> Images:
    """Compute the mean intensity of the outermost pixels, (N,)."""
    inside = images[:, 1:-1, 1:-1].sum((1, 2))
    count = images.shape[1] * images.shape[2] - (images.shape[1] - 2) * (images.shape[2] - 2)
    return np.asarray((images.sum((1, 2)) - inside) / count)


@dataclass(frozen=True)
class Method:
    """A method's label, and a function that makes its model from a seed."""

    name: str
    make: Callable[[int], Model]
    single_seed: bool = False
    """Whether only the first seed is run."""


def ours(name: str, **overrides: Any) -> Method:
    """Return a method: our library with these overrides."""
    return Method(name, lambda seed: Ours(overrides, seed))


def image_statistic(name: str, value: Callable[[Images], Any]) -> Method:
    """Return a method: a simple statistic of the image."""
    return Method(name, lambda _: ImageStatistic(value), single_seed=True)


NO_CORRUPTION = {"corruption": {"type": "none"}}


def contamination(epochs: int) -> Method:
    """Return a method: the score of the localisation head, which improves with the epochs."""
    return ours(
        f"ours, score: contamination, {epochs} epochs",
        model={"localization_head": True},
        score={"type": "contamination"},
        training={"epochs": epochs, "batch_size": 16, "precision": "bfloat16"},
    )


OURS = (
    ours("VAE (ours)"),
    contamination(48),
    contamination(192),
    ours("ours, score: reconstruction", score={"type": "reconstruction"}),
    ours("ours, not standardised", score={"standardise": False}),
    ours("ours, no corruption", training=NO_CORRUPTION),
    ours("ours, likelihood: structural", model={"likelihood": "structural"}),
    ours("ours, likelihood: gaussian", model={"likelihood": "gaussian"}),
    ours("ours, likelihood: laplace", model={"likelihood": "laplace"}),
    ours("ours, network: convolutional", model={"network": "convolutional"}),
    ours("ours, network: residual", model={"network": "residual"}),
    ours(
        "ours, convolutional, gaussian, not standardised (a plain VAE)",
        model={"network": "convolutional", "likelihood": "gaussian"},
        score={"standardise": False},
        training=NO_CORRUPTION,
    ),
    ours("ours, type: autoencoder", model={"type": "autoencoder"}),
)
PEERS = (
    image_statistic("minus the mean of the image", lambda x: -x.mean((1, 2))),
    image_statistic("minus its standard deviation", lambda x: -x.std((1, 2))),
    image_statistic("border brightness", border_brightness),
    Method("flatness, no model", lambda _: Flatness(), single_seed=True),
    Method("kNN, k = 1, raw", lambda _: Peer(NearestNeighbour(), raw_pixels), single_seed=True),
    Method("kNN, k = 1", lambda _: Peer(NearestNeighbour()), single_seed=True),
    Method("PCA 256, structural similarity", PCASimilarity, single_seed=True),
    Method(
        "PyOD AutoEncoder",
        lambda seed: Peer(pyod("auto_encoder.AutoEncoder", random_state=seed, verbose=0)),
    ),
)
METHODS = (*OURS, *PEERS)
SHORT_METHODS = (
    "VAE (ours)",
    "ours, score: contamination, 48 epochs",
    *(method.name for method in PEERS[:7]),
)


# ---------------------------------------------------------------- the measurements


def measure(model: Model, task: Task) -> Metrics:
    """Measure how well a model ranks test images and locates lesions, and its CPU-seconds."""
    _, fit = cpu_seconds(lambda: model.fit(task))
    scores, score = cpu_seconds(lambda: model.score(task.test))
    metrics = {
        "auroc": float(roc_auc_score(task.anomaly, scores)),
        "average_precision": float(average_precision_score(task.anomaly, scores)),
        "fit_seconds": fit,
        "score_seconds": score,
    }
    if task.lesions is None or task.masks is None:
        return metrics
    return metrics | _measure_lesions(model, task.lesions, task.masks, scores[~task.anomaly])


def _measure_lesions(
    model: Model, lesions: Images, masks: NDArray[np.bool_], normal: Scores
) -> Metrics:
    """Measure the detection of images with lesions, and of lesion pixels among all pixels."""
    scores = np.concatenate([normal, model.score(lesions)])
    labels = np.repeat([False, True], [len(normal), len(lesions)])
    metrics = {"lesion_auroc": float(roc_auc_score(labels, scores))}
    maps = model.maps(lesions)
    if maps is not None:
        smoothed_maps = smoothed(maps).ravel()
        metrics["pixel_ap"] = float(average_precision_score(masks.ravel(), smoothed_maps))
        metrics["pixel_auroc"] = float(roc_auc_score(masks.ravel(), smoothed_maps))
    return metrics


# ---------------------------------------------------------------- the run

KEYS = ("method", "task", "seed")
RANKING_COLUMNS = {
    "auroc": Column("AUROC"),
    "average_precision": Column("average precision"),
    "fit_seconds": Column("fit, CPU-s", ".0f", show_deviation=False),
    "score_seconds": Column("score, CPU-s", ".2f", show_deviation=False),
}
LESION_COLUMNS = {
    "lesion_auroc": Column("image AUROC"),
    "pixel_ap": Column("pixel average precision"),
    "pixel_auroc": Column("pixel AUROC"),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    folder, stride = options.data_root(), SHORT_STRIDE if options.short else 1
    ledger = Ledger(options.result_path("scans.csv"), KEYS)

    @cache
    def task(name: str) -> Task:
        return {XRAY: load_xray, MRI: load_mri}[name](folder, stride)

    for method, name, seed in _plan(options):
        if (key := (method.name, name, seed)) not in ledger:
            ledger.add(key, measure(method.make(seed), task(name)))
    tables = _report(ledger.rows)
    options.result_path("scans.md").write_text(tables, encoding="utf-8")
    print(f"\n{tables}")


def _plan(options: Options) -> Iterator[tuple[Method, str, int]]:
    """Yield every method and task, one seed after the other."""
    wanted = [method for method in METHODS if options.wants(method.name)]
    if options.short:
        wanted = [method for method in wanted if method.name in SHORT_METHODS]
    for seed in range(1 if options.short else options.seeds):
        for method in wanted:
            if seed == 0 or not method.single_seed:
                yield from ((method, name, seed) for name in SIZES)


def _report(rows: pd.DataFrame) -> str:
    order = {method.name: index for index, method in enumerate(METHODS)}
    rows = rows.sort_values("method", key=lambda names: names.map(order), kind="stable")
    parts = [
        f"{name}\n\n{summary_table(rows[rows['task'] == name], 'method', RANKING_COLUMNS)}\n"
        for name in SIZES
    ]
    lesions = rows[rows["task"] == MRI].dropna(subset=["lesion_auroc"])
    parts.append(f"Inserted lesions\n\n{summary_table(lesions, 'method', LESION_COLUMNS)}\n")
    return "".join([*parts, environment()])
