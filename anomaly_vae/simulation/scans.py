"""Simulate head-like scans, some with a lesion and its mask, to try the detectors on.

A phantom is an axial slice through a head as in T1-weighted imaging: skin, skull, folded cortex,
white matter, nuclei and ventricles. It follows Shepp & Logan, *The Fourier Reconstruction of a
Head Section* (IEEE Transactions on Nuclear Science 21, 1974), and is as far from real anatomy.
Each phantom has its own pose, contrast, bias field, sharpness and noise, so that the mean, the
contrast or the border of an image reveals almost nothing about a lesion.

Lesions with a known mask are inserted into phantoms or real scans. This tests detectors where real
anomalies are rare, or can be recognised by their source, as in Tan et al., *Detecting Outliers with
Foreign Patch Interpolation* (MELBA 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.errors import DataError

_Floats: TypeAlias = NDArray[np.float64]
_Bools: TypeAlias = NDArray[np.bool_]

LESION_KINDS: Final = ("bright", "dark", "texture", "shift")
"""Kinds of lesions, which are equally likely."""

_MAX_SCANS: Final = 100_000
_MIN_SIZE, _MAX_SIZE = 32, 512
"""Minimum and maximum side of a simulated scan, in pixels."""
_MIN_LESION_SIDE: Final = 16
"""Minimum side of an image that a lesion is inserted into, in pixels."""
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Golden ratio, whose multiples modulo 1 are spread evenly."""
_SLICES: Final = np.array([1, 2, 3, 4])
"""Possible numbers of slices of a patient."""
_SLICES_SHARES: Final = np.array([0.88, 0.04, 0.04, 0.04])
"""Probability of each number of slices."""

# Distances are in head units: the distance from the middle of the head to its skin is 1.
_SHELL_DEPTHS: Final = (-0.01, 0.01, 0.04, 0.055, 0.08, 0.095)
"""Depths where the tissue of the shell (air, skin, bone, fluid) changes."""
_BRAIN_DEPTH: Final = 0.105
"""Depth of the brain's surface."""
_CORTEX_LEVELS: Final = (0.0, 0.03, 0.09, 0.14)
"""Levels of the cortex between which fluid becomes grey matter and grey becomes white matter."""
_N_FOLDS: Final = 20
"""Number of waves whose sum is the folds of the cortex."""
_FOLD_LENGTH: Final = 0.55
"""Wavelength of a fold and its neighbouring furrow."""


@dataclass(frozen=True, eq=False)
class Scans:
    """N simulated slices of S × S pixels."""

    images: NDArray[np.uint8]
    """Pixels (N, S, S)."""
    masks: _Bools
    """Pixels of the lesion (N, S, S), all False for a normal scan."""
    labels: NDArray[np.int8]
    """1 for a scan with a lesion, else 0, (N,)."""
    groups: NDArray[np.int32]
    """Number of the patient, from 0 in ascending order, (N,)."""
    kinds: tuple[str, ...]
    """Kind: "normal" or one of `LESION_KINDS`, (N,)."""


def simulate_scans(n: int, seed: int, size: int = 96, lesion_share: float = 0.2) -> Scans:
    """Simulate ``n`` slices of ``size`` × ``size`` pixels.

    The same seed gives the same bytes, and a larger ``n`` only appends scans. Lesions are spread
    evenly: any n consecutive scans hold ``lesion_share`` · n of them, give or take five. One
    patient in eight has two to four consecutive slices from nearby positions, each with or without
    a lesion of its own; the other patients have one slice.

    Args:
        n: Number of scans, 1 to 100,000.
        seed: Seed of the random numbers, 0 or more.
        size: Side of a scan, 32 to 512 pixels.
        lesion_share: Fraction of scans with a lesion, 0 to 1.

    Raises:
        DataError: An argument is out of range.

    Example:
        >>> from anomaly_vae.simulation import simulate_scans
        >>> scans = simulate_scans(5, seed=0, size=32, lesion_share=0.4)
        >>> scans.images.shape, scans.images.dtype
        ((5, 32, 32), dtype('uint8'))
        >>> scans.labels.tolist(), scans.kinds
        ([0, 1, 0, 0, 1], ('normal', 'shift', 'normal', 'normal', 'dark'))
        >>> scans.masks.any(axis=(1, 2)).tolist()
        [False, True, False, False, True]
    """
    _check_request(n, seed, size, lesion_share)
    groups, start = _draw_patients(n, seed)
    labels = (start + np.arange(n) * _GOLDEN) % 1 < lesion_share
    images, masks = np.empty((n, size, size), np.uint8), np.zeros((n, size, size), np.bool_)
    kinds = ["normal"] * n
    for i, group in enumerate(groups):
        rng = np.random.default_rng([seed, 2, i])
        image = _draw_slice(_draw_head(np.random.default_rng([seed, 1, int(group)])), rng, size)
        if labels[i]:
            image, masks[i], kinds[i] = _insert_lesion(image, rng)
        images[i] = np.rint(255 * image)
    return Scans(images, masks, labels.astype(np.int8), groups, tuple(kinds))


