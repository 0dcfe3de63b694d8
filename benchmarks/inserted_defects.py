"""Compare designs for industrial pictures on defects inserted into held-out good tiles.

Every fourth good tile of the training folder is held out, and the others train. The held-out tiles
are tested as they are against copies with a crack, which is a thin random walk darker or brighter
than the tile, and copies with a patch that is brighter, darker, of another texture or from another
place (`anomaly_vae.simulation.scans.insert_lesions`). Both are inserted in source pixels. No image
of the test folder is read, so that the figures may choose among designs. The metrics are those of
the protocol ``parts``.
"""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae.simulation.scans import insert_lesions
from benchmarks.common import Column, Ledger, Options, environment, summary_table
from benchmarks.parts import (
    BACKBONE,
    GOOD,
    HEAD,
    NEAREST,
    SHORT_STRIDE,
    Method,
    Task,
    measure,
    ours,
)

Floats = NDArray[np.floating[Any]]
HELD_OUT = 4
"""Every how many-th tile is held out."""
STEPS = (5, 12)
"""Minimum and maximum number of straight pieces of a crack."""
PIECE, WIDTH = (0.03, 0.08), (0.004, 0.012)
"""Minimum and maximum length of a piece and half-width of a crack, relative to the shorter side."""
CONTRAST = (0.5, 1.5)
"""Minimum and maximum contrast of a crack, in standard deviations of the image."""
EDGE = 0.5
"""Share of a pixel from which on it belongs to a crack."""
METHODS: dict[str, Method] = {
    "backbone, stretch": BACKBONE,
    "backbone, pad": partial(BACKBONE, fit_mode="pad"),
    "backbone, crop": partial(BACKBONE, fit_mode="crop"),
    "no backbone, 64 px": ours,
    "head, 96 px": HEAD,
    **NEAREST,
}


def with_crack(image: Floats, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Draw a crack into an image (H, W) with values in [0, 1]; return it with the crack's mask."""
    unit = min(image.shape)
    half = rng.uniform(*WIDTH) * unit
    share = np.clip(half + EDGE - _distance(_walk(image.shape, rng), image.shape), 0, 1)
    change = rng.uniform(*CONTRAST) * image.std() * rng.choice([-1, 1])
    return np.clip(image + share * change, 0, 1), share > EDGE


def _walk(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Draw the corners (n, 2) of a random walk that hardly turns."""
    count = rng.integers(*STEPS)
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, count))
    lengths = rng.uniform(*PIECE, count) * min(shape)
    steps = lengths[:, None] * np.column_stack([np.sin(turns), np.cos(turns)])
    start = rng.uniform(0.15, 0.85, 2) * shape[:2]
    return np.asarray(start + np.vstack([np.zeros(2), np.cumsum(steps, 0)]))


def _distance(corners: Floats, shape: tuple[int, ...]) -> Floats:
    """Return the distance (H, W) of each pixel from a line through the corners, in pixels."""
    at = np.moveaxis(np.indices(shape), 0, -1)
    nearest = np.full(shape, np.inf)
    for start, end in pairwise(corners):
        piece = end - start
        along = np.clip((at - start) @ piece / (piece @ piece), 0, 1)
        away = np.hypot(*np.moveaxis(at - start - along[..., None] * piece, -1, 0))
        nearest = np.minimum(nearest, away)
    return nearest


def _read(tile: Path) -> NDArray[np.float32]:
    return np.asarray(Image.open(tile).convert("L"), np.float32) / np.float32(255)


def load(folder: Path, work: Path, stride: int) -> Task:
    """Write the held-out tiles with defects to ``work``, and return the task."""
    tiles = sorted((folder / "train" / GOOD).iterdir())[::stride]
    held = tiles[::HELD_OUT]
    train = [tile for tile in tiles if tile not in held]
    test, kinds = [str(tile) for tile in held], [GOOD] * len(held)
    images = [_read(tile) for tile in held]
    masks = [np.zeros(image.shape, bool) for image in images]
    for number, image in enumerate(images):
        cracked = with_crack(image, np.random.default_rng(number))
        patched, (mask,), _ = insert_lesions(image[None], number)
        for kind, pixels, where in (("crack", *cracked), ("patch", patched[0], mask)):
            path = work / f"{kind}-{number}.png"
            Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(path)
            test.append(str(path))
            kinds.append(kind)
            masks.append(where)
    return Task([str(tile) for tile in train], test, np.array(kinds), masks)


COLUMNS = {
    "auroc": Column("image AUROC"),
    "auroc_crack": Column("cracks"),
    "auroc_patch": Column("patches"),
    "pixel_auroc": Column("pixel AUROC"),
    "pixel_auroc_crack": Column("cracks"),
    "pixel_ap": Column("pixel average precision"),
    "pixel_ap_crack": Column("cracks"),
    "overlap": Column("region overlap"),
    "fit_seconds": Column("fit, CPU-s", ".0f", show_deviation=False),
}


def run(options: Options) -> None:
    """Run the missing measurements and write the table."""
    stride = SHORT_STRIDE if options.short else 1
    ledger = Ledger(options.result_path("inserted_defects.csv"), ("method", "seed"))
    with tempfile.TemporaryDirectory() as work:
        task = load(options.data_folder("tiles"), Path(work), stride)
        for seed in range(1 if options.short else options.seeds):
            for name in filter(options.wants, METHODS):
                if (name, seed) not in ledger and not (seed and name in NEAREST):
                    ledger.add((name, seed), measure(METHODS[name], task, seed))
    rows = ledger.rows.reindex(columns=["method", "seed", *COLUMNS])  # some have no map
    table = f"{summary_table(rows, 'method', COLUMNS)}\n{environment()}"
    options.result_path("inserted_defects.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")
