"""Generate, reconstruct, denoise and encode images with a trained model, and write them to a file.

The suffix of the file chooses the format: ``.png`` for a contact sheet, ``.parquet`` for a table
whose column ``image`` holds each picture as the bytes of a PNG file. `latent` draws a map
(``.png``) or writes a table (``.parquet`` or ``.csv``). Pictures are on the model's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.training import CorruptionConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.files import atomic_path
from anomaly_vae.generation import images
from anomaly_vae.generation.latent_space import (
    Rows,
    Shape,
    activity,
    encoded,
    latent_means,
    load_model,
    most_active,
)
from anomaly_vae.images.encoding import IMAGE, encode_png
from anomaly_vae.images.heatmaps import png, sheet
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.modality import image_modality
from pipelines import console
from pipelines.datasets.images.batches import Batch, read_all
from pipelines.datasets.images.dataset import build_index
from pipelines.datasets.images.files import FRAME, PATH, ImageFile
from pipelines.datasets.images.listing import list_files
from pipelines.generate.common import (
    PNG,
    ROWS,
    WRITERS,
    Paths,
    Points,
    Summary,
    check_colour,
    ending,
    label_column,
    write_map,
    write_table,
)

PARQUET = ".parquet"
SAMPLES, SHOWN, COLUMNS = 36, 16, 8
"""Default numbers of pictures on a sheet: samples, images of an input, and columns."""
DIMENSIONS, TRIED = 3, 48
"""Default number of latent dimensions that a traversal shows, of so many most active ones."""
MIN_CHANGE = 0.05
"""Change of a pixel, on a scale from 0 to 1, that is drawn white at least."""
GRID = 15
"""Number of pictures along each side of the grid over the latent plane."""
MAX_PICTURES = 256
"""Maximum number of pictures on a sheet."""

Facts = Mapping[str, Any]
"""Columns that describe N images: (N,) values by name."""


@dataclass(frozen=True, eq=False)
class Source:
    """N usable images, encoded (N, F), with their facts and captions, and the number rejected."""

    x: Tensor
    facts: Facts
    """Path, frame and, if there is one, label of each image; empty for samples."""
    names: Sequence[str]
    """Captions of the images."""
    rejected: int = 0


@dataclass(frozen=True, eq=False)
class Band:
    """A row of pictures (N, C, S, S) with a title before it and a caption below each picture."""

    title: str
    pictures: Matrix
    captions: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures (N, C, S, S) row by row, with a caption below each and a title before each row."""

    pictures: Matrix
    captions: Sequence[str] = ()
    columns: int | None = None
    rows: Sequence[str] = ()


def sample(bundle: Bundle, out: str | Path, rows: int | None = None, seed: int = 0) -> Summary:
    """Generate images from the model."""
    count = SAMPLES if rows is None else rows
    _check(out, count)
    pictures = images.sample(bundle, count, seed)
    _write(out, Sheet(pictures), {}, pictures)
    return _summary(out, count)


def reconstruct(
    bundle: Bundle, out: str | Path, paths: Paths = (), rows: int | None = None, seed: int = 0
) -> Summary:
    """Write each image above the one that the model would have expected, with its score."""
    count = SHOWN if rows is None else rows
    _check(out, 2 * count)
    source = read_source(bundle, paths, count, seed)
    seen = images.to_pictures(bundle, source.x)
    expected = images.reconstruct(bundle, source.x)
    scores = _scores(bundle, source.x)
    bands = (Band("seen", seen, source.names), Band("expected", expected, _score_captions(scores)))
    _write(out, stacked(bands), {**source.facts, **scores}, expected)
    return _summary(out, len(seen), source.rejected)


