"""Wrap a bundle in scikit-learn's interface, for tables and images alike.

A fitted estimator holds a bundle, so that it scores exactly as the saved, registered and served
model does.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_is_fitted

from anomaly_vae.artifacts.bundle import Bundle, from_files, load_bundle
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config import Config
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.encoding import pooled_notes
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.errors import BundleError, ConfigError, DataError, NotCalibratedError
from anomaly_vae.estimators.arguments import (
    ARGUMENTS,
    configuration,
    documented,
    seed_of,
    value_at,
)
from anomaly_vae.estimators.explanations import Explanations
from anomaly_vae.estimators.holdout import ConfigT, Parts, split, warn_of_few_left
from anomaly_vae.estimators.progress import epoch_printer, print_note
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.monitoring.exchangeability import fit_reference
from anomaly_vae.scoring.detector import Detections, Explanation, explanations
from anomaly_vae.scoring.scorer import ScoredRows, ScoreParts
from anomaly_vae.scoring.unusual import (
    Typicality,
    UnusualTest,
    fit_unusual_test,
    learn_typicality,
)
from anomaly_vae.training.fit import fit_bundle, prepare
from anomaly_vae.training.known_anomalies import KnownChoice, known_choice
from anomaly_vae.training.trainer import OnEpoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SchemaT = TypeVar("SchemaT", TabularSchema, ImageSchema)
Scores = NDArray[np.float64]
MAX_PANELS = 12
"""Maximum number of rows or images in a figure."""
Data: TypeAlias = Any
"""Rows or images in any form that the estimator accepts."""


@dataclass(frozen=True, eq=False)
class FitInput(Generic[SchemaT]):
    """Rows that `fit` read, how they were read, and additions to the manifest."""

    schema: SchemaT
    batch: RawBatch
    origin: Mapping[str, Any]
    """Additions to the manifest's section ``data``."""
    notes: tuple[str, ...] = ()
    """Decisions about columns, for the user."""
    known: RawBatch | None = None
    """Known anomalies, which are not among the rows; None if the model learns from none."""