def insert_lesions(
    images: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float32], _Bools, tuple[str, ...]]:
    """Insert one lesion into each of ``images`` (N, H, W) with values in [0, 1].

    The centre of a lesion is any point of the tissue within 38% of the shorter side from the
    middle. The shape is an irregular ellipse with semi-axes of 5% to 13% of that side and a soft
    edge, which ends at the skin. The kinds are equally likely: ``bright`` and ``dark`` change the
    image by 0.6 to 1.4 of its standard deviations, ``texture`` replaces it by another grain, and
    ``shift`` by another part of it, mirrored half of the time. The i-th lesion depends on the
    seed, on i and on the i-th image only.

    Returns:
        The images (N, H, W) in [0, 1]; the masks (N, H, W), True where a pixel is more than half
        lesion, which are never empty; and the N kinds.

    Raises:
        DataError: The images have another shape or range, are smaller than 16 × 16 pixels or show
            no tissue.
    """
    _check_images(images)
    _check_seed(seed)
    changed, masks = np.empty(images.shape, np.float32), np.empty(images.shape, np.bool_)
    kinds = []
    for i, image in enumerate(images):
        rng = np.random.default_rng([seed, i])
        try:
            changed[i], masks[i], kind = _insert_lesion(image.astype(np.float64), rng)
        except DataError as error:
            raise DataError(f"image {i}: {error}") from None
        kinds.append(kind)
    return changed, masks, tuple(kinds)


def _check_request(n: int, seed: int, size: int, lesion_share: float) -> None:
    _check_seed(seed)
    if not 1 <= n <= _MAX_SCANS:
        raise DataError(f"scans: expected 1 to {_MAX_SCANS:,}, got {n:,}")
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise DataError(f"size: expected {_MIN_SIZE} to {_MAX_SIZE} pixels, got {size:,}")
    if not 0 <= lesion_share <= 1:
        raise DataError(f"lesion_share: expected a share from 0 to 1, got {lesion_share}")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise DataError(f"seed: expected a whole number from 0 up, got {seed}")


def _check_images(images: NDArray[np.float32]) -> None:
    if images.ndim != 3 or min(images.shape[1:]) < _MIN_LESION_SIDE:
        raise DataError(
            f"images: expected shape (N, H, W), sides from {_MIN_LESION_SIDE} up, "
            f"got {images.shape}"
        )
    if not np.all((images >= 0) & (images <= 1)):  # false for NaN
        raise DataError("images: expected values from 0 to 1; divide 8-bit pixels by 255")


def _draw_patients(n: int, seed: int) -> tuple[NDArray[np.int32], float]:
    """Draw the patients of n scans (n,), and the start of the sequence that spreads the lesions."""
    rng = np.random.default_rng([seed, 0])
    start = rng.random()
    slices = rng.choice(_SLICES, size=n, p=_SLICES_SHARES)
    return np.repeat(np.arange(n, dtype=np.int32), slices)[:n], start


@dataclass(frozen=True, eq=False)
class _Head:
    """The anatomy and contrast that all slices of one patient share."""

    height: float
    """Half of the head's length, as a fraction of half the image."""
    width: float
    """Half of the head's width, as a fraction of half the image."""
    outline: _Floats
    """Amplitude and phase of the waves of the outline, (3, 2)."""
    folds: _Floats
    """Wave vector in three dimensions, and phase, of each wave of the cortex, (_N_FOLDS, 4)."""
    ventricle: float
    """Half of the width of a ventricle."""
    bend: float
    """Outward curvature of the ventricles."""
    middle: float
    """Level of the patient's slices: 0 through the nuclei, 1 far above them."""
    shades: _Floats
    """Intensity of skin, bone, fluid, grey and white matter, (5,)."""
    gain: float
    """Factor of all intensities."""
    gamma: float
    """Exponent of all intensities."""