def interpolate(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    steps: int = 9,
    seed: int = 0,
    shape: Shape = "linear",
) -> Summary:
    """Write the path from the first input image to the second, between the two images."""
    _check(out, steps + 2)
    source = read_source(bundle, paths, 2, seed)
    share, pictures = images.interpolate(bundle, source.x, steps=steps, shape=shape)
    ends = images.to_pictures(bundle, source.x)
    row = np.concatenate([ends[:1], pictures, ends[1:]])
    captions = [source.names[0], *(f"{one:.3g}" for one in share), source.names[1]]
    _write(out, Sheet(row, captions, len(row)), {"step": share}, pictures)
    return _summary(out, steps, source.rejected)


def traverse(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 7,
) -> Summary:
    """Write how the first input image, or the prior's mean, changes along each latent dimension.

    Without ``dims``, a model of more than `TRIED` latents, each of which changes a small part of a
    picture, is shown along the principal components of the latents of its training images. The
    last column of a sheet shows which pixels change.

    Args:
        bundle: the model.
        out: the file to write.
        paths: the input; empty for samples of the model.
        dims: the latent dimensions; None for those that change pictures most, in this order.
        span: the distance to move in both directions.
        steps: the number of pictures per dimension.
    """
    _check(out, (steps + 1) * (DIMENSIONS if dims is None else len(dims)))
    source = read_source(bundle, paths)
    start = source.x if paths else None
    if dims is None and _has_components(bundle):
        made = _along_components(bundle, start, span, steps)
    else:
        made = _along_latents(bundle, source.x, start, dims, span, steps)
    shown, captions = _with_change(made.pictures, made.values, steps)
    facts = {made.name: made.which, "z": made.values}
    _write(out, Sheet(shown, captions, steps + 1, made.rows), facts, made.pictures)
    return _summary(out, len(made.pictures), source.rejected) | made.said


@dataclass(frozen=True, eq=False)
class Traversal:
    """Pictures (D · T, C, S, S) along D dimensions or components, and what is said of them."""

    name: str
    """What is moved: "dim" or "component"."""
    which: NDArray[np.int64]
    values: NDArray[np.float32]
    pictures: Matrix
    rows: Sequence[str]
    """Titles of the D rows."""
    said: Summary


def _has_components(bundle: Bundle) -> bool:
    """Return whether single latents show little, and the components of many are known."""
    model = load_model(bundle)
    return model.drawing is not None and model.latent_dim > TRIED


def _along_components(bundle: Bundle, start: Rows | None, span: float, steps: int) -> Traversal:
    """Move along the components that change pictures most."""
    drawing = load_model(bundle).drawing
    assert drawing is not None
    move = partial(images.traverse_components, bundle, start)
    chosen = _most_visible(move, range(len(drawing.basis)), span)
    made = move(chosen, span, steps)
    rows = [f"component {number}" for number in chosen]
    return Traversal("component", *made, rows, {"components": chosen, "unit": "sd"})


def _along_latents(
    bundle: Bundle,
    x: Tensor,
    start: Rows | None,
    dims: Sequence[int] | None,
    span: float,
    steps: int,
) -> Traversal:
    """Move the given latents, or those that change pictures most, of the most active ones."""
    activities, unit = activity(bundle, x), _unit(bundle)
    move = partial(images.traverse, bundle, start)
    chosen = dims or _most_visible(move, most_active(activities, TRIED), span)
    made = move(chosen, span, steps)
    share = activities[list(chosen)].tolist()
    rows = [f"z{dim}: {one:.2f} {unit}" for dim, one in zip(chosen, share, strict=True)]
    said = {"dims": list(chosen), "activity": share, "unit": unit}
    return Traversal("dim", *made, rows, said)


Move = Callable[[Sequence[int], float, int], tuple[NDArray[Any], NDArray[Any], Matrix]]
"""Function (dimensions, span, steps) that returns what `images.traverse` does."""