class VAEDetector(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn ships no types
    TransformerMixin,  # type: ignore[misc]
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
    Generic[ConfigT, SchemaT],
):
    """Outlier detector and transformer over a bundle, the base of both estimators."""

    KIND: ClassVar[str]
    """Kind of data, "tabular" or "image"."""
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]]
    """Configuration keys that each constructor argument sets."""

    alpha: float
    random_state: int | RandomState | None
    calibration_fraction: float | None
    verbose: int

    def __init_subclass__(cls, **options: Any) -> None:
        """Fill the placeholder for the arguments in a subclass's docstring."""
        super().__init_subclass__(**options)
        if cls.__doc__ and ARGUMENTS in cls.__doc__:
            cls.__doc__ = documented(cls.__doc__, cls.KIND, cls.KEYS, cls.__init__)

    def _store(self, arguments: Mapping[str, Any]) -> None:
        """Set each constructor argument as the attribute of the same name."""
        for name in self.KEYS:
            setattr(self, name, arguments[name])

    # ------------------------------------------------------------ left to each kind of data

    @abstractmethod
    def _fit_input(self, X: Data, y: object, config: ConfigT) -> FitInput[SchemaT]:
        """Read the X and y of `fit` and decide how later X is read."""

    @abstractmethod
    def _batch(self, X: Data) -> RawBatch:
        """Read X as the fitted model does, refusing rows that it cannot use."""

    @abstractmethod
    def inverse_transform(self, X: ArrayLike) -> Any:
        """Decode latents (N, L) into the most probable data."""

    @abstractmethod
    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Draw data from the model."""

    # ------------------------------------------------------------ fitting

    def fit(self, X: Data, y: object = None) -> Self:
        """Fit the model on normal rows or images and choose the threshold, ``-offset_``.

        Args:
            X: normal rows or images; leave known anomalies out, unless y marks them.
            y: (N,), known anomalies of tables, if ``known="auto"``: −1 beside 1 for normal rows as
                in `predict`, or 1 (true) beside 0 (false). Rows without a label (NaN, None) count
                as normal. Ignored otherwise.

        Raises:
            ConfigError: an argument does not fit.
            DataError, ValueError: X or y cannot be read.
            CalibrationError: there are too few rows for alpha.
            TrainingError: the fit diverged.
        """
        config = self._configuration()
        found = self._fit_input(X, y, config)
        config, parts = split(len(found.batch), config, self.calibration_fraction)
        self.bundle_ = _fit(config, found, parts, epoch_printer() if self.verbose else None)
        self.n_iter_ = int(self.bundle_.manifest["training"]["epochs"])
        self.notes_ = found.notes + pooled_notes(self.bundle_.manifest)
        if (choice := _known_choice(config, found)).wanted:
            self.notes_ += (str(choice),)
            print_note(str(choice), self.verbose)
        _warn_of_left_out(found.notes)
        if self.calibration_fraction is None:
            warn_of_few_left(parts, config.calibration.alpha)
        train, held_out = (found.batch.take(part) for part in (parts.train, parts.validation))
        learn = partial(learn_typicality, self.bundle_.scorer, train, held_out)
        return self._set_threshold(found.batch.take(parts.calibration), learn)

    def calibrate(self, X: Data) -> Self:
        """Replace the threshold by one chosen on other normal rows or images.

        Args:
            X: normal rows or images that the model was not fitted on.

        Raises:
            CalibrationError: there are too few rows for alpha.
        """
        return self._set_threshold(self._batch(X))

    def _set_threshold(
        self, batch: RawBatch, learn: Callable[[], Typicality] | None = None
    ) -> Self:
        settings = self._configuration(random_state=0).calibration  # draws no seed
        rows = self.bundle_.scorer.scored(batch)
        calibration = choose_threshold(CalibrationSample.from_scores(rows.scores), settings)
        if "note" in calibration.figures:
            warnings.warn(calibration.figures["note"], stacklevel=3)
        reference = fit_reference(self.bundle_.scorer.encoding, rows.x)
        unusual = self._fit_unusual_test(settings, batch, rows, learn)
        self.bundle_ = self.bundle_.calibrated(calibration, None, reference, unusual)
        self.offset_ = -calibration.threshold
        return self

    def _fit_unusual_test(
        self,
        settings: CalibrationConfig,
        batch: RawBatch,
        rows: ScoredRows,
        learn: Callable[[], Typicality] | None,
    ) -> UnusualTest | None:
        """Calibrate the test for unusual rows; without properties, learn them from every second."""
        scorer, previous = self.bundle_.scorer, self.bundle_.unusual
        if learn is None and previous:
            return fit_unusual_test(settings, rows, lambda: previous.typicality)
        if learn is None:
            even = batch.take(np.arange(0, len(batch), 2))
            learn = partial(learn_typicality, scorer, even, even)
            return fit_unusual_test(settings, rows.take(slice(1, None, 2)), learn)
        return fit_unusual_test(settings, rows, learn)

    def _configuration(self, **changed: Any) -> ConfigT:
        arguments = {name: getattr(self, name) for name in self.KEYS} | changed
        return cast("ConfigT", configuration(self.KIND, self.KEYS, arguments))

    def _schema(self) -> SchemaT:
        """Return how the fitted model reads X.

        Raises:
            NotFittedError: the estimator is not fitted.
        """
        check_is_fitted(self, "bundle_")
        return cast("SchemaT", self.bundle_.scorer.schema)

    # ------------------------------------------------------------ scores and decisions

    def score_samples(self, X: Data) -> Scores:
        """Return minus the anomaly score, (N,); higher is more normal."""
        return -self.anomaly_score(X)

    def anomaly_score(self, X: Data) -> Scores:
        """Return the anomaly score, (N,), in the unit of the bundle; higher is more anomalous."""
        batch = self._batch(X)
        return self.bundle_.scorer.score(batch)

    def decision_function(self, X: Data) -> Scores:
        """Return ``score_samples(X) − offset_``, (N,); negative for anomalies.

        If a loaded bundle has thresholds by group, each row is compared with that of its group.

        Raises:
            NotCalibratedError: a loaded bundle has no threshold yet.
        """
        found = self._detect(X)
        offset = self.offset_ if found.threshold is None else -found.threshold
        return np.asarray(-found.score - offset)

    def predict(self, X: Data) -> NDArray[np.int64]:
        """Return −1 for rows whose anomaly score exceeds the threshold, else 1; (N,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Data) -> Scores:
        """Return conformal p-values, (N,): (1 + #{held-out scores ≥ score}) / (n + 1).

        On rows exchangeable with the n held-out ones, P(p ≤ alpha) ≤ alpha (Vovk et al. 2005).
        """
        return self._detect(X).p_value

    def unusual_input(self, X: Data) -> NDArray[np.object_]:
        """Return for each row why it is unlike the training rows at all, else None; (N,).

        This answers another question than the score, and does not affect `predict`. Of rows
        exchangeable with the held-out ones, at most ``unusual_alpha`` are reported.

        Raises:
            NotCalibratedError: there is no test: too few rows were held out, ``unusual_alpha`` is
                0, or the bundle is older.
        """
        found = self._detect(X).unusual_input
        if found is None:
            raise NotCalibratedError(
                "this detector has no test for unusual rows; call calibrate(X) with at least "
                "2/unusual_alpha rows, and an unusual_alpha above 0"
            )
        return found

    def explain(self, X: Data, most: int | None = None) -> Explanations:
        """Split each row's anomaly score into contributions of columns or image regions.

        The result is a list with one explanation per row. Its method ``to_frame`` returns all of
        them as a data frame, which is also what a notebook shows.

        Args:
            X: rows or images.
            most: number of contributions to list per row, the largest first; None lists all.

        Returns:
            N explanations: ``contributions`` of columns, or ``regions`` of images.
        """
        batch = self._batch(X)
        return Explanations(self._explanations(batch, self.bundle_.scorer.explain(batch), most))

    def _explanations(
        self, batch: RawBatch, explained: ScoreParts, most: int | None
    ) -> list[Explanation]:
        return explanations(self.bundle_.scorer, batch, explained, most)

    # ------------------------------------------------------------ figures

    def plot_scores(self, X: Data, y: ArrayLike | None = None) -> Axes:
        """Draw a histogram of the anomaly scores with the threshold; ``.figure`` is the figure.

        Args:
            X: rows or images.
            y: (N,), true for known anomalies, which are drawn in another colour; None for none.

        Raises:
            NotCalibratedError: a loaded bundle has no threshold yet.
        """
        return self._histogram(self._detect(X).score, y)

    def plot_calibration(self) -> Axes:
        """Draw a histogram of the held-out scores from which the threshold was chosen.

        Raises:
            NotFittedError: the estimator is not fitted.
            NotCalibratedError: a loaded bundle has no threshold yet.
        """
        self._schema()
        return self._histogram(self.bundle_.detector.calibration.scores, None)

    def _histogram(self, scores: Scores, y: ArrayLike | None) -> Axes:
        anomaly = np.zeros(len(scores), bool) if y is None else np.asarray(y).astype(bool)
        if anomaly.shape != scores.shape:
            raise DataError(f"y has shape {anomaly.shape}, and there are {len(scores)} scores")
        axes: Axes = load_plots().score_histogram(self.bundle_.detector, scores, anomaly).axes[0]
        return axes

    def plot_explanation(self, X: Data, most: int = 8) -> Axes:
        """Draw what the scores of a few rows are made of; ``.figure`` is the whole figure.

        Args:
            X: rows; one panel is drawn for each, and the axes of the first are returned.
            most: number of contributions to draw per row, the largest first.
        """
        scores, found = self.anomaly_score(X), self.explain(X, most)
        titles = figure_titles(scores)
        unit, panels = self.bundle_.manifest["unit"], dict(zip(titles, found, strict=True))
        axes: Axes = load_plots().contributions(panels, unit=unit).axes[0]
        return axes

    def _detect(self, X: Data) -> Detections:
        batch = self._batch(X)
        if self.bundle_.calibration is None:
            raise NotCalibratedError("this detector has no threshold yet; call calibrate(X)")
        return self.bundle_.detector.detect(batch)

    # ------------------------------------------------------------ latent space

    def transform(self, X: Data) -> Scores:
        """Encode X into latents, (N, L): the means of q(z|x)."""
        batch = self._batch(X)
        return self.bundle_.scorer.explain(batch).latent.astype(np.float64)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """Return the names of the columns of `transform`: latent0, latent1, …

        Args:
            input_features: names to compare with those of the fit; None compares nothing.
        """
        count = len(super().get_feature_names_out(input_features))
        return np.array([f"latent{i}" for i in range(count)], object)

    @property
    def _n_features_out(self) -> int:
        scorer = self.bundle_.scorer
        nothing = np.zeros((0, scorer.encoding.layout.n_columns), np.float32)
        return int(scorer.explain_encoded(nothing).latent.shape[1])

    def _seed(self, random_state: int | RandomState | None) -> int:
        """Return the seed of a method's argument, or of the estimator if that is None."""
        return seed_of(self.random_state if random_state is None else random_state)

    # ------------------------------------------------------------ saving

    def save(self, path: str | Path) -> Path:
        """Write the bundle to a folder, which the command line and the service can read."""
        check_is_fitted(self, "bundle_")
        return self.bundle_.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return a fitted estimator from a bundle folder, written by `save` or the command line.

        Its arguments are those of the fit, with all sizes filled in. If the bundle has no
        threshold yet, `predict` needs a call of `calibrate` first.

        Raises:
            BundleError: the folder is no bundle, or its model is of another kind.
        """
        bundle = load_bundle(path)
        if (kind := bundle.manifest["kind"]) != cls.KIND:
            raise BundleError(f"'{path}' holds a model of kind '{kind}', not '{cls.KIND}'")
        estimator = cls(**cls._arguments(bundle.manifest))
        estimator._adopt(bundle)
        return estimator

    @classmethod
    def _arguments(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that a manifest records, the inverse of `configuration`."""
        config = manifest["config"]
        found: dict[str, Any] = {
            argument: value_at(config, keys[0]) for argument, keys in cls.KEYS.items() if keys
        }
        if not isinstance(found["calibration_fraction"], float):
            found["calibration_fraction"] = None  # an interval of time
        found["unusual_alpha"] = _unusual_alpha(manifest)
        calibration = manifest["calibration"] or {}
        return found | {key: calibration[key] for key in ("alpha", "method") if key in calibration}

    def _adopt(self, bundle: Bundle) -> None:
        """Set the attributes of a fitted estimator from a bundle."""
        self.bundle_, self.notes_ = bundle, ()
        self.n_iter_ = int(bundle.manifest["training"]["epochs"])
        if bundle.calibration is not None:
            self.offset_ = -bundle.calibration.threshold

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with the bundle as bytes, because scoring sessions cannot be pickled."""
        state = dict(super().__getstate__())
        if "bundle_" in state:
            state["bundle_"] = state["bundle_"].files
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state that `__getstate__` returned."""
        if "bundle_" in state:
            state = {**state, "bundle_": from_files(state["bundle_"])}
        super().__setstate__(state)


