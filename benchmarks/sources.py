"""Measure whether images from another source are told, by each image and by the watch.

The default model of MRI slices, 64×64, is fitted and calibrated on normal slices, split by groups
of near-duplicates. The 164 fresh normal slices of the test set are then scored as they are and as
another source might deliver them: at another resolution, compressed, smoothed, sharpened, with
noise or with another range of intensities. A change is made to the stored image, before it is
resized.

"Flagged" is the false positive rate at alpha 0.05; "told" is the share of images that
``unusual_input`` reports at 0.01; "watch" is the number of images after which the status of the
guarantee is doubtful or broken, if the images of the source come one after the other in random
order, the median of `ORDERS` orders; inf if fewer than half of the orders come to this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from anomaly_vae import ImageVAEDetector
from anomaly_vae.scoring.detector import Detections
from benchmarks.common import Column, Ledger, Options, environment, summary_table
from benchmarks.duplicates import near_duplicates
from benchmarks.unusual import FAULTS, SIZES, Fault, Pixels, blurred, encoded, load_sets, noisy

ALPHA, UNUSUAL_ALPHA = 0.05, 0.01
KIND = "MRI"
CALIBRATION, LARGEST_GROUP, PER_GROUP = 0.4, 60, 3
"""Share of the groups of near-duplicates that calibrate, size above which a group only trains, and
most images of a group that calibrate."""
OPTIONS: dict[str, Any] = {"calibration_fraction": 0.15}
"""Share that the fit holds out for a first threshold, enough for the test of unusual input."""
ORDERS, STEP = 20, 4
"""Number of random orders, and number of images between two looks at the watch."""


def _sharpened(image: Pixels, _: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.UnsharpMask(3, 150, 0)))


def _other_scanner(image: Pixels, rng: np.random.Generator) -> Pixels:
    for name in ("half of the resolution", "gamma 2", "JPEG of quality 20"):
        image = SOURCES[name](image, rng)
    return image


def _smaller(factor: float) -> Fault:
    def apply(image: Pixels, _: np.random.Generator) -> Pixels:
        size = [max(1, round(side * factor)) for side in image.shape[::-1]]
        return np.asarray(Image.fromarray(image).resize((size[0], size[1])))

    return apply


SOURCES: Mapping[str, Fault] = {
    "the same source": FAULTS["fresh normals"],
    "half of the resolution": _smaller(0.5),
    "48 pixels wide": lambda image, rng: _smaller(48 / image.shape[1])(image, rng),
    "32 pixels wide": lambda image, rng: _smaller(32 / image.shape[1])(image, rng),
    "blur, 1% of the width": blurred(0.01),
    "blur, 2% of the width": FAULTS["blur, 2% of the width"],
    "sharpened": _sharpened,
    "noise of deviation 10 added": noisy(10),
    "noise of deviation 30 added": FAULTS["noise of deviation 30 added"],
    "JPEG of quality 20": FAULTS["JPEG of quality 20"],
    "JPEG of quality 5": FAULTS["JPEG of quality 5"],
    "gamma 0.5": FAULTS["gamma 0.5"],
    "gamma 2": FAULTS["gamma 2"],
    "half the range of intensities": FAULTS["half the range of intensities"],
    "clipped to 30-180": FAULTS["clipped to 30-180"],
    "16 grey values": FAULTS["16 grey values"],
    "half of the resolution, gamma 2, JPEG 20": _other_scanner,
}
"""Change of the stored 8-bit image, by name."""


def fitted(images: list[Pixels], seed: int) -> ImageVAEDetector:
    """Fit and calibrate the default model on a random split of normal images by groups."""
    size = SIZES[KIND]
    rows = encoded(images, size).reshape(-1, 1, size, size)
    groups = near_duplicates(rows.clip(0, 1))
    rng, sizes = np.random.default_rng(seed), np.bincount(groups)
    chosen = (rng.random(len(sizes)) < CALIBRATION) & (sizes <= LARGEST_GROUP)
    train = [image for image, group in zip(images, groups, strict=True) if not chosen[group]]
    calibration, seen = [], np.zeros(len(sizes), int)
    for image, group in zip(images, groups, strict=True):
        if chosen[group] and seen[group] < PER_GROUP:
            calibration.append(image)
        seen[group] += 1
    detector = ImageVAEDetector(
        size=size, alpha=ALPHA, unusual_alpha=UNUSUAL_ALPHA, random_state=seed, **OPTIONS
    )
    return detector.fit(train).calibrate(calibration)


def measure(detector: ImageVAEDetector, images: list[Pixels]) -> dict[str, float]:
    """Measure how images are flagged and told, and when the watch tells them."""
    bundle = detector.bundle_
    found = bundle.detector.detect(detector._batch(images))
    unusual = np.zeros(len(images)) if found.unusual_input is None else found.unusual_input
    told = [reason is not None for reason in unusual]
    rng = np.random.default_rng(0)
    after = [_told_after(detector, found, rng.permutation(len(images))) for _ in range(ORDERS)]
    return {
        "flagged": float(found.is_anomaly.mean()),
        "told": float(np.mean(told)),
        "watch": float(np.median(after)),
    }


def _told_after(detector: ImageVAEDetector, found: Detections, order: NDArray[np.intp]) -> float:
    """Return the number of images after which the watch tells the source; infinite if never."""
    monitor = detector.bundle_.monitor
    for count in range(STEP, len(order) + 1, STEP):
        rows = order[:count]
        counts = monitor.count(found.score[rows], found.is_anomaly[rows], None)
        if monitor.report(np.array([counts])).status in {"doubtful", "broken"}:
            return count
    return np.inf


COLUMNS = {
    "flagged": Column("flagged"),
    "told": Column("told"),
    "watch": Column("watch, images", ".0f", show_deviation=False),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the table."""
    ledger = Ledger(options.result_path("sources.csv"), ("source", "seed"))
    images = load_sets(options.data_root(), 3 if options.short else 1)[KIND]
    for seed in range(options.seeds):
        wanted = [name for name in SOURCES if (name, seed) not in ledger]
        detector = fitted(images.train, seed) if wanted else None
        for name in wanted:
            assert detector is not None
            rng = np.random.default_rng(seed)
            changed = [SOURCES[name](image, rng) for image in images.fresh]
            ledger.add((name, seed), measure(detector, changed))
    table = f"{summary_table(ledger.rows, 'source', COLUMNS)}\n{environment()}"
    options.result_path("sources.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")
