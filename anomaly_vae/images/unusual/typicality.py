"""Measure how far an image is from the training images, and which fault it seems to have.

Images are compared with training images in three ways. A Mahalanobis distance measures how unlikely
simple statistics (`images.unusual.statistics`) are altogether. The distance from the principal
components of the directions of edges measures how unlikely their arrangement is. Linear
discriminants, learnt from training images with simulated faults (`images.unusual.faults`),
recognise faults that are expected: blur, noise, noise alone, a blank half, an image that is
inverted, turned or upside down. The last two are recognised by the directions of edges in small
cells, learnt also from images that are varied a little and mirrored. A fault that held-out images
do not show reliably is left out. No label is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.splitting import spread
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.unusual.faults import FAULTS, varied
from anomaly_vae.images.unusual.statistics import (
    BINS,
    CELLS,
    describe,
    gradients,
    names,
    pooled,
    standardise,
)

Values = NDArray[np.float64]
Images = list[Values]
Reasons = NDArray[np.object_]

MAX_TRAIN, MAX_HELD_OUT = 600, 200
"""Maximum number of training and of held-out images that are measured."""
NO_PATTERN: Values = np.zeros((0, 0))
SEED = 0
"""Seed of simulated faults."""
SHRINKAGE, RIDGE, FLOOR = 0.1, 0.05, 0.01
"""Weight of the diagonal in the covariance, variance added to it, and smallest deviation."""
SPREAD = 0.3
"""Typical deviation of an entry of the gradients, which are divided by it."""
CLIP = 8.0
"""Limit of statistics, in deviations."""
DISTANCE_BEND = (1.0, 0.5)
"""Where the Mahalanobis distance bends to a logarithm, and its factor.

Among normal images a few are far from the others, and would alone decide which distance is unusual.
"""
PATTERN_BEND = (1.3, 0.6)
"""The same of the distance from the principal components of the gradients."""
PATTERN_CELLS, COMPONENTS = 8, 40
"""Number of cells per side of these gradients, and most components; at most one for two images."""
FAULT_BEND = (2.2, 0.1)
"""Where the distance of a fault bends, and its factor; 2 is a fault that is hard to see."""
AMBIGUOUS: Mapping[str, float] = {"noisy": 1.3, "turned": 1.8, "upside down": 1.0}
"""Where the distance bends of a fault that normal images may seem to have.