def _most_visible(move: Move, dims: Sequence[int], span: float) -> list[int]:
    """Return the dimensions whose two ends differ most, by the mean over pixels."""
    which, _, pictures = move(dims, span, 2)
    ends = pictures.reshape(len(dims), 2, -1)
    change = np.abs(ends[:, 1] - ends[:, 0]).mean(1)
    order = np.argsort(-change, kind="stable")[:DIMENSIONS]
    first: list[int] = which.reshape(-1, 2)[order, 0].tolist()
    return first


def _with_change(pictures: Matrix, values: NDArray[Any], steps: int) -> tuple[Matrix, list[str]]:
    """Append to each row of a traversal (D · T, C, S, S) the difference of its ends; add captions.

    The largest difference in a row is white, unless it is below `MIN_CHANGE`.
    """
    rows = pictures.reshape(-1, steps, *pictures.shape[1:])
    change = np.abs(rows[:, -1:] - rows[:, :1]).mean(2, keepdims=True)
    largest = np.maximum(change.max((2, 3, 4), keepdims=True), MIN_CHANGE)
    white = np.broadcast_to(change / largest, rows[:, :1].shape)
    words = [f"{value:.3g}" for value in values[:steps]]
    captions = [[*words, f"change, up to {one.max():.2g}"] for one in change]
    shown = np.concatenate([rows, white.astype(rows.dtype)], 1)
    return shown.reshape(-1, *pictures.shape[1:]), [word for row in captions for word in row]


def latent(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    rows: int | None = None,
    seed: int = 0,
    colour: str | None = None,
    grid: bool = False,
) -> Summary:
    """Write each image's latent means as a table or a map, or a grid of decoded latents."""
    if grid:
        return _grid(bundle, out, paths, colour)
    suffix = ending(out, PNG, *WRITERS)
    check_colour(suffix, colour)
    source = read_source(bundle, paths, None if paths else rows, seed)
    means = latent_means(bundle, source.x).numpy()
    if suffix == PNG:
        labels = source.facts.get(label_column(bundle), pa.array([])).to_pylist()
        write_map(bundle, Points(source.x.numpy(), means, "images", labels), colour, out)
    else:
        columns = {f"z{i}": means[:, i] for i in range(means.shape[1])}
        write_table(pa.table({**source.facts, **columns}), out)
    return _summary(out, len(means), source.rejected)


def _grid(bundle: Bundle, out: str | Path, paths: Paths, colour: str | None) -> Summary:
    _check(out, GRID**2)
    if paths or colour:
        raise ConfigError("--grid shows the whole latent plane; leave out --input and --color")
    latents = load_model(bundle).latent_dim
    if latents != 2:
        raise ConfigError(f"--grid needs a model of 2 latents, this one has {latents}; traverse it")
    z, pictures = images.grid(bundle, GRID)
    rows = [f"z1 = {value:+.2f}" for value in z[::GRID, 1]]
    last = [f"z0 = {value:+.2f}" for value in z[:GRID, 0]]
    page = Sheet(pictures, [""] * (GRID**2 - GRID) + last, GRID, rows)
    _write(out, page, {"z0": z[:, 0], "z1": z[:, 1]}, pictures)
    return _summary(out, len(pictures))


def denoise(
    bundle: Bundle,
    out: str | Path,
    paths: Paths = (),
    rows: int | None = None,
    seed: int = 0,
    corruption: str | None = None,
    strength: float | None = None,
) -> Summary:
    """Write each image with a corruption and as the model reconstructs it from that.

    Without a corruption, the input itself is taken to be noisy.

    Args:
        bundle: the model.
        out: the file to write.
        paths: the input; empty for samples of the model.
        rows: the number of images; None for `SHOWN`.
        seed: random seed.
        corruption: the type of corruption; None for that of the training.
        strength: the strength of the corruption; None for the configured one.
    """
    count, config = SHOWN if rows is None else rows, corruption_of(bundle, corruption, strength)
    plain = config.type == "none" or not config.strength
    _check(out, (2 if plain else 3) * count)
    source = read_source(bundle, paths, count, seed)
    if plain:
        return _denoise_plain(bundle, out, source)
    seen = images.corrupt(bundle, source.x, config, seed)
    clean, noisy = (images.to_pictures(bundle, x) for x in (source.x, seen))
    made = images.reconstruct(bundle, seen)
    before, after = images.psnr(noisy, clean), images.psnr(made, clean)
    bands = (
        Band("clean", clean, source.names),
        Band(f"{config.type} {config.strength:g}", noisy, _decibels(before)),
        Band("denoised", made, _decibels(after)),
    )
    _write(out, stacked(bands), {**source.facts, "psnr_before": before, "psnr": after}, made)
    ratios = {"psnr_before": float(before.mean()), "psnr": float(after.mean())}
    return _summary(out, len(made), source.rejected) | ratios


