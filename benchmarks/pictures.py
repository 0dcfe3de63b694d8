"""Measure how close pictures that a model generates are to the images that it learned from.

Normal simulated scans, MRI slices and X-rays are fitted with each upsampling of the decoder, and
larger simulated scans with the first one and one seed. All fits make half of the default number of
steps, so that three seeds take less than ten CPU-minutes. Test images are reconstructed, and as
many pictures are sampled. Each of the two sets is compared with the test images as the model
receives them:

- alike: structural similarity (Wang et al. 2004) of reconstructions to their images, and of samples
  to the test image that is most similar; 1 is equal;
- spectrum: the energy in eight rings of spatial frequency, as the mean over rings of the absolute
  difference of mean log energies, in standard deviations of the test images. 0 is equal; blur and
  grids make it larger;
- finest: the energy of frequencies from 3/8 cycles per pixel up, divided by that of the test
  images. Grids of two pixels are above 1, and blur is below;
- border: the standard deviation within the four outermost rows and columns of an image, divided by
  that of the test images. Frames and grids in the dark background are above 1.

The AUROC says whether detection got worse: of lesions in simulated scans, and of the test splits of
`scans.py`. Contact sheets of the pictures are written beside the tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.config.training import FitConfig
from anomaly_vae.generation.images import reconstruct, sample
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.images.heatmaps import png, sheet
from anomaly_vae.images.schema import ImageSchema, image_batch
from anomaly_vae.simulation.scans import simulate_scans
from anomaly_vae.training.fit import fit_bundle, prepare
from benchmarks.common import (
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    one_thread,
    summary_table,
)
from benchmarks.scans import MRI, XRAY, Task, load_mri, load_xray, prepared, similarity

Images = NDArray[np.float32]

UPSAMPLINGS = ("resize", "shuffle")
"""Upsampling layers to compare."""
SIMULATED, LARGE = "simulated scans", "simulated scans, large"
SIDES = {SIMULATED: 64, LARGE: 128}
"""Sides of simulated scans as models receive them, in pixels."""
SCANS, SCAN_SIDE = 600, 128
"""Number of simulated scans, and the side that they are drawn with, in pixels."""
STEPS = FitConfig.STEPS // 2
"""Number of steps of a fit."""
TRAINED = 0.75
"""Share of the normal simulated scans that train or validate."""
SHORT_STRIDE = 4
"""Stride of the subsample that the short form reads."""
RINGS, FINEST, BORDER = 8, 0.375, 4
"""Number of rings of frequencies, lowest of the finest frequencies in cycles per pixel, and width
of the border in pixels."""
SHOWN, COMPARED = 8, 40
"""Number of pictures in a row of a contact sheet, and of samples and images that are compared."""


# ---------------------------------------------------------------- the tasks


def load_simulated(size: int = SIDES[SIMULATED], stride: int = 1) -> Task:
    """Simulate scans, of which normal ones train and some are tested with all lesions."""
    scans = simulate_scans(SCANS // stride, seed=0, size=SCAN_SIDE)
    images = prepared(scans.images, size)
    normal, lesions = images[scans.labels == 0], images[scans.labels == 1]
    train, test = np.split(normal, [int(TRAINED * len(normal))])
    anomaly = np.repeat([False, True], [len(test), len(lesions)])
    return Task(size, train, np.concatenate([test, lesions]), anomaly)


def tasks(options: Options, stride: int) -> dict[str, Callable[[], Task]]:
    """Return functions that load the tasks."""
    root = options.data_root()
    return {
        SIMULATED: lambda: load_simulated(stride=stride),
        LARGE: lambda: load_simulated(SIDES[LARGE], stride),
        MRI: lambda: load_mri(root, stride),
        XRAY: lambda: load_xray(root, stride),
    }


# ---------------------------------------------------------------- the figures


@dataclass(frozen=True, eq=False)
class Pictures:
    """Normal test images as the model receives them, and pictures that it makes (N, S, S)."""

    given: Images
    reconstructed: Images
    sampled: Images

    @classmethod
    def of(cls, bundle: Bundle, images: Images) -> Pictures:
        """Reconstruct images (N, 1, S, S), and sample as many."""
        encoding = bundle.scorer.encoding
        assert isinstance(encoding, ImageEncoding)
        x = torch.from_numpy(encoding.encode(image_batch(images)))
        found = (
            encoding.to_images(x.numpy()),
            reconstruct(bundle, x),
            sample(bundle, len(x), seed=1),
        )
        return cls(*(np.asarray(one)[:, 0] for one in found))

    def figures(self) -> dict[str, float]:
        """Return the figures of the module's docstring."""
        return {
            f"{kind}_{name}": figure(made, self.given)
            for kind, made in (("rebuilt", self.reconstructed), ("sampled", self.sampled))
            for name, figure in FIGURES.items()
        } | {"rebuilt_alike": self.rebuilt_alike(), "sampled_alike": self.sampled_alike()}

    def rebuilt_alike(self) -> float:
        """Return the mean similarity of reconstructions to their images."""
        pairs = zip(self.given, self.reconstructed, strict=True)
        return float(np.mean([similarity(*pair).mean() for pair in pairs]))

    def sampled_alike(self) -> float:
        """Return the mean similarity of samples to the most similar of the images."""
        highest = [
            max(similarity(one, image).mean() for image in self.given[:COMPARED])
            for one in self.sampled[:COMPARED]
        ]
        return float(np.mean(highest))

    def sheet(self) -> bytes:
        """Draw a contact sheet as PNG: images, their reconstructions and samples."""
        rows = np.concatenate(
            [one[:SHOWN] for one in (self.given, self.reconstructed, self.sampled)]
        )
        return png(sheet(rows.clip(0, 1), columns=SHOWN, rows=("images", "rebuilt", "samples")))