def _draw_head(rng: np.random.Generator) -> _Head:
    height = rng.uniform(0.8, 0.92)
    return _Head(
        height=height,
        width=height / rng.uniform(1.12, 1.28),
        outline=rng.uniform(0, [0.02, 2 * np.pi], (3, 2)),
        folds=_draw_folds(rng),
        ventricle=rng.uniform(0.045, 0.085),
        bend=rng.uniform(0.7, 1.1),
        middle=rng.uniform(0, 1),
        shades=np.array([0.85, 0.07, 0.16, 0.47, 0.76]) + rng.uniform(-0.05, 0.05, 5),
        gain=rng.uniform(0.65, 1.1),
        gamma=rng.uniform(0.8, 1.25),
    )


def _draw_folds(rng: np.random.Generator) -> _Floats:
    """Draw waves of similar length in all directions, whose sum is a maze of folds."""
    angle = rng.uniform(0, 2 * np.pi, _N_FOLDS)
    number = 2 * np.pi / _FOLD_LENGTH * rng.uniform(0.85, 1.15, _N_FOLDS)
    up = rng.normal(0, 6, _N_FOLDS)  # changes the maze from slice to slice
    return np.column_stack(
        [number * np.cos(angle), number * np.sin(angle), up, rng.uniform(0, 2 * np.pi, _N_FOLDS)]
    )


def _draw_slice(head: _Head, rng: np.random.Generator, size: int) -> _Floats:
    """Draw one scan of one slice (S, S), in [0, 1]."""
    level = head.middle + rng.uniform(-0.15, 0.15)
    u, v = _draw_pose(head, rng, size)
    image = _render(head, u, v, level)
    pixel = size / 96  # unit of the blurs
    image *= 1 + 0.12 * gaussian_blur(rng.standard_normal((size, size)), pixel)
    image = head.gain * image**head.gamma * np.exp(_draw_bias(rng, size))
    image = gaussian_blur(image, rng.uniform(0.5, 0.9) * pixel)
    return np.minimum(_add_noise(image, rng.uniform(0.006, 0.022), rng), 1)


def _draw_pose(head: _Head, rng: np.random.Generator, size: int) -> tuple[_Floats, _Floats]:
    """Return the head coordinates of each pixel (S, S): to the patient's left, and to the front."""
    turn, shear = rng.uniform(-0.12, 0.12), rng.uniform(-0.04, 0.04)
    scale = rng.uniform(0.95, 1.04)
    right, down = rng.uniform(-0.03, 0.03, 2)
    at = (2 * np.arange(size) + 1) / size - 1
    x, y = (at - right)[None, :], -(at - down)[:, None]
    u = (np.cos(turn) * x + np.sin(turn) * y) / (scale * head.width)
    v = (np.cos(turn) * y - np.sin(turn) * x) / (scale * head.height)
    return u + shear * v, v


def _render(head: _Head, u: _Floats, v: _Floats, level: float) -> _Floats:
    """Render a slice (S, S) without bias, blur and noise."""
    skin, bone, fluid, grey, white = head.shades
    depth = _depth(head, u, v)
    matter = np.interp(
        _cortex(head, u, v, depth, level), _CORTEX_LEVELS, [fluid, grey, grey, white]
    )
    matter = _blend(matter, 0.6 * grey + 0.4 * white, _nuclei(u, v) * (1 - 0.6 * level))
    matter = _blend(matter, fluid, _ventricles(head, u, v, level))
    shell = np.interp(depth, _SHELL_DEPTHS, [0.0, skin, skin, bone, bone, fluid])
    return np.where(depth < _SHELL_DEPTHS[-1], shell, matter)


def _depth(head: _Head, u: _Floats, v: _Floats) -> _Floats:
    """Return the depth (S, S) below the skin, in head units; negative outside the head."""
    wide = u * (1 + 0.08 * v)  # the forehead is narrower
    radius: _Floats = np.hypot(wide, v) * (1 + _waves(np.arctan2(v, wide), (2, 3, 4), head.outline))
    return 1 - radius


