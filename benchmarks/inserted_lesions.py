"""Compare scores of the localisation head on slices that are held out of its training.

The head trains alone, without a VAE, on the training slices of the MRI task of `scans`. About 200
of them are held out, others for each seed. Into these are inserted lesions of the generator of
`scans`, with other seeds, and three kinds that are made by other code than that of the training:
cracks one or two pixels wide, patches of other slices that are blended in by Poisson's equation,
and smooth bumps. The image AUROC compares the slices with an insertion to the slices as they are.
No slice of the test folders is read, so that the figures may choose among designs.

The log-odds of each trained head are kept in the results folder, so that another score costs no
training; delete them (``heads/``) after a change of the head or of what it is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dstn, idstn
from scipy.ndimage import gaussian_filter, maximum_filter
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from anomaly_vae.config.training import AugmentationConfig
from anomaly_vae.export.image_scores import (
    EXCEEDING,
    GAIN,
    LEVEL_QUANTILE,
    REACH,
    RELATIVE,
    SMOOTHING,
    SYMMETRY,
)
from anomaly_vae.images.encoding import IMAGE, ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import smoothed
from anomaly_vae.images.schema import image_batch
from anomaly_vae.models.convolutional import Geometry
from anomaly_vae.models.hierarchical import LEVELS
from anomaly_vae.models.localization_head import LocalizationHead
from anomaly_vae.simulation.scans import insert_lesions
from anomaly_vae.training.augmentation import Insert, augmented
from anomaly_vae.training.insertion import synthetic
from anomaly_vae.training.insertion.anomalies import inserted as inserted_anomalies
from anomaly_vae.training.trainer import LEARNING_RATE_WARMUP, Moments, flatten_weights
from benchmarks.common import Column, Ledger, Options, cpu_seconds, environment, summary_table
from benchmarks.inserted_defects import with_crack
from benchmarks.scans import MRI, SHORT_STRIDE, SIZES, Images, Task, read_folder

Floats = NDArray[np.floating[Any]]
Masks = NDArray[np.bool_]
SIZE = SIZES[MRI]
LESION_SEEDS = (100, 101, 102)
"""Seeds of the lesions; none is that of the test lesions."""
TISSUE = 0.2
"""Least brightness of tissue, as a share of the brightest twentieth of a slice."""
MIN_PIXELS = 12
"""Least number of pixels of an insertion."""
BUMP_WIDTH, BUMP_HEIGHT = (0.03, 0.08), (0.7, 1.6)
"""Standard deviations of a bump relative to the side, and height in those of the intensities."""
PATCH_SIDE = (6, 16)
"""Minimum and maximum side of a patch, in pixels."""
CHANGED = 0.25
"""Change from which on a pixel belongs to a patch, in standard deviations of the slice."""
STEPS, SHORT_STEPS = 1600, 40
BATCH, RATE, DECAY, WIDTH, MAX_NORM = 16, 4e-3, 1e-5, 16, 5.0
"""Images of a step before each is copied, highest learning rate, weight decay, width of the
network and greatest norm of a gradient."""
CHUNK = 64
"""Number of slices whose log-odds are computed at a time."""


# ---------------------------------------------------------------- what is inserted

Insertion = Callable[[Floats, Images, np.random.Generator], tuple[Floats, Masks]]
"""Function of a slice (S, S), all slices and a generator: the changed slice, and the mask."""


def tissue(image: Floats) -> Masks:
    """Return the pixels of a slice that are not air."""
    smooth = gaussian_filter(image, 1.0)
    return np.asarray(smooth > TISSUE * np.percentile(smooth, 95))


def cracked(image: Floats, others: Images, rng: np.random.Generator) -> tuple[Floats, Masks]:
    """Draw a crack into the tissue of a slice."""
    del others
    changed, mask = with_crack(image, rng)
    inside = tissue(image)
    return np.where(inside, changed, image), mask & inside


def bumped(image: Floats, others: Images, rng: np.random.Generator) -> tuple[Floats, Masks]:
    """Add a smooth bright or dark bump to a slice."""
    del others
    inside, side = tissue(image), len(image)
    offset = np.moveaxis(
        np.indices(image.shape) - rng.choice(np.argwhere(inside))[:, None, None], 0, -1
    )
    angle, widths = rng.uniform(0, np.pi), rng.uniform(*BUMP_WIDTH, 2) * side
    turned = offset @ [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    bump = np.exp(-0.5 * ((turned / widths) ** 2).sum(-1)) * inside
    height = rng.uniform(*BUMP_HEIGHT) * image.std() * rng.choice([-1, 1])
    return np.clip(image + bump * height, 0, 1), bump > 0.5


def patched(image: Floats, others: Images, rng: np.random.Generator) -> tuple[Floats, Masks]:
    """Blend a patch of another slice into a slice: its gradients, between the slice's pixels."""
    other = others[rng.integers(len(others))].astype(float)
    shape = rng.integers(*PATCH_SIDE, 2)
    here, there = (_window(of, shape, rng) for of in (image, other))
    patch = other[there][1:-1, 1:-1] + _continued(image[here] - other[there])
    changed = image.copy()
    changed[here][1:-1, 1:-1] = np.clip(patch, 0, 1)
    changed = np.where(tissue(image), changed, image)
    return changed, gaussian_filter(np.abs(changed - image), 1.0) > CHANGED * image.std()


