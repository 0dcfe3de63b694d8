"""Measure how far an image is from the training images, and which fault it seems to have.

Simple statistics of an image (`images.unusual.statistics`) are compared with those of training
images in two ways. A Mahalanobis distance measures how unlikely they are altogether, whatever the
cause. Linear discriminants, learnt from training images with simulated faults
(`images.unusual.faults`), recognise faults that are expected: blur, noise, a blank half, an image
that is turned, upside down or inverted. A fault that held-out images do not show reliably is left
out. No label is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.splitting import spread
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.unusual.faults import FAULTS
from anomaly_vae.images.unusual.statistics import describe, gradients, names, standardise

Values = NDArray[np.float64]
Reasons = NDArray[np.object_]

MAX_TRAIN, MAX_HELD_OUT = 600, 200
"""Maximum number of training and of held-out images that are measured."""
SEED = 0
"""Seed of simulated faults."""
SHRINKAGE, RIDGE, FLOOR = 0.1, 0.05, 0.01
"""Weight of the diagonal in the covariance, variance added to it, and smallest deviation."""
SPREAD = 0.3
"""Typical deviation of an entry of the gradients, which are divided by it."""
CLIP = 8.0
"""Limit of statistics, in deviations."""
BENDS = ((1.0, 1.0), (1.8, 0.3))
"""Where the Mahalanobis distance and the discriminants bend to a logarithm, and its factors.

