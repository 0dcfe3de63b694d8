"""Test whether rows or images are like the training data at all.

A score answers how improbable a row is under the model. Input that is no such row may still have a
low score: a row without values, a blank or blurred image. This test measures simple properties,
takes the most surprising one of each row, and compares it with those of the calibration rows. Its
p-values are conformal, so that at most `alpha` of the rows that are exchangeable with the
calibration rows are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, Scores, calibrate, scores_needed
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.encoding import Matrix, TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import spread
from anomaly_vae.errors import CalibrationError
from anomaly_vae.scoring.modality import Encoding
from anomaly_vae.scoring.scorer import ScoredRows, Scorer

Reasons = NDArray[np.object_]
"""Reason (N,) of each row that is reported; None for the others."""

MAX_REFERENCE = 1_000
"""Maximum number of held-out rows that properties are compared with."""


class Typicality(Protocol):
    """Properties of rows, each on a scale on which larger means more surprising."""

    def surprises(self, losses: Scores, rates: Scores, x: Matrix) -> Scores:
        """Return the largest surprise (N,) of each row."""
        ...

    def reasons(self, threshold: float, losses: Scores, rates: Scores, x: Matrix) -> Reasons:
        """Return a reason for each row with a surprise above the threshold."""
        ...

    def reason(
        self, threshold: float, loss: float, rate: float, x: Matrix, is_complete: bool
    ) -> str | None:
        """Return the reason for a lone row (1, F), if its surprise is above the threshold."""
        ...

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the content of the bundle's file."""
        ...


@dataclass(frozen=True, eq=False)
class UnusualTest:
    """A test with its calibration: ``calibration.scores`` (n,) are surprises.

    >>> reference = np.linspace(0, 1, 99)
    >>> typicality = TableTypicality(reference, reference, np.zeros(99), np.arange(2))
    >>> x = np.zeros((99, 2), np.float32)
    >>> test = UnusualTest.fit(typicality, 0.1, reference, reference, x)
    >>> missing = np.array([[np.nan, np.nan]], np.float32)
    >>> test.reasons(np.array([0.5]), np.array([0.5]), missing).tolist()
    ['2 of 2 columns have no value, where none is usual']
    >>> test.reasons(np.array([0.5]), np.array([0.5]), x[:1]).tolist()
    [None]
    """

    typicality: Typicality
    calibration: Calibration

    @classmethod
    def fit(
        cls, typicality: Typicality, alpha: float, losses: Scores, rates: Scores, x: Matrix
    ) -> Self:
        """Calibrate the test on n rows that neither trained the model nor set the properties.

        Args:
            typicality: the properties.
            alpha: highest accepted fraction of normal rows that are reported.
            losses: (n,) scores without the rate.
            rates: (n,) rates, the rest of the scores.
            x: (n, F) encoded rows.

        Raises:
            CalibrationError: there are too few rows for alpha.
        """
        return cls(typicality, calibrate(typicality.surprises(losses, rates, x), alpha))

    @property
    def alpha(self) -> float:
        """Highest accepted fraction of normal rows that are reported."""
        return self.calibration.alpha

    def reasons(self, losses: Scores, rates: Scores, x: Matrix) -> Reasons:
        """Return the reason (N,) of each unusual row, None for the others; see `fit`."""
        return self.typicality.reasons(self.calibration.threshold, losses, rates, x)

    def reason(self, loss: float, rate: float, x: Matrix, is_complete: bool) -> str | None:
        """Return the reason of a lone row (1, F), None if it is not unusual; see `reasons`.

        Args:
            loss: its score without the rate.
            rate: its rate.
            x: the row.
            is_complete: whether no value is missing.
        """
        threshold = self.calibration.threshold
        return self.typicality.reason(threshold, loss, rate, x, is_complete)

    def summary(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {"alpha": self.alpha, "n": len(self.calibration.scores)}

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the content of the bundle's file."""
        return {"surprises": self.calibration.scores, **self.typicality.tensors()}

    @classmethod
    def restore(
        cls, summary: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], encoding: Encoding
    ) -> Self:
        """Restore a test from the results of `summary` and `tensors`.

        Raises:
            KeyError: a tensor is missing.
        """
        calibration = calibrate(tensors["surprises"], summary["alpha"])
        return cls(_kind(encoding).from_tensors(tensors, encoding), calibration)