def _waves(angle: _Floats, numbers: tuple[int, ...], amplitudes_phases: _Floats) -> _Floats:
    """Sum waves around a circle, each with its number of crests; returns (S, S)."""
    total = np.zeros_like(angle)
    for number, (amplitude, phase) in zip(numbers, amplitudes_phases, strict=True):
        total += amplitude * np.cos(number * angle + phase)
    return total


def _cortex(head: _Head, u: _Floats, v: _Floats, depth: _Floats, level: float) -> _Floats:
    """Return the level (S, S) that selects the tissue: depth in the brain, shifted by folds."""
    below = depth - _BRAIN_DEPTH
    ridge = np.minimum(np.abs(_maze(head, u, v, level)), 0.7) - 0.4
    folded = below + 0.4 * ridge * np.exp(-((below / 0.26) ** 2))
    side = np.abs(u)
    gap = np.exp(-((u / 0.03) ** 2)) * np.clip(2.2 * np.abs(v) - 0.5, 0.12, 0.5)
    sylvian = np.exp(-(((v - 0.5 * side + 0.25) / 0.05) ** 2)) * np.clip(3 * side - 1.3, 0, 0.45)
    cortex: _Floats = np.minimum(folded, 2 * below) - gap - sylvian * (1 - 0.7 * level)
    return cortex


def _maze(head: _Head, u: _Floats, v: _Floats, level: float) -> _Floats:
    """Return a random field (S, S) of about unit variance, whose zeros are winding lines.

    Coordinates are linear in rows and columns, so that a wave is cos(a + b) = cos a cos b - sin a
    sin b with one a for each row and one b for each column.
    """
    p, q, up, phase = head.folds.T[:, :, None]
    rows = p * (u[:, 0] - u[0, 0]) + q * (v[:, 0] - v[0, 0])
    columns = p * u[0] + q * v[0] + up * level + phase
    waves: _Floats = np.einsum("ki,kj->ij", np.cos(rows), np.cos(columns))
    waves -= np.einsum("ki,kj->ij", np.sin(rows), np.sin(columns))
    return waves * math.sqrt(2 / _N_FOLDS)


def _nuclei(u: _Floats, v: _Floats) -> _Floats:
    """Return the fraction (S, S) of each pixel that is grey nuclei within the white matter."""
    side = np.abs(u)
    inner = _within(((side - 0.15) / 0.1) ** 2 + ((v + 0.08) / 0.15) ** 2)
    outer = _within(((side - 0.31 + 0.15 * v) / 0.075) ** 2 + ((v - 0.08) / 0.21) ** 2)
    nuclei: _Floats = np.maximum(inner, outer)
    return nuclei


def _ventricles(head: _Head, u: _Floats, v: _Floats, level: float) -> _Floats:
    """Return the fraction (S, S) of each pixel that is ventricle; the two are shaped like )(."""
    across = np.abs(u) - 0.045 - head.bend * v**2
    half = head.ventricle * (1 - 0.45 * level)
    return _within((across / half) ** 2 + ((v / 0.4) ** 2) ** 2)


def _within(squared: _Floats) -> _Floats:
    """Return 1 where a squared radius is below 1 and 0 where it is above, with a soft edge."""
    share: _Floats = np.clip(2.0 * (1 - squared) + 0.5, 0, 1)
    return share


def _blend(image: _Floats, other: _Floats | float, share: _Floats | float) -> _Floats:
    return image + share * (other - image)


def _draw_bias(rng: np.random.Generator, size: int) -> _Floats:
    """Draw the logarithm (S, S) of the uneven sensitivity of the coil."""
    at = np.linspace(-1, 1, size)
    slope, curve = rng.normal(0, 0.12, 2), rng.normal(0, 0.08, 3)
    down: _Floats = slope[0] * at + curve[0] * at**2
    across: _Floats = slope[1] * at + curve[1] * at**2
    return down[:, None] + across + float(curve[2]) * at[:, None] * at


def _add_noise(image: _Floats, deviation: float, rng: np.random.Generator) -> _Floats:
    """Add complex Gaussian noise and take the magnitude (Gudbjartsson & Patz 1995, eq. 1)."""
    real, imaginary = deviation * rng.standard_normal((2, *image.shape))
    magnitude: _Floats = np.hypot(image + real, imaginary)
    return magnitude