Among normal images a few are far from the others, and would alone decide which distance is unusual.
"""
PENALTY = 1e-3
"""Ridge penalty of discriminants, per image."""
TAIL = 0.98
"""Quantile of held-out images that gives each distance its unit."""
SEPARATION = 0.5
"""Share of the distance between an image and one with a fault that is the least unit."""
NAMED = 1.4
"""Distance from which on an unusual image is said to have a fault; 1 is half of the way to it."""
WEAK, MIN_TOLD = 0.05, 0.7
"""Quantile of images with a fault that measures that distance; smallest share that is told."""

SIGNS: Mapping[str, tuple[str, ...] | None] = {
    "half blank": ("blank", "constant", "left-right", "up-down", "quantile", "bright centre"),
    "noisy": ("detail", "background", "constant", "diagonal", "darkest"),
    "blurred": ("detail",),
    "inverted": ("quantile", "skewness", "kurtosis", "border", "darkest", "brightest"),
    "turned": None,
    "upside down": None,
}
"""Beginnings of the names of the statistics that show a fault; None for all, with gradients."""
WORDS = {
    "half blank": "large parts have a single value",
    "noisy": "looks noisy",
    "blurred": "looks blurred",
    "inverted": "dark and bright look exchanged",
    "turned": "looks turned by 90°",
    "upside down": "looks upside down",
}
"""Reason for each fault."""
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
    """Distances of images from the training images: J + 1 for J faults, in comparable units.

    Args:
        layout: shape of the images.
        centre: (K,) medians of the statistics.
        below: (K,) deviations of values below the median.
        above: (K,) deviations of values above it.
        mean: (K,) means of the statistics in these deviations.
        precision: (K, K) inverse of their covariance.
        weights: (J, K + G) discriminants of statistics and gradients.
        unit: (2, J + 1) distance that counts as 0, and the unit, of each distance.
        faults: (J,) numbers of the faults, in the order of `FAULTS`.
        bends: (2, J + 1) distances at which each distance bends to a logarithm, and its factors;
            (2, 0) in older bundles, which bend none and do not limit the Mahalanobis distance.
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

    # ------------------------------------------------------------ learning

    @classmethod
    def fit(
        cls, encoding: ImageEncoding, train: Matrix, held_out: Matrix, losses: Any, rates: Any
    ) -> Self:
        """Learn from T training and H held-out images, (T, F) and (H, F), encoded."""
        del losses, rates
        layout = encoding.layout
        train, held_out = _some(train, MAX_TRAIN), _some(held_out, MAX_HELD_OUT)
        usual, seen = measured(layout, train), measured(layout, held_out)
        self = cls._fit_distance(layout, usual, seen)
        rng = np.random.default_rng(SEED)
        found = []
        for number, fault in enumerate(FAULTS):
            pair = [_with_fault(layout, images, fault, rng) for images in (train, held_out)]
            if discriminant := self._discriminant(fault, usual, seen, *pair):
                found.append((number, *discriminant))
        return self._with_faults(found)

    @classmethod
    def _fit_distance(cls, layout: ImageLayout, usual: Values, seen: Values) -> Self:
        """Fit the Mahalanobis distance, without faults."""
        count = len(names(layout.size, layout.channels))
        statistics = usual[:, :count]
        low, centre, high = np.quantile(statistics, (0.16, 0.5, 0.84), axis=0)
        below, above = np.maximum(centre - low, FLOOR), np.maximum(high - centre, FLOOR)
        nothing = np.zeros((0, usual.shape[1])), np.ones((2, 1)), np.zeros(0, np.int64)
        bends = np.array(BENDS[:1]).T
        blank = cls(layout, centre, below, above, np.zeros(count), np.eye(count), *nothing, bends)
        deviations = blank._limited(statistics)
        covariance = np.atleast_2d(np.cov(deviations.T))
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
        precision = np.asarray(np.linalg.inv(shrunk + RIDGE * np.eye(count)), np.float64)
        fitted = replace(blank, mean=deviations.mean(0), precision=precision)
        distances = np.array([fitted._distance(row) for row in seen])
        unit = _unit(distances)
        return replace(fitted, unit=np.array(unit)[:, None])

    def _discriminant(
        self, fault: str, usual: Values, seen: Values, faulty: Values, seen_faulty: Values
    ) -> tuple[Values, float, float] | None:
        """Return weights, zero and unit of a fault; None if held-out images do not show it."""
        mask = self._signs(fault)
        a, b = (self._signals(rows) * mask for rows in (usual, faulty))
        x = np.concatenate([a, b])
        centred = x - x.mean(0)
        target = np.repeat([-1.0, 1.0], [len(a), len(b)])
        gram = centred.T @ centred + PENALTY * len(x) * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, centred.T @ target) * mask
        normal, wrong = (self._signals(rows) @ weights for rows in (seen, seen_faulty))
        zero, unit = _unit(normal)
        if (wrong > zero + unit).mean() < MIN_TOLD:
            return None
        return weights, zero, max(unit, SEPARATION * (float(np.quantile(wrong, WEAK)) - zero))

    def _signs(self, fault: str) -> Values:
        """Return the weight (K + G,) of each statistic and gradient as a sign of a fault."""
        prefixes, every = SIGNS[fault], self._names
        if prefixes is None:
            signs, shown = np.ones(len(every)), 1.0
        else:
            signs, shown = np.array([float(name.startswith(prefixes)) for name in every]), 0.0
        gradient = np.full(self._width - len(every), shown)
        return np.concatenate([signs / np.sqrt(signs.sum()), gradient / np.sqrt(len(gradient))])

    def _with_faults(self, found: Sequence[tuple[int, Values, float, float]]) -> Self:
        """Return the same distance with these faults."""
        if not found:
            return self
        numbers, weights, zeros, units = zip(*found, strict=True)
        unit = np.concatenate([self.unit, np.array([zeros, units])], axis=1)
        bends = np.array([BENDS[0], *(BENDS[1] for _ in found)]).T
        faults = np.array(numbers)
        return replace(self, weights=np.array(weights), unit=unit, faults=faults, bends=bends)

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
            distances = self._distances(values)
            if distances.max() > threshold:
                found[row] = self._reason(values, distances)
        return found

    def reason(
        self, threshold: float, loss: float, rate: float, x: Matrix, is_complete: bool
    ) -> str | None:
        """Return the reason for a single image (1, F) with a distance above the threshold."""
        del is_complete
        found: str | None = self.reasons(threshold, loss, rate, x)[0]
        return found

    def _reason(self, values: Values, distances: Values) -> str:
        """Return the first fault that the image has, if any, else its most unusual statistic."""
        has = np.flatnonzero(distances[1:] > NAMED).tolist()
        if has:
            return WORDS[list(FAULTS)[self.faults[has[0]]]]
        deviations = self._deviations(values[: len(self._names)])
        place = int(np.abs(deviations).argmax())
        word = next(KINDS[prefix] for prefix in KINDS if self._names[place].startswith(prefix))
        return f"unlike the training images, most of all in: {word}"

    def _measured(self, x: Matrix) -> Values:
        return measured(self.layout, x)

    def _distances(self, values: Values) -> Values:
        """Return the distances (J + 1,) of an image, in their units."""
        raw = np.concatenate([[self._distance(values)], self.weights @ self._signals(values)])
        distances = np.asarray((raw - self.unit[0]) / self.unit[1])
        return _bent(distances, *self.bends) if self.bends.size else distances

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
        without_bends = {"bends": np.zeros((2, 0)), **tensors}
        return cls(encoding.layout, *(without_bends[f.name] for f in fields(cls)[1:]))


def measured(layout: ImageLayout, x: Matrix) -> Values:
    """Return the statistics and gradients (N, K + G) of encoded images (N, F)."""
    rows = [_measure(layout, image) for image in x]
    return np.array(rows) if rows else np.zeros((0, 1))


def _measure(layout: ImageLayout, image: Matrix) -> Values:
    channels = image.reshape(layout.shape).astype(np.float64)
    return _measure_channels(channels)


def _measure_channels(channels: Values) -> Values:
    """Return the statistics and gradients of an image (C, S, S)."""
    grey = channels.mean(0)
    colour = channels if len(channels) == 3 else None
    return np.concatenate([describe(grey, colour), gradients(standardise(grey)) / SPREAD])


def _with_fault(layout: ImageLayout, x: Matrix, fault: str, rng: np.random.Generator) -> Values:
    """Return the statistics and gradients of images with a simulated fault."""
    images = (image.reshape(layout.shape).astype(np.float64) for image in x)
    return np.array([_measure_channels(FAULTS[fault](image, rng)) for image in images])


def _bent(distances: Values, starts: Values, factors: Values) -> Values:
    """Return distances (J + 1,), which grow with their logarithm from ``starts`` on.

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
