"""Measure the test for input that is unlike the training data.

Images: MRI slices at 64×64, X-rays at 32×32, and magnetic tiles at 64×64. The test learns from
normal training images, is calibrated on others, and is applied to fresh normal images, to the same
images with a fault, and to images of the other sets. A fault is put into the image as it is stored,
before it is resized. The test reads no model, so none is trained. MRI slices come in groups of
near-duplicates; the fresh ones belong to other groups than those learnt from.

Tables: a model of 20,000 card transactions is applied to fresh transactions, and to the same rows
with values removed, exchanged or replaced.

Rates are the share of images or rows that are reported at alpha 0.01.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from anomaly_vae import TabularVAEDetector
from anomaly_vae.images.decoding import read_file
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.pixels import DecodedImage, DecodeOptions
from anomaly_vae.images.schema import image_batch
from anomaly_vae.images.unusual.typicality import ImageTypicality
from anomaly_vae.scoring.unusual import UnusualTest
from benchmarks.common import (
    Column,
    Ledger,
    Options,
    cpu_seconds,
    environment,
    expected_rate_range,
    summary_table,
)
from benchmarks.duplicates import near_duplicates
from benchmarks.scans import prepared

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]
Fault = Callable[[Pixels, np.random.Generator], Pixels]

ALPHA = 0.01
SIZES = {"MRI": 64, "X-ray": 32, "tiles": 64}
"""Side of the images of each set, in pixels."""
CALIBRATION, HELD_OUT = 0.45, 0.15
"""Shares of the groups of near-duplicates that calibrate, and that are held out to learn."""
LARGEST_GROUP, PER_GROUP = 60, 3
"""Size above which a group is only learnt from, and most images of a group that calibrate, as many
as there are of a group in the MRI slices' test set."""
TABLE_ROWS, FRESH_ROWS = 20_000, 4_000
"""Number of transactions to fit and calibrate, and of fresh ones."""
NUMBERS = (
    "TX_AMOUNT",
    *(f"CUSTOMER_ID_{of}_{d}DAY_WINDOW" for of in ("NB_TX", "AVG_AMOUNT") for d in (1, 7, 30)),
    *(f"TERMINAL_ID_NB_TX_{d}DAY_WINDOW" for d in (1, 7, 30)),
)
NOTHING = np.zeros(0)


# ---------------------------------------------------------------- faults


def _blank(turns: int, value: int | None) -> Fault:
    """Return a fault that gives one half a value; None for the mean of the image."""

    def apply(image: Pixels, _: np.random.Generator) -> Pixels:
        sideways = np.rot90(image, turns).copy()
        sideways[: len(sideways) // 2] = int(image.mean()) if value is None else value
        return np.rot90(sideways, -turns)

    return apply


def blurred(share: float) -> Fault:
    """Return a fault that blurs by a share of the width."""
    return lambda image, _: np.asarray(
        Image.fromarray(image).filter(ImageFilter.GaussianBlur(share * image.shape[1]))
    )


def _resolution(factor: float) -> Fault:
    def apply(image: Pixels, _: np.random.Generator) -> Pixels:
        height, width = image.shape
        size = max(1, round(width * factor)), max(1, round(height * factor))
        small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))

    return apply


def noisy(deviation: float) -> Fault:
    """Return a fault that adds normal noise."""
    return lambda image, rng: _clipped(image + rng.normal(0, deviation, image.shape))


def _jpeg(quality: int) -> Fault:
    def apply(image: Pixels, _: np.random.Generator) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("L"))

    return apply