# ---------------------------------------------------------------- figures


def load_plots() -> ModuleType:
    """Import the figures.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from anomaly_vae import plots
    except ImportError as error:
        message = f"{error}; figures need: pip install 'anomaly-vae[train]'"
        raise ConfigError(message) from None
    return plots


def figure_titles(scores: Scores) -> list[str]:
    """Return the title of each row in a figure.

    Raises:
        DataError: there are no rows, or more than a figure can show.
    """
    if not 0 < len(scores) <= MAX_PANELS:
        raise DataError(f"a figure shows 1 to {MAX_PANELS} rows, got {len(scores)}; pass fewer")
    return [f"row {row}: score {score:.4g}" for row, score in enumerate(scores)]


# ---------------------------------------------------------------- rows


def usable(batch: RawBatch, hint: str = "") -> RawBatch:
    """Return the batch if every row can be used.

    Args:
        batch: rows or images.
        hint: remedy to add to the message.

    Raises:
        DataError: a row cannot be used; the message names the first and counts them.
    """
    if not batch.problems:
        return batch
    first, rows = batch.problems[0], int((~batch.usable).sum())
    more = f" ({rows} rows cannot be used)" if rows > 1 else ""
    raise DataError(f"X, {first}{hint}{more}", column=first.column)


def _fit(config: Config, found: FitInput[Any], parts: Parts, on_epoch: OnEpoch | None) -> Bundle:
    """Fit a bundle without a threshold."""
    batch = found.batch
    train, validation = batch.take(parts.train), batch.take(parts.validation)
    prepared = prepare(config, found.schema, train, validation, known=found.known)
    encoded = prepared.encoding.encode(batch).tobytes()
    if prepared.known is not None and _known_choice(config, found).on:
        encoded += prepared.known.tobytes()
    data = {
        **found.origin,
        "rows": len(batch),
        "splits": {name: len(rows) for name, rows in parts._asdict().items()},
        "digest": hashlib.sha256(encoded).hexdigest(),
    }
    return fit_bundle(config, prepared, data, on_epoch).bundle


def _known_choice(config: Config, found: FitInput[Any]) -> KnownChoice:
    return known_choice(config, 0 if found.known is None else len(found.known))


def _unusual_alpha(manifest: Mapping[str, Any]) -> float | None:
    """Return the argument that gave a model its test; None for the default, 0 for no test."""
    if test := manifest.get("unusual"):
        return float(test["alpha"])
    older = "unusual_alpha" not in manifest["config"]["calibration"]
    return None if older or manifest["config"]["calibration"]["unusual_alpha"] else 0


def _warn_of_left_out(notes: Sequence[str]) -> None:
    for note in notes:
        if "left out" in note:
            warnings.warn(note, stacklevel=3)