def _denoise_plain(bundle: Bundle, out: str | Path, source: Source) -> Summary:
    made = images.reconstruct(bundle, source.x)
    noisy = images.to_pictures(bundle, source.x)
    bands = (Band("input", noisy, source.names), Band("denoised", made))
    _write(out, stacked(bands), source.facts, made)
    return _summary(out, len(made), source.rejected)


def corruption_of(bundle: Bundle, kind: str | None, strength: float | None) -> CorruptionConfig:
    """Return the corruption to apply, which defaults to that of the training.

    Raises:
        ConfigError: the strength is negative or not finite, or there is nothing to corrupt with.
    """
    config = CorruptionConfig.model_validate(bundle.manifest["config"]["training"]["corruption"])
    if kind not in {None, config.type}:
        config = CorruptionConfig.model_validate({"type": kind})
    if strength is None:
        return config
    if not 0 <= strength < math.inf:
        raise ConfigError(f"--strength {strength:g}: expected a number of at least 0")
    if config.type == "none":
        raise ConfigError("--strength needs something to corrupt with; add --corruption")
    return config.model_copy(update={"strength": strength})


# ---------------------------------------------------------------- in


def read_source(bundle: Bundle, paths: Paths, most: int | None = None, seed: int = 0) -> Source:
    """Read the first ``most`` usable images behind ``paths``, or sample as many without paths.

    With ``most`` None, all images are read, or `ROWS` samples drawn.

    Raises:
        DataError: there is no image, or none can be used.
    """
    if not paths:
        x = images.sample_encoded(bundle, ROWS if most is None else most, seed)
        return Source(x, {}, [f"sample {number}" for number in range(1, len(x) + 1)])
    schema, _ = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    items = list_files(paths)
    read = _read(items, schema, most or len(items))
    rejected = _report_rejects(items, read)
    fit = np.flatnonzero(read.images.usable)[:most]
    if most is not None and len(read.files) < len(items):
        console.info(f"{len(items):,} files; the first {len(fit):,} images are used")
    label = label_column(bundle)
    named = label if any(label in item.attributes for item in items) else None
    index = build_index(items, read, named, None).take(pa.array(fit))
    facts = {name: index.column(name) for name in (PATH, FRAME, named) if name}
    return Source(encoded(bundle, read.images.take(fit)), facts, _names(index), rejected)


def _read(items: Sequence[ImageFile], schema: ImageSchema, most: int) -> Batch:
    """Read as many of the first files as are needed for ``most`` usable images."""
    count = most
    while True:
        read = read_all(items[:count], schema)
        if count >= len(items) or read.images.usable.sum() >= most:
            return read
        count *= 2


def _report_rejects(items: Sequence[ImageFile], read: Batch) -> int:
    """Report and return the number of unusable images; refuse an input without usable ones."""
    problems, count = read.images.problems, len(read.images)
    if not problems:
        return 0
    name = items[read.files[problems[0].row]].name
    reason = f"of {count:,}; the first: '{name}': {problems[0].reason}"
    if len(problems) == count:
        raise DataError(f"no image of the input can be used, {reason}")
    console.info(f"{len(problems):,} images cannot be used, {reason}")
    return len(problems)