def _window(
    image: Floats, shape: NDArray[np.intp], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Return a rectangle of ``shape``, with one pixel around it, centred on tissue."""
    centre = rng.choice(np.argwhere(tissue(image)))
    first = np.clip(centre - shape // 2 - 1, 0, np.array(image.shape) - shape - 2)
    rows, columns = (slice(int(a), int(a + n + 2)) for a, n in zip(first, shape, strict=True))
    return rows, columns


def _continued(border: Floats) -> Floats:
    """Solve Laplace's equation inside of a border (h + 2, w + 2), (h, w)."""
    height, width = np.array(border.shape) - 2
    flux = np.zeros((height, width))
    flux[0] += border[0, 1:-1]
    flux[-1] += border[-1, 1:-1]
    flux[:, 0] += border[1:-1, 0]
    flux[:, -1] += border[1:-1, -1]
    down, across = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (height, width))
    return np.asarray(idstn(dstn(flux, 1) / (down[:, None] + across), 1))


KINDS: dict[str, Insertion] = {"crack": cracked, "patch": patched, "bump": bumped}


def inserted(images: Images) -> dict[str, tuple[Images, Masks]]:
    """Return slices (N, S, S) with an insertion, and the masks, by kind."""
    lesions = [insert_lesions(images, seed)[:2] for seed in LESION_SEEDS]
    pixels, masks = (np.concatenate(parts) for parts in zip(*lesions, strict=True))
    made = {"lesion": (pixels, masks)}
    for kind, insert in KINDS.items():
        pairs = [_one(insert, images, number) for number in range(len(images))]
        pixels, masks = (np.stack(parts) for parts in zip(*pairs, strict=True))
        made[kind] = (pixels.astype(np.float32), masks)
    return made


def _one(insert: Insertion, images: Images, number: int) -> tuple[Floats, Masks]:
    """Insert into one slice, again until enough pixels are changed."""
    rng = np.random.default_rng(number)
    while True:
        changed, mask = insert(images[number].astype(float), images, rng)
        if mask.sum() >= MIN_PIXELS:
            return changed, mask


# ---------------------------------------------------------------- the heads


@dataclass(frozen=True)
class Heads:
    """The log-odds of a trained head, of held-out slices with and without insertions."""

    normal: Floats
    """(N, 2, S, S): log-odds of the slices, and those of the mirrored slices, mirrored back."""
    changed: Mapping[str, Floats]
    """(M, 2, S, S) by kind of the insertion."""
    masks: Mapping[str, Masks]
    """(M, S, S) by kind of the insertion."""
    seconds: float
    """CPU time of the training, in seconds."""