def _insert_lesion(image: _Floats, rng: np.random.Generator) -> tuple[_Floats, _Bools, str]:
    kind = str(rng.choice(LESION_KINDS))
    share = _draw_shape(image, rng)
    changed = _blend(image, _draw_matter(image, kind, rng), share)
    return np.clip(changed, 0, 1), share > 0.5, kind


def _draw_shape(image: _Floats, rng: np.random.Generator) -> _Floats:
    """Draw the fraction (H, W) of each pixel that is lesion, in [0, 1] and 0 in the air."""
    centres, head = _find_tissue(image)
    row, column = rng.choice(centres)
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    excess = _draw_radius(y - row, x - column, min(image.shape), rng)
    share: _Floats = head * (0.5 - 0.5 * np.tanh(0.5 * rng.uniform(5, 12) * excess))
    return share


def _find_tissue(image: _Floats) -> tuple[NDArray[np.intp], _Bools]:
    """Return the pixels (P, 2) where a lesion may be centred, and the mask (H, W) it may cover."""
    height, width = image.shape
    unit = min(image.shape) / 64
    smooth = gaussian_blur(image, 2 * unit)
    bright = np.percentile(smooth, 90)
    y, x = np.ogrid[:height, :width]
    middle = np.hypot(y - height / 2, x - width / 2) < 0.38 * 64 * unit
    head = gaussian_blur(image, 0.75 * unit) > 0.15 * bright
    centres = np.argwhere((smooth > 0.35 * bright) & head & middle)
    if not len(centres) or np.ptp(image) == 0:
        raise DataError("no tissue in the middle to put a lesion in; leave the image out")
    return centres, head


def _draw_radius(dy: _Floats, dx: _Floats, side: int, rng: np.random.Generator) -> _Floats:
    """Return the distance (H, W) of each pixel beyond the edge, relative to the lesion's size."""
    a, b = rng.uniform(0.05, 0.13, 2) * side
    turn = rng.uniform(0, np.pi)
    along = (dx * np.cos(turn) + dy * np.sin(turn)) / a
    across = (dy * np.cos(turn) - dx * np.sin(turn)) / b
    angle = np.arctan2(across, along)
    edge = 1 + _waves(angle, (2, 3, 5), rng.uniform(0, [0.18, 2 * np.pi], (3, 2)))
    radius: _Floats = np.hypot(along, across)
    return radius - edge


def _draw_matter(image: _Floats, kind: str, rng: np.random.Generator) -> _Floats:
    """Draw an image (H, W) that is lesion of this kind everywhere."""
    unit = min(image.shape) / 64
    deviation = float(image.std())
    amplitude = rng.uniform(0.6, 1.4) * deviation
    match kind:
        case "bright":
            return _blend(image, gaussian_blur(image, 2 * unit), 0.4) + amplitude
        case "dark":
            return np.maximum(image - amplitude, 0.02)
        case "texture":
            return gaussian_blur(image, 3 * unit) + deviation * _draw_grain(image.shape, rng)
        case _:
            return _draw_shifted(image, rng)


def _draw_grain(shape: tuple[int, ...], rng: np.random.Generator) -> _Floats:
    """Draw smoothed white noise (H, W), stronger if finer, independent of the pixel size."""
    unit = min(shape) / 64
    strength, sigma = rng.uniform(1.5, 3), rng.uniform(0.6, 1.5)
    return strength * unit * gaussian_blur(rng.standard_normal(shape), sigma * unit)


def _draw_shifted(image: _Floats, rng: np.random.Generator) -> _Floats:
    """Return the image (H, W) moved by 3/32 to 1/3 of its side along both axes, maybe mirrored."""
    side = min(image.shape)
    steps = rng.integers(3 * side // 32, side // 3, 2) * rng.choice([-1, 1], 2)
    moved = np.roll(image, tuple(steps), (0, 1))
    return moved[:, :: rng.choice([-1, 1])]


def gaussian_blur(image: _Floats, sigma: float) -> _Floats:
    """Blur an image (H, W) by a Gaussian of ``sigma`` pixels, mirrored at its borders."""
    return _blur_rows(_blur_rows(image, sigma).T, sigma).T


def _blur_rows(image: _Floats, sigma: float) -> _Floats:
    """Blur along the first axis, with weights cut at four sigma."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(image, [(reach, reach), (0, 0)], mode="symmetric")
    blurred = np.zeros_like(image)
    for first, weight in enumerate(weights / weights.sum()):
        blurred += weight * padded[first : first + len(image)]
    return blurred