def _names(index: pa.Table) -> list[str]:
    """Return file names as captions, with the frame number unless it is the first."""
    pairs = zip(index.column(PATH).to_pylist(), index.column(FRAME).to_pylist(), strict=True)
    return [f"{Path(path).name} [{frame}]" if frame else Path(path).name for path, frame in pairs]


# ---------------------------------------------------------------- out


def _check(out: str | Path, count: int) -> None:
    """Check the suffix of the output and the number of pictures before any work is done.

    Raises:
        ConfigError: an unknown suffix, or more pictures than a sheet holds.
    """
    if ending(out, PNG, PARQUET) == PNG and count > MAX_PICTURES:
        raise ConfigError(
            f"a sheet holds {MAX_PICTURES} pictures, not {count:,}; ask for fewer, or write "
            f"{PARQUET}"
        )


def _write(out: str | Path, page: Sheet, facts: Facts, pictures: Matrix) -> None:
    """Write the sheet, or a table of the facts and the model's pictures (N, C, S, S)."""
    if ending(out, PNG, PARQUET) == PARQUET:
        write_table(pa.table({**facts, IMAGE: [_as_png(picture) for picture in pictures]}), out)
        return
    drawn = sheet(np.moveaxis(page.pictures, 1, -1), page.captions, page.columns, page.rows)
    with atomic_path(Path(out)) as whole:
        whole.write_bytes(png(drawn))


def _as_png(picture: Matrix) -> bytes:
    """Encode a picture (C, S, S) on [0, 1] as the bytes of a PNG file."""
    pixels = np.rint(np.moveaxis(picture, 0, -1) * MAX_PIXEL).astype(np.uint16)
    return encode_png(DecodedImage(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, 0))


def stacked(bands: Sequence[Band], columns: int = COLUMNS) -> Sheet:
    """Arrange bands of N pictures below each other, repeated for every ``columns`` pictures."""
    count = len(bands[0].pictures)
    columns = min(columns, count)
    blank = -count % columns
    shape = (len(bands), -1, columns, *bands[0].pictures.shape[1:])
    pictures = np.stack([_padded(band.pictures, blank) for band in bands]).reshape(shape)
    words = [[*(band.captions or [""] * count), *[""] * blank] for band in bands]
    captions = np.array(words, object).reshape(len(bands), -1, columns)
    return Sheet(
        pictures.swapaxes(0, 1).reshape(-1, *shape[3:]),
        captions.swapaxes(0, 1).ravel().tolist(),
        columns,
        [band.title for band in bands] * captions.shape[1],
    )


def _padded(pictures: Matrix, blank: int) -> Matrix:
    """Append ``blank`` white pictures."""
    white = np.ones((blank, *pictures.shape[1:]), pictures.dtype)
    return np.concatenate([pictures, white])


def _scores(bundle: Bundle, x: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return the score of each image (N, F) and, for a calibrated model, its p-value."""
    scores = bundle.scorer.score_encoded(x.numpy())
    if bundle.calibration is None:
        return {"score": scores}
    return {"score": scores, "p_value": bundle.calibration.p_values(scores)}


def _score_captions(scores: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """Format the scores and p-values of `_scores` as captions."""
    words = [f"score {score:.4g}" for score in scores["score"]]
    if "p_value" not in scores:
        return words
    return [f"{word}, p {p:.2g}" for word, p in zip(words, scores["p_value"], strict=True)]


def _decibels(ratios: NDArray[np.float64]) -> list[str]:
    return [f"{ratio:.1f} dB" for ratio in ratios]


def _unit(bundle: Bundle) -> str:
    """Return the unit of a latent's activity."""
    return "sd" if bundle.manifest["config"]["model"]["type"] == "autoencoder" else "nats"


def _summary(out: str | Path, rows: int, rejected: int = 0) -> Summary:
    return {"out": str(out), "rows": rows, "rejected": rejected}