def learn_typicality(scorer: Scorer, train: RawBatch, held_out: RawBatch) -> Typicality:
    """Learn the properties of rows from training rows, for images, and from held-out rows."""
    held_out = held_out.take(spread(len(held_out), MAX_REFERENCE))
    train = train.take(spread(len(train), MAX_REFERENCE))
    rows = scorer.scored(held_out)
    kind = _kind(scorer.encoding)
    found: Typicality = kind.fit(
        scorer.encoding, scorer.encoding.encode(train), rows.x, *rows.terms
    )
    return found


def fit_unusual_test(
    config: CalibrationConfig,
    calibration: ScoredRows,
    learn: Callable[[], Typicality],
) -> UnusualTest | None:
    """Learn and calibrate the test that a configuration asks for; None if it asks for none.

    Args:
        config: the configuration of the calibration.
        calibration: n rows that neither trained the model nor are learnt from.
        learn: function that learns the properties of rows.

    Raises:
        CalibrationError: there are too few rows for an ``unusual_alpha`` that was given; with the
            default there is then no test.
    """
    if not is_tested(config, len(calibration.scores)):
        return None
    return UnusualTest.fit(learn(), config.unusual_alpha or 0.0, *calibration.terms, calibration.x)


def is_tested(config: CalibrationConfig, n: int) -> bool:
    """Return whether n calibration rows are tested for being unusual.

    Raises:
        CalibrationError: they are too few for an ``unusual_alpha`` that was given.
    """
    if not config.unusual_alpha:
        return False
    problem = too_few(config.unusual_alpha, n)
    if problem and "unusual_alpha" in config.model_fields_set:
        raise CalibrationError(problem)
    return not problem


def too_few(alpha: float, n: int) -> str:
    """Return what is wrong if n calibration rows are too few for this alpha, else nothing."""
    needed = scores_needed(alpha)
    if n >= needed:
        return ""
    return (
        f"calibration.unusual_alpha {alpha:g} needs {needed} normal calibration rows, there are "
        f"{n}; give more rows, raise it to {math.ceil(1e4 / (n + 1)) / 1e4:g} or more, or leave "
        "the test out (calibration.unusual_alpha: null)"
    )


def _kind(encoding: Encoding) -> Any:
    """Return the class of the properties; that of images is imported only for images."""
    if isinstance(encoding, TabularEncoding):
        return TableTypicality
    from anomaly_vae.images.unusual.typicality import ImageTypicality

    return ImageTypicality


# ---------------------------------------------------------------- tables


class Limits(NamedTuple):
    """Values beyond which the properties of a row are unusual."""

    low_loss: float
    high_loss: float
    rate: float
    missing: float