def unvaried(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Insert anomalies into two copies of each image, which are not varied first."""
    return inserted_anomalies(images.repeat(2, 1, 1, 1), generator)


USUAL, ONE_SIDED = "as it is", "head not symmetric"
"""Training of the library, and the same of a head that does not see the opposite side."""
TRAININGS: dict[str, Insert] = {
    USUAL: partial(synthetic, standardise=True),
    ONE_SIDED: partial(synthetic, standardise=True),
    "images not varied": unvaried,
}
"""What makes the images and labels that a head is trained on."""


def trained(images: Tensor, training: str, seed: int, steps: int) -> LocalizationHead:
    """Train a head on encoded images (N, 1, S, S) as a fit does, without a VAE."""
    torch.manual_seed(seed)
    geometry, insert = Geometry(ImageLayout(1, SIZE), WIDTH, LEVELS), TRAININGS[training]
    head = LocalizationHead(geometry, symmetric=training != ONE_SIDED)
    head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in a fit
    weights, gradient = flatten_weights(list(head.parameters()))
    moments, generator = Moments.of(weights), torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        changed, labels = insert(augmented(batch, AugmentationConfig(), generator), generator)
        with torch.autocast("cpu", torch.bfloat16):
            log_odds = head(changed.flatten(1))
        head.zero_grad(set_to_none=False)
        F.binary_cross_entropy_with_logits(log_odds.float(), labels.flatten(1)).backward()
        gradient.mul_((MAX_NORM / torch.linalg.vector_norm(gradient)).clamp_max(1))
        moments.step(weights, gradient, RATE * _schedule(step, steps), DECAY)
    return head.eval()


def _schedule(step: int, steps: int) -> float:
    """Return the learning rate of a step, which rises and falls, relative to the highest."""
    warm = LEARNING_RATE_WARMUP * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


@torch.no_grad()
def log_odds(head: LocalizationHead, images: Images) -> Floats:
    """Return the log-odds (N, 2, S, S) of slices (N, S, S) and of their mirror images."""
    encoding = ImageEncoding(ImageLayout(1, SIZE), "standardise")
    x = torch.from_numpy(encoding.encode(image_batch(images[:, None]))).view(-1, 1, SIZE, SIZE)
    maps = [
        torch.stack([_maps(head, part), _maps(head, part.flip(-1)).flip(-1)], 1)
        for part in x.split(CHUNK)
    ]
    return torch.cat(maps).numpy()


def _maps(head: LocalizationHead, images: Tensor) -> Tensor:
    """Return the log-odds (N, S, S) of encoded images (N, 1, S, S)."""
    found: Tensor = head(images.flatten(1))
    return found.view(-1, SIZE, SIZE)


def load(folder: Path, training: str, seed: int, kept: Path, short: bool) -> Heads:
    """Train the head of a seed, or read its log-odds again, and insert into the held-out slices."""
    slices = read_folder(folder / "mri" / "train_normal", SIZE)[:: SHORT_STRIDE if short else 1]
    none = np.zeros(0, bool)
    train, held = Task(SIZE, slices, slices[:0], none).split(seed)
    normal = np.asarray(held.values[IMAGE], np.float32).reshape(-1, SIZE, SIZE)
    made = inserted(normal)
    if not kept.exists():
        encoded = ImageEncoding(ImageLayout(1, SIZE), "standardise").encode(train)
        x = torch.from_numpy(encoded).view(-1, 1, SIZE, SIZE)
        steps = SHORT_STEPS if short else STEPS
        head, seconds = cpu_seconds(lambda: trained(x, training, seed, steps))
        found: Any = {kind: log_odds(head, images) for kind, (images, _) in made.items()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, normal=log_odds(head, normal), seconds=seconds, **found)
    with np.load(kept) as file:
        changed = {kind: file[kind] for kind in made}
        masks = {kind: mask for kind, (_, mask) in made.items()}
        return Heads(file["normal"], changed, masks, float(file["seconds"]))


# ---------------------------------------------------------------- the scores


@dataclass(frozen=True)
class Score:
    """How log-odds of pixels become a score; the defaults are those of the library."""

    mirror: bool = True
    """Whether log-odds are averaged over the mirror image."""
    smoothing: float = SMOOTHING
    """Standard deviation of the blur, in pixels."""
    relative: float = RELATIVE
    """Share that is subtracted of the log-odds that a twentieth of the pixels exceed."""
    symmetry: float = SYMMETRY
    """Share that is subtracted of what exceeds it at the opposite place of the mirror image."""
    reach: float = REACH
    """Distance within which that place may be, as a fraction of the side."""
    gain: float = GAIN
    """Steepness above the level."""
    highest: int = 0
    """If positive, the image's score is the mean of its so many highest pixels."""

    def relevant(self, log_odds: Floats) -> Floats:
        """Return relative log-odds (N, S, S) of log-odds (N, 2, S, S)."""
        maps = log_odds.mean(1) if self.mirror else log_odds[:, 0]
        maps = gaussian_filter(maps, (0, self.smoothing, self.smoothing))
        usual = np.quantile(maps, 1 - EXCEEDING, axis=(1, 2), keepdims=True)
        side = 2 * round(self.reach * maps.shape[-1]) + 1
        opposite = maximum_filter(maps[:, :, ::-1], (1, side, side))
        excess = np.maximum(opposite - usual, 0)
        return np.asarray(maps - self.relative * usual - self.symmetry * excess)

    def heat(self, maps: Floats, level: float) -> Floats:
        """Return the share of each pixel in the score, (N, S, S)."""
        return np.asarray(np.logaddexp(0, self.gain * (maps - level)))

    def of_images(self, maps: Floats, level: float) -> Floats:
        """Return the scores (N,) of relative log-odds (N, S, S)."""
        if not self.highest:
            return np.asarray(self.heat(maps, level).sum((1, 2)))
        return np.asarray(np.sort(maps.reshape(len(maps), -1), 1)[:, -self.highest :].mean(1))


SCORES: dict[str, Score] = {
    "as it is": Score(),
    "without the mirror image": Score(mirror=False),
    "opposite place not compared": Score(symmetry=0.0),
    "half of its excess subtracted": Score(symmetry=SYMMETRY / 2),
    "twice of it subtracted": Score(symmetry=2 * SYMMETRY),
    "opposite place exact": Score(reach=0.0),
    "opposite place within twice the distance": Score(reach=2 * REACH),
    "steepness 1": Score(gain=1.0),
    "steepness 4": Score(gain=4.0),
    "nothing subtracted": Score(relative=0.0),
    "nothing subtracted, steepness 4": Score(relative=0.0, gain=4.0),
    "half of it subtracted": Score(relative=RELATIVE / 2),
    "not smoothed": Score(smoothing=0.0),
    "smoothed by 2 pixels": Score(smoothing=2.0),
    "highest pixel, nothing subtracted": Score(relative=0.0, highest=1),
    "30 highest pixels, nothing subtracted": Score(relative=0.0, highest=30),
}
METHODS = {f"training: {name}": (name, Score()) for name in TRAININGS if name != USUAL} | {
    name: (USUAL, score) for name, score in SCORES.items()
}
"""Training and score of each method."""


def measure(score: Score, heads: Heads) -> dict[str, float]:
    """Measure detection and localisation of each kind of insertion."""
    normal = score.relevant(heads.normal)
    level = float(np.quantile(normal, LEVEL_QUANTILE))
    usual = score.of_images(normal, level)
    metrics = {}
    for kind, log_odds in heads.changed.items():
        maps = score.relevant(log_odds)
        scores = np.concatenate([usual, score.of_images(maps, level)])
        labels = np.repeat([False, True], [len(usual), len(maps)])
        metrics[f"auroc_{kind}"] = float(roc_auc_score(labels, scores))
        pixels = smoothed(score.heat(maps, level).astype(np.float32)).ravel()
        truth = heads.masks[kind].ravel()
        metrics[f"ap_{kind}"] = float(average_precision_score(truth, pixels))
        metrics[f"pixel_auroc_{kind}"] = float(roc_auc_score(truth, pixels))
    means = {
        figure: float(np.mean([metrics[f"{figure}_{kind}"] for kind in heads.changed]))
        for figure in ("auroc", "ap")
    }
    return {**means, **metrics, "fit_seconds": heads.seconds}


COLUMNS = {
    "auroc": Column("image AUROC, mean"),
    "auroc_lesion": Column("lesions"),
    "auroc_crack": Column("cracks"),
    "auroc_patch": Column("patches"),
    "auroc_bump": Column("bumps"),
    "ap": Column("pixel average precision, mean"),
    "ap_lesion": Column("lesions"),
    "pixel_auroc_lesion": Column("pixel AUROC, lesions"),
    "fit_seconds": Column("head, CPU-s", ".0f", show_deviation=False),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the table."""
    ledger = Ledger(options.result_path("inserted_lesions.csv"), ("method", "seed"))

    @cache
    def heads(training: str, seed: int) -> Heads:
        kept = options.result_path(f"heads/{training.replace(' ', '-')}-{seed}.npz")
        return load(options.data_root(), training, seed, kept, options.short)

    for seed in range(1 if options.short else options.seeds):
        for name, (training, score) in METHODS.items():
            if options.wants(name) and (name, seed) not in ledger:
                ledger.add((name, seed), measure(score, heads(training, seed)))
    table = f"{summary_table(ledger.rows, 'method', COLUMNS)}\n{environment()}"
    options.result_path("inserted_lesions.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")