def _clipped(image: NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


FAULTS: Mapping[str, Fault] = {
    "fresh normals": lambda image, _: image,
    "white noise": lambda image, rng: rng.integers(0, 256, image.shape).astype(np.uint8),
    "left half black": _blank(1, 0),
    "top half black": _blank(0, 0),
    "right half white": _blank(3, 255),
    "bottom half grey": _blank(2, None),
    "blur, 5% of the width": blurred(0.05),
    "blur, 2% of the width": blurred(0.02),
    "turned left by 90°": lambda image, _: np.rot90(image),
    "turned right by 90°": lambda image, _: np.rot90(image, 3),
    "turned by 180°": lambda image, _: image[::-1, ::-1],
    "upside down": lambda image, _: image[::-1],
    "noise of deviation 30 added": noisy(30),
    "inverted": lambda image, _: 255 - image,
    "a quarter of the resolution": _resolution(0.25),
    "an eighth of the resolution": _resolution(0.125),
    "JPEG of quality 5": _jpeg(5),
    "JPEG of quality 20": _jpeg(20),
    "gamma 0.5": lambda image, _: _clipped(255 * (image / 255) ** 0.5),
    "gamma 2": lambda image, _: _clipped(255 * (image / 255) ** 2),
    "half the range of intensities": lambda image, _: image // 2,
    "clipped to 30-180": lambda image, _: _clipped((np.clip(image, 30, 180) - 30.0) * 1.7),
    "16 grey values": lambda image, _: image // 16 * 16,
}
"""Change of the stored 8-bit image, by name."""


# ---------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class Set:
    """Stored images of one kind: normal ones to learn from and fresh normal ones."""

    train: list[Pixels]
    fresh: list[Pixels]


def load_sets(folder: Path, stride: int) -> dict[str, Set]:
    """Load every ``stride``-th image of the three sets."""
    xray = np.load(folder / "pneumoniamnist.npz")
    normal = xray["val_images"][xray["val_labels"].ravel() == 0]
    sets = {
        "MRI": Set(_read(folder / "mri/train_normal"), _read(folder / "mri/test_normal")),
        "X-ray": Set(list(xray["train_images"]), list(normal)),
        "tiles": Set(_read(folder / "tiles/train/good"), _read(folder / "tiles/test/good")),
    }
    return {name: Set(s.train[::stride], s.fresh[::stride]) for name, s in sets.items()}


def _read(folder: Path) -> list[Pixels]:
    """Read the grey values of all images of a folder."""
    found = (next(iter(read_file(path, DecodeOptions()))) for path in sorted(folder.iterdir()))
    return [_grey(image.pixels) for image in found if isinstance(image, DecodedImage)]


def _grey(pixels: NDArray[np.uint16]) -> Pixels:
    values = pixels / 257.0
    return _clipped(values @ (0.299, 0.587, 0.114) if values.ndim == 3 else values)


def encoded(images: list[Pixels], size: int) -> Rows:
    """Prepare and encode images as a model of this size reads them."""
    return _encoding(size).encode(image_batch(prepared(images, size)))


def _encoding(size: int) -> ImageEncoding:
    return ImageEncoding(ImageLayout(1, size), "standardise")


def fitted(x: Rows, groups: NDArray[np.intp], size: int, seed: int) -> UnusualTest:
    """Fit and calibrate the test on a random split of normal images (N, F) by groups (N,)."""
    rng, sizes = np.random.default_rng(seed), np.bincount(groups)
    part = np.digitize(rng.random(len(sizes)), np.cumsum((HELD_OUT, CALIBRATION)))
    part[sizes > LARGEST_GROUP] = 2
    held, calibration, train = (np.flatnonzero(part[groups] == i) for i in range(3))
    calibration = _few_of_each(rng.permutation(calibration), groups)
    learnt = ImageTypicality.fit(_encoding(size), x[train], x[held], NOTHING, NOTHING)
    return UnusualTest.fit(
        learnt, max(ALPHA, 1 / (len(calibration) + 1)), NOTHING, NOTHING, x[calibration]
    )


def _few_of_each(images: NDArray[np.intp], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return at most `PER_GROUP` of the images of each group."""
    table = pd.Series(images).groupby(groups[images]).head(PER_GROUP)
    return table.to_numpy()


def inputs(sets: Mapping[str, Set], kind: str) -> Iterator[tuple[str, Rows]]:
    """Yield the fresh images of a kind with each fault, and those of the other kinds."""
    size, rng = SIZES[kind], np.random.default_rng(0)
    for name, fault in FAULTS.items():
        yield name, encoded([fault(image, rng) for image in sets[kind].fresh], size)
    for other in sets.keys() - {kind}:
        yield f"images of {other}", encoded(sets[other].fresh, size)


def _measure_images(options: Options, ledger: Ledger) -> None:
    sets = load_sets(options.data_root(), 3 if options.short else 1)
    for kind in sets:
        if not options.wants(kind):
            continue
        x = encoded(sets[kind].train, SIZES[kind])
        groups = near_duplicates(x.reshape(-1, 1, SIZES[kind], SIZES[kind]).clip(0, 1))
        tests = {seed: fitted(x, groups, SIZES[kind], seed) for seed in range(options.seeds)}
        for name, rows in inputs(sets, kind):
            for seed, test in tests.items():
                if (kind, name, seed) in ledger:
                    continue
                reasons, seconds = cpu_seconds(
                    lambda t=test, r=rows: t.reasons(NOTHING, NOTHING, r)
                )
                ledger.add((kind, name, seed), _rates(reasons) | {"ms": 1e3 * seconds / len(rows)})
                print("  ", pd.Series(reasons).value_counts(dropna=False).head(3).to_dict())
        n = len(tests[0].calibration.scores)
        low, high = expected_rate_range(tests[0].alpha, n, len(sets[kind].fresh))
        print(f"{kind}: {n} calibration images; expected on fresh ones {low:.3f} to {high:.3f}\n")


def _rates(reasons: NDArray[np.object_]) -> dict[str, float]:
    return {"reported": float(np.mean([reason is not None for reason in reasons]))}


# ---------------------------------------------------------------- tables


def _table_inputs(
    fresh: pd.DataFrame, rng: np.random.Generator
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield fresh rows, and the same rows with each fault."""
    yield "fresh normals", fresh
    for count in (1, 3, 5, len(NUMBERS)):
        hidden = np.argsort(rng.random(fresh.shape), axis=1) < count
        yield f"{count} of {len(NUMBERS)} values missing", fresh.mask(hidden)
    median = fresh.median()
    yield "the median in every column", pd.DataFrame([median] * 10)
    yield "zero in every column", pd.DataFrame(0.0, fresh.index[:10], fresh.columns)
    exchanged = {name: rng.permutation(fresh[name].to_numpy()) for name in fresh}
    yield "values of other rows in every column", pd.DataFrame(exchanged)
    yield "all values × 100", fresh * 100
    yield "amounts × 1.5", fresh.assign(TX_AMOUNT=fresh["TX_AMOUNT"] * 1.5)


def _measure_table(options: Options, ledger: Ledger) -> None:
    if not options.wants("transactions"):
        return
    frame = pd.read_parquet(options.data_folder("fraud") / "transactions-2018-07.parquet")
    frame = frame[frame["TX_FRAUD"] == 0][list(NUMBERS)].astype(float)
    for seed in range(options.seeds):
        rows = frame.sample(TABLE_ROWS + FRESH_ROWS, random_state=seed)
        fit, fresh = rows[:TABLE_ROWS], rows[TABLE_ROWS:]
        detector = TabularVAEDetector(
            preset="fast", epochs=10, random_state=seed, calibration_fraction=0.2
        ).fit(fit)
        for name, changed in _table_inputs(fresh, np.random.default_rng(seed)):
            reasons, seconds = cpu_seconds(partial(detector.unusual_input, changed))
            flagged = {"flagged": float((detector.p_values(changed) <= ALPHA).mean())}
            cost = {"ms": 1e3 * seconds / len(changed)}
            ledger.add(("transactions", name, seed), _rates(reasons) | cost | flagged)


# ---------------------------------------------------------------- running


def run(options: Options) -> None:
    """Measure all sets and print a table for each."""
    ledger = Ledger(options.result_path("unusual.csv"), ("set", "input", "seed"))
    _measure_images(options, ledger)
    _measure_table(options, ledger)
    print(environment())
    for kind, rows in ledger.rows.groupby("set", sort=False):
        columns = {"reported": Column("reported"), "ms": Column("ms", ".2f", False)}
        if kind == "transactions":
            columns = {"reported": Column("reported"), "flagged": Column("flagged at 0.01")}
        print(f"\n{kind}\n\n{summary_table(rows, 'input', columns)}")