@dataclass(frozen=True, eq=False)
class TableTypicality:
    """Properties of rows of a table, compared with those (H,) of held-out rows, sorted.

    The columns' share of the score, ``losses``, is surprising if it is high or low: a row that
    lacks values, or has the most typical value in every column, fits too well. The rate and the
    number of missing values are surprising if they are high.

    A surprise is −log of the fraction of held-out rows with the value or a more extreme one. Beyond
    all of them it grows linearly, as it does in an exponential tail.

    Args:
        losses: (H,) scores of the held-out rows without the rate.
        rates: (H,) their rates.
        missing: (H,) their numbers of columns without a value.
        positions: (C,) a cell of each column in an encoded row.
    """

    losses: Scores
    rates: Scores
    missing: Scores
    positions: NDArray[np.intp]

    @classmethod
    def fit(
        cls,
        encoding: TabularEncoding,
        train: Matrix,
        held_out: Matrix,
        losses: Scores,
        rates: Scores,
    ) -> Self:
        """Take the properties of H held-out rows (H, F)."""
        del train
        positions = _positions(encoding)
        missing = np.sort(_missing(held_out, positions))
        return cls(np.sort(losses), np.sort(rates), missing, positions)

    def surprises(self, losses: Scores, rates: Scores, x: Matrix) -> Scores:
        """Return the largest surprise (N,) of each row."""
        values = -losses, losses, rates, _missing(x, self.positions)
        pairs = zip(self._samples, values, strict=True)
        surprises: Scores = np.max([tail(value) for tail, value in pairs], axis=0)
        return surprises

    @cached_property
    def _samples(self) -> tuple[Tail, Tail, Tail, Tail]:
        """The upper tails of the properties, in the order of `Limits`."""
        return Tail(-self.losses[::-1]), Tail(self.losses), Tail(self.rates), Tail(self.missing)

    @lru_cache(maxsize=1)  # noqa: B019  # one threshold per object
    def limits(self, threshold: float) -> Limits:
        """Return the values at which the surprise reaches the threshold."""
        low, *high = (tail.limit(threshold) for tail in self._samples)
        return Limits(-low, *high)

    def reasons(self, threshold: float, losses: Scores, rates: Scores, x: Matrix) -> Reasons:
        """Return a reason for each row with a surprise above the threshold."""
        limits, found = self.limits(threshold), np.empty(len(x), object)
        if len(x) == 1:
            found[0] = self._reason(limits, losses.item(), rates.item(), x)
            return found
        for mask, reason in zip(_unusual_terms(limits, losses, rates), TABLE_REASONS, strict=True):
            found[mask] = reason
        missing = _missing(x, self.positions)
        for row in np.flatnonzero(missing > limits.missing).tolist():
            found[row] = self._reason_of_missing(int(missing[row]), limits)
        return found

    def reason(
        self, threshold: float, loss: float, rate: float, x: Matrix, is_complete: bool
    ) -> str | None:
        """Return the reason for a lone row (1, F), if its surprise is above the threshold."""
        return self._reason(self.limits(threshold), loss, rate, None if is_complete else x)

    def _reason(self, limits: Limits, loss: float, rate: float, x: Matrix | None) -> str | None:
        """Return the reason for a lone row (1, F), None for one without missing values."""
        row = [] if x is None else x[0].tolist()
        missing = sum(map(math.isnan, row)) and sum(math.isnan(row[i]) for i in self._cells)
        if missing > limits.missing:
            return self._reason_of_missing(missing, limits)
        found = list(compress(TABLE_REASONS, _unusual_terms(limits, loss, rate)))
        return found[-1] if found else None

    @cached_property
    def _cells(self) -> list[int]:
        """The positions as plain numbers."""
        return list(map(int, self.positions))

    def _reason_of_missing(self, count: int, limits: Limits) -> str:
        usual = f"at most {int(limits.missing)}" if limits.missing >= 1 else "none"
        return f"{count} of {len(self.positions)} columns have no value, where {usual} is usual"

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the content of the bundle's file."""
        return {"losses": self.losses, "rates": self.rates, "missing": self.missing}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], encoding: TabularEncoding) -> Self:
        """Restore the properties from the content of the bundle's file.

        Raises:
            KeyError: a tensor is missing.
        """
        losses, rates, missing = (tensors[name] for name in ("losses", "rates", "missing"))
        return cls(losses, rates, missing, _positions(encoding))


def _unusual_terms(limits: Limits, losses: Any, rates: Any) -> tuple[Any, Any, Any]:
    """Return which terms are unusual, in the order of `TABLE_REASONS`."""
    return rates > limits.rate, losses > limits.high_loss, losses < limits.low_loss


TABLE_REASONS = (
    "the combination of values is farther from the training rows than usual",
    "the values fit the model worse than usual",
    "the values are closer to the expected ones than usual, in all columns together",
)
"""Reasons of rows of tables that lack no values, the most telling one last."""


MIN_SCALE = 1e-3
"""Least unit of values beyond a sample, for samples of a single value."""


class Tail:
    """Surprises of values by a sorted sample (H,), the larger the more surprising."""

    def __init__(self, sample: Scores) -> None:
        self._sample, self._largest = sample, float(sample[-1])
        self._top = float(np.log(len(sample) + 1.0))
        away = self._largest - float(sample[len(sample) // 2])
        self._scale = max(away / self._top, MIN_SCALE)

    def __call__(self, values: Scores) -> Scores:
        """Return the surprise of each of the values (N,)."""
        n = len(self._sample)
        reaching = n - np.searchsorted(self._sample, values, side="left")
        beyond = np.maximum(values - self._largest, 0.0) / self._scale
        return np.asarray(self._top - np.log(1.0 + reaching) + beyond, np.float64)

    def limit(self, surprise: float) -> float:
        """Return the largest value whose surprise does not exceed this one."""
        allowed = self._sample[self(self._sample) <= surprise]
        if surprise < self._top or not len(allowed):
            return float(allowed[-1]) if len(allowed) else -np.inf
        return self._largest + (surprise - self._top) * self._scale


def _positions(encoding: TabularEncoding) -> NDArray[np.intp]:
    return np.fromiter(encoding.first_positions.values(), np.intp)


def _missing(x: Matrix, positions: NDArray[np.intp]) -> Scores:
    """Return the number (N,) of columns without a value."""
    cells = x if len(positions) == x.shape[1] else x[:, positions]
    return np.asarray(np.isnan(cells).sum(axis=1), np.float64)