def spectrum(made: Images, given: Images) -> float:
    """Return the distance of mean log energies in rings of frequency; see the module."""
    logs = [np.log(ring_energies(one) + 1e-8) for one in (made, given)]
    return float((abs(logs[0].mean(0) - logs[1].mean(0)) / logs[1].std(0)).mean())


def ring_energies(images: Images) -> NDArray[np.float64]:
    """Return the mean energy of images (N, S, S) in each ring of frequency, (N, RINGS)."""
    energy = _energy(images)
    ring = np.minimum(_radius(images.shape[-1]) * 2 * RINGS, RINGS - 1).astype(int)
    return np.stack([energy[:, ring == i].mean(1) for i in range(RINGS)], 1)


def finest(made: Images, given: Images) -> float:
    """Return the ratio of the energies of the finest frequencies."""
    fine = _radius(given.shape[-1]) >= FINEST
    return float(_energy(made)[:, fine].mean() / _energy(given)[:, fine].mean())


def _energy(images: Images) -> NDArray[np.float64]:
    transformed = np.fft.fft2(images - images.mean((1, 2), keepdims=True))
    return np.asarray(abs(transformed) ** 2)


def _radius(side: int) -> NDArray[np.float64]:
    """Return the larger of both frequencies of each cell of a spectrum, in cycles per pixel."""
    frequency = abs(np.fft.fftfreq(side))
    return np.asarray(np.maximum(frequency[:, None], frequency))


def border(made: Images, given: Images) -> float:
    """Return the ratio of the standard deviations within the borders of images."""
    return float(_border_spread(made) / _border_spread(given))


def _border_spread(images: Images) -> float:
    inside = np.zeros(images.shape[1:], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return float(images[:, ~inside].std(1).mean())


FIGURES: dict[str, Callable[[Images, Images], float]] = {
    "spectrum": spectrum,
    "finest": finest,
    "border": border,
}


# ---------------------------------------------------------------- the run

KEYS = ("task", "upsampling", "seed")
RESULT_COLUMNS = {
    "auroc": Column("AUROC"),
    "fit_seconds": Column("fit, CPU-s", ".0f", show_deviation=False),
    **{
        f"{kind}_{name}": Column(f"{kind}: {name}", ".2f")
        for kind in ("rebuilt", "sampled")
        for name in ("alike", *FIGURES)
    },
}


def measure(task: Task, upsampling: str, seed: int) -> tuple[dict[str, float], bytes]:
    """Fit a model; return the figures, and a contact sheet."""
    settings: dict[str, Any] = {
        "kind": "image",
        "name": "pictures",
        "data": {"path": "images", "size": task.size},
        "model": {"upsampling": upsampling},
        "training": {"seed": seed},
    }
    parts, usual = task.split(seed), validate_config(settings)
    batches = math.ceil(len(parts[0]) / usual.training.resolve(len(parts[0])).batch_size)
    config = validate_config(merged(settings, {"training": {"epochs": math.ceil(STEPS / batches)}}))
    prepared = prepare(config, ImageSchema(task.size, 1), *parts)
    with one_thread():
        fitted, seconds = cpu_seconds(lambda: fit_bundle(config, prepared, data={}))
    bundle = fitted.bundle
    scores = bundle.scorer.score(image_batch(task.test))
    pictures = Pictures.of(bundle, task.test[~task.anomaly])
    auroc = float(roc_auc_score(task.anomaly, scores))
    return {"auroc": auroc, "fit_seconds": seconds, **pictures.figures()}, pictures.sheet()


def run(options: Options) -> None:
    """Run the missing measurements, and write the table and the contact sheets."""
    ledger = Ledger(options.result_path("pictures.csv"), KEYS)
    for name, load in tasks(options, SHORT_STRIDE if options.short else 1).items():
        missing = [key for key in _plan(name, options) if key not in ledger]
        task = load() if missing else None
        for _, upsampling, seed in missing:
            assert task
            figures, drawn = measure(task, upsampling, seed)
            ledger.add((name, upsampling, seed), figures)
            path = options.result_path(f"pictures-{name.split()[-1]}-{upsampling}-{seed}.png")
            path.write_bytes(drawn)
    tables = (
        f"{name}\n\n{summary_table(rows, 'upsampling', RESULT_COLUMNS)}"
        for name, rows in ledger.rows.groupby("task", sort=False)
    )
    text = "\n".join((*tables, environment()))
    options.result_path("pictures.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _plan(name: str, options: Options) -> Iterator[tuple[str, str, int]]:
    once = options.short or name == LARGE
    upsamplings = UPSAMPLINGS[:1] if name == LARGE else UPSAMPLINGS
    wanted = [one for one in upsamplings if options.wants(f"{name}/{one}")]
    for seed in range(1 if once else options.seeds):
        yield from ((name, upsampling, seed) for upsampling in wanted)