They then do not make the test blind to other faults.
"""
CLEAR, CLEAR_BEND = 1.2, 1.8
"""Separation from held-out images, in their tails, from which on such a fault is clear, and where
its distance then bends."""
PENALTY, GRADIENT_PENALTY = 1e-3, 1e-4
"""Ridge penalties of discriminants of statistics and of gradients, per image."""
TAIL = 0.98
"""Quantile of held-out images that gives each distance its unit."""
SEPARATION = 0.5
"""Share of the distance between an image and one with a fault that is the least unit."""
NAMED = 1.4
"""Distance from which on an unusual image is said to have a fault; 1 is half of the way to it."""
WEAK, MIN_TOLD = 0.2, 0.7
"""Quantile of images with a fault that measures that distance; smallest share that is told."""

SIGNS: Mapping[str, tuple[str, ...] | None] = {
    "half blank": ("blank", "constant", "left-right", "up-down", "quantile", "bright centre"),
    "noisy": ("detail", "background", "constant", "diagonal", "darkest"),
    "blurred": ("detail",),
    "inverted": ("quantile", "skewness", "kurtosis", "border", "darkest", "brightest"),
    "turned": None,
    "upside down": None,
    "noise alone": ("detail", "background", "left-right", "up-down"),
}
"""Beginnings of the names of the statistics that show a fault; None for the gradients."""
WORDS = {
    "half blank": "large parts have a single value",
    "noise alone": "looks like noise alone",
    "noisy": "looks noisy",
    "blurred": "looks blurred: fine detail is weaker than usual",
    "inverted": "dark and bright look exchanged",
    "turned": "looks turned by 90°: not oriented like the training images",
    "upside down": "looks upside down: not oriented like the training images",
}
"""Reason for each fault; of several that an image has, the first counts."""
ARRANGEMENT = "structures do not lie where those of the training images do"
"""Reason for an image whose edges are arranged as in no training image."""
KINDS = {
    "brightness": "brightness",
    "contrast": "contrast",
    "detail 0": "fine detail",
    "detail": "coarse structure",
    "direction": "vertical against horizontal structure",
    "diagonal": "diagonal structure",
    "background": "noise of smooth areas",
    "quantile": "distribution of brightness",
    "skewness": "distribution of brightness",
    "kurtosis": "distribution of brightness",
    "constant": "areas of one value",
    "blank": "areas of one value",
    "darkest": "area of the darkest value",
    "brightest": "area of the brightest value",
    "border": "brightness of the border",
    "left-right": "symmetry",
    "up-down": "symmetry",
    "antidiagonal": "symmetry",
    "bright": "place and size of bright parts",
    "edges": "place and size of structures",
    "colour": "colour",
    "channel": "colour",
}
"""Words for statistics by the beginning of their name; the first that fits counts."""


@dataclass(frozen=True, eq=False)
class ImageTypicality:
    """Distances of images from the training images: J + 2 for J faults, in comparable units.

    They are the Mahalanobis distance, those of the faults, and the distance of the gradients from
    their principal components, which older bundles do not have.

    Args:
        layout: shape of the images.
        centre: (K,) medians of the statistics.
        below: (K,) deviations of values below the median.
        above: (K,) deviations of values above it.
        mean: (K,) means of the statistics in these deviations.
        precision: (K, K) inverse of their covariance.
        weights: (J, K + G) discriminants of statistics and gradients.
        unit: (2, J + 2) distance that counts as 0, and the unit, of each distance.
        faults: (J,) numbers of the faults, in the order of `FAULTS`.
        bends: (2, J + 2) distances at which each distance bends to a logarithm, and its factors;
            (2, 0) in older bundles, which bend none and do not limit the Mahalanobis distance.
        pattern: (Q + 1, P) mean and Q principal components of the gradients in larger cells; (0, 0)
            in older bundles.
    """

    layout: ImageLayout
    centre: Values
    below: Values
    above: Values
    mean: Values
    precision: Values
    weights: Values
    unit: Values
    faults: NDArray[np.int64]
    bends: Values
    pattern: Values

    # ------------------------------------------------------------ learning

    @classmethod
    def fit(
        cls, encoding: ImageEncoding, train: Matrix, held_out: Matrix, losses: Any, rates: Any
    ) -> Self:
        """Learn from T training and H held-out images, (T, F) and (H, F), encoded.

        If they are the same images, one half of them are learnt from and the other held out.
        """
        del losses, rates
        layout = encoding.layout
        if np.array_equal(train, held_out):
            train, held_out = train[::2], held_out[1::2]
        train, held_out = _some(train, MAX_TRAIN), _some(held_out, MAX_HELD_OUT)
        usual, seen = measured(layout, train), measured(layout, held_out)
        self = cls._fit_distance(layout, usual, seen)
        images, others = _images(layout, train), _images(layout, held_out)
        found, rng = [], np.random.default_rng(SEED)
        both = images + [varied(image, rng) for image in images]
        for number, fault in enumerate(FAULTS):
            shown = both if SIGNS[fault] is None else images
            if discriminant := self._discriminant(fault, shown, others, rng):
                found.append((number, *discriminant))
        return self._with_faults(found)._with_pattern(usual, seen)

    @classmethod
    def _fit_distance(cls, layout: ImageLayout, usual: Values, seen: Values) -> Self:
        """Fit the Mahalanobis distance, without faults."""
        count = len(names(layout.size, layout.channels))
        statistics = usual[:, :count]
        low, centre, high = np.quantile(statistics, (0.16, 0.5, 0.84), axis=0)
        below, above = np.maximum(centre - low, FLOOR), np.maximum(high - centre, FLOOR)
        nothing = np.zeros((0, usual.shape[1])), np.ones((2, 1)), np.zeros(0, np.int64)
        bends = np.array([DISTANCE_BEND]).T
        blank = cls(
            layout,
            centre,
            below,
            above,
            np.zeros(count),
            np.eye(count),
            *nothing,
            bends,
            NO_PATTERN,
        )
        deviations = blank._limited(statistics)
        covariance = np.atleast_2d(np.cov(deviations.T))
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
        precision = np.asarray(np.linalg.inv(shrunk + RIDGE * np.eye(count)), np.float64)
        fitted = replace(blank, mean=deviations.mean(0), precision=precision)
        distances = np.array([fitted._distance(row) for row in seen])
        unit = _unit(distances)
        return replace(fitted, unit=np.array(unit)[:, None])

    def _discriminant(
        self, fault: str, images: Images, held_out: Images, rng: np.random.Generator
    ) -> tuple[Values, float, float, tuple[float, float]] | None:
        """Return weights, zero, unit and bend of a fault; None if held-out images do not show it.

        Args:
            fault: the fault's name.
            images: images to learn from.
            held_out: other images.
            rng: source of the faults.
        """
        pairs = [(part, [FAULTS[fault](one, rng) for one in part]) for part in (images, held_out)]
        learnt, seen = ([self._signs(fault, half) for half in pair] for pair in pairs)
        penalty = PENALTY if SIGNS[fault] else GRADIENT_PENALTY
        weights = _ridge(learnt[0], learnt[1], penalty)
        normal, wrong = (signs @ weights for signs in seen)
        zero, unit = _unit(normal)
        if (wrong > zero + unit).mean() < MIN_TOLD:
            return None
        half_way = SEPARATION * (float(np.quantile(wrong, WEAK)) - zero)
        bend = AMBIGUOUS.get(fault, FAULT_BEND[0])
        if fault in AMBIGUOUS and half_way > CLEAR * unit:
            bend = CLEAR_BEND
        placed = np.zeros(self._width)
        placed[self._places(fault)] = weights / math.sqrt(len(weights))
        return placed, zero, max(unit, half_way), (bend, FAULT_BEND[1])

    def _places(self, fault: str) -> NDArray[np.intp]:
        """Return the places of a fault's P signs among the statistics and gradients."""
        prefixes = SIGNS[fault]
        if prefixes is None:
            return np.arange(len(self._names), self._width)
        return np.flatnonzero([name.startswith(prefixes) for name in self._names])

    def _signs(self, fault: str, images: Images) -> Values:
        """Return the signs (N, P) of a fault, which weigh as much however many they are."""
        if SIGNS[fault] is None:
            signs = np.array([_directions(image) for image in images])
        else:
            statistics = np.array([_statistics(image) for image in images])
            signs = self._limited(statistics)[:, self._places(fault)]
        return signs / math.sqrt(signs.shape[1])

    def _with_faults(
        self, found: Sequence[tuple[int, Values, float, float, tuple[float, float]]]
    ) -> Self:
        """Return the same distance with these faults."""
        if not found:
            return self
        numbers, weights, zeros, units, bends = zip(*found, strict=True)
        return replace(
            self,
            weights=np.array(weights),
            unit=np.concatenate([self.unit, np.array([zeros, units])], axis=1),
            faults=np.array(numbers),
            bends=np.array([DISTANCE_BEND, *bends]).T,
        )

    def _with_pattern(self, usual: Values, seen: Values) -> Self:
        """Return the same distances, and that from the principal components of the gradients."""
        patterns = np.array([_pattern(row[len(self.centre) :]) for row in usual])
        mean = patterns.mean(0)
        components = np.linalg.svd(patterns - mean, full_matrices=False)[2]
        kept = components[: min(COMPONENTS, len(usual) // 2)]
        fitted = replace(self, pattern=np.concatenate([mean[None], kept]))
        unit = _unit(np.array([fitted._misfit(row) for row in seen]))
        return replace(
            fitted,
            unit=np.column_stack([self.unit, unit]),
            bends=np.column_stack([self.bends, PATTERN_BEND]),
        )

    # ------------------------------------------------------------ measuring

    def surprises(self, losses: Any, rates: Any, x: Matrix) -> Values:
        """Return the largest distance (N,) of each image (N, F)."""
        del losses, rates
        return np.array([self._distances(row).max() for row in self._measured(x)])

    def reasons(self, threshold: float, losses: Any, rates: Any, x: Matrix) -> Reasons:
        """Return a reason for each image with a distance above the threshold."""
        del losses, rates
        found: Reasons = np.full(len(x), None, object)
        for row, values in enumerate(self._measured(x)):
            if self._distances(values).max() > threshold:
                found[row] = self._reason(values)
        return found

    def reason(
        self, threshold: float, loss: float, rate: float, x: Matrix, is_complete: bool
    ) -> str | None:
        """Return the reason for a single image (1, F) with a distance above the threshold."""
        del is_complete
        found: str | None = self.reasons(threshold, loss, rate, x)[0]
        return found

    def _reason(self, values: Values) -> str:
        """Return the first fault that the image has, if any, else its most unusual statistic."""
        distance, *others = self._straight(values).tolist()
        names = [list(FAULTS)[number] for number in self.faults]
        shown = {name for name, other in zip(names, others, strict=False) if other > NAMED}
        if fault := next((name for name in WORDS if name in shown), None):
            return WORDS[fault]
        if len(self.pattern) and others[-1] > distance:
            return ARRANGEMENT
        deviations = self._deviations(values[: len(self._names)])
        place = int(np.abs(deviations).argmax())
        word = next(KINDS[prefix] for prefix in KINDS if self._names[place].startswith(prefix))
        return f"unlike the training images, most of all in: {word}"

    def _measured(self, x: Matrix) -> Values:
        return measured(self.layout, x, self._cells)

    def _distances(self, values: Values) -> Values:
        """Return the distances (J + 2,) of an image, in their units."""
        distances = self._straight(values)
        return _bent(distances, *self.bends) if self.bends.size else distances

    def _straight(self, values: Values) -> Values:
        """Return the distances (J + 2,) of an image before they are bent."""
        raw = [self._distance(values), *(self.weights @ self._signals(values))]
        if len(self.pattern):
            raw.append(self._misfit(values))
        return np.asarray((raw - self.unit[0]) / self.unit[1])

    def _misfit(self, values: Values) -> float:
        """Return the distance of an image's gradients from their principal components."""
        away = _pattern(values[len(self.centre) :]) - self.pattern[0]
        along = self.pattern[1:] @ away
        return math.sqrt(max(float(away @ away - along @ along), 0.0))

    def _distance(self, values: Values) -> float:
        """Return the Mahalanobis distance of an image."""
        statistics = values[: len(self.centre)]
        deviations = self._limited if self.bends.size else self._deviations
        away = deviations(statistics) - self.mean
        return float(np.sqrt(away @ self.precision @ away))

    def _limited(self, statistics: Values) -> Values:
        """Return statistics in deviations, which are clipped."""
        return np.clip(self._deviations(statistics), -CLIP, CLIP)

    def _deviations(self, statistics: Values) -> Values:
        away = statistics - self.centre
        return np.asarray(away / np.where(away < 0, self.below, self.above))

    def _signals(self, values: Values) -> Values:
        """Return statistics in deviations, clipped, and gradients (..., K + G)."""
        count = len(self.centre)
        return np.concatenate([self._limited(values[..., :count]), values[..., count:]], axis=-1)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return names(self.layout.size, self.layout.channels)

    @property
    def _width(self) -> int:
        return int(self.weights.shape[1])

    @property
    def _cells(self) -> int:
        """Number of cells per side of the gradients; older bundles have fewer."""
        return math.isqrt((self._width - len(self.centre)) // BINS)

    # ------------------------------------------------------------ storing

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the content of the bundle's file."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], encoding: ImageEncoding) -> Self:
        """Restore the distances from the content of the bundle's file.

        Raises:
            KeyError: a tensor is missing.
        """
        found = {"bends": np.zeros((2, 0)), "pattern": NO_PATTERN, **tensors}
        return cls(encoding.layout, *(found[field.name] for field in fields(cls)[1:]))


def measured(layout: ImageLayout, x: Matrix, cells: int = CELLS) -> Values:
    """Return the statistics and gradients (N, K + G) of encoded images (N, F)."""
    images = _images(layout, x)
    rows = [np.concatenate([_statistics(one), _directions(one, cells)]) for one in images]
    return np.array(rows) if rows else np.zeros((0, 1))


def _images(layout: ImageLayout, x: Matrix) -> Images:
    """Return encoded images (N, F) as images (C, S, S)."""
    return [image.reshape(layout.shape).astype(np.float64) for image in x]


def _statistics(channels: Values) -> Values:
    """Return the statistics (K,) of an image (C, S, S)."""
    return describe(channels.mean(0), channels if len(channels) == 3 else None)


def _directions(channels: Values, cells: int = CELLS) -> Values:
    """Return the gradients (G,) of an image (C, S, S)."""
    return gradients(standardise(channels.mean(0)), cells) / SPREAD


def _pattern(directions: Values) -> Values:
    """Return the gradients (P,) in larger cells."""
    return pooled(directions, PATTERN_CELLS)


def _ridge(normal: Values, wrong: Values, penalty: float) -> Values:
    """Return the weights (P,) that tell wrong from normal images, of as many signs (N, P)."""
    x = np.concatenate([normal, wrong])
    x = (x - x.mean(0)) / math.sqrt(len(x))
    target = np.repeat([-1.0, 1.0], [len(normal), len(wrong)]) / math.sqrt(len(x))
    if x.shape[1] <= len(x):
        return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ target)
    return np.asarray(x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), target))


def _bent(distances: Values, starts: Values, factors: Values) -> Values:
    """Return distances (J + 2,), which grow with their logarithm from ``starts`` on.

    >>> _bent(np.array([0.5, 20.0]), np.array([1.0, 2.0]), np.array([0.8, 0.1])).round(2).tolist()
    [0.5, 2.23]
    """
    beyond = np.maximum(distances, starts)
    return np.asarray(np.minimum(distances, starts + factors * np.log(beyond / starts)))


def _unit(distances: Values) -> tuple[float, float]:
    """Return the median of held-out distances, and how far their upper tail is from it."""
    zero, tail = np.quantile(distances, (0.5, TAIL))
    return float(zero), max(float(tail - zero), 1e-6)


def _some(x: Matrix, most: int) -> Matrix:
    return x[spread(len(x), most)]
