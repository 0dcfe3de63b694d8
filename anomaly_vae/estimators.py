"""The detector as a scikit-learn estimator.

    detector = TabularVAEDetector(alpha=0.01).fit(normal)
    detector.predict(new)          # 1 normal, −1 anomalous
    detector.p_values(new)         # P(p ≤ alpha) ≤ alpha on normal rows

A fitted estimator is a bundle with scikit-learn's verbs: what scores here is what is saved,
registered and served.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly_vae import generation
from anomaly_vae.bundle import Bundle, from_files, load
from anomaly_vae.calibration import calibrate, scores_needed
from anomaly_vae.config import Config, Feature, validate_config
from anomaly_vae.detector import Explanation, explanations
from anomaly_vae.errors import BundleError, CalibrationError, DataError, NotCalibratedError
from anomaly_vae.fitting import fit_bundle, prepare
from anomaly_vae.frames import table_of
from anomaly_vae.inference import Inferred, infer_schema
from anomaly_vae.schema import ColumnType, RawBatch, listed

Scores = NDArray[np.float64]
Frame = ArrayLike | pd.DataFrame | pa.Table
"""What X may be: numbers in two dimensions, or named columns of any type."""

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "preset": ("preset",),
    "alpha": ("calibration.alpha",),
    "method": ("calibration.method",),
    "score": ("score.type",),
    "draws": ("score.draws",),
    "model": ("model.type",),
    "latent_dim": ("model.latent_dim",),
    "hidden_dim": ("model.hidden_dim",),
    "depth": ("model.depth",),
    "likelihood": ("model.likelihood",),
    "variance_floor": ("model.variance_floor",),
    "epochs": ("training.epochs",),
    "batch_size": ("training.batch_size",),
    "learning_rate": ("training.learning_rate",),
    "weight_decay": ("training.weight_decay",),
    "clip_norm": ("training.clip_norm",),
    "beta": ("training.beta",),
    "kl_warmup": ("training.kl_warmup",),
    "free_bits": ("training.free_bits",),
    "hide": ("training.hide",),
    "patience": ("training.patience",),
    "threads": ("training.threads",),
    "device": ("training.device",),
    "features": ("data.features",),
    "calibration_fraction": ("data.splits.calibration",),
    "validation_fraction": ("data.splits.validation",),
    "random_state": ("training.seed", "score.seed", "data.splits.seed"),
}
"""Constructor argument → the keys of the configuration that it sets."""

MIN_FIT = 5
"""The fewest rows that must be left to fit, early stopping included."""
LARGEST_SEED = 2**31 - 1


class Parts(NamedTuple):
    """Positions of the rows that train, stop and calibrate; disjoint."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


class TabularVAEDetector(  # type: ignore[misc]  # scikit-learn ships no types
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator
):
    """Anomaly detection in tables with a variational autoencoder and a conformal threshold.

    `fit` learns what normal rows look like (y is ignored; leave known anomalies out) from all
    but a held-out share of the rows, whose scores give the threshold ``-offset_``. On rows
    exchangeable with those held out, `predict` returns −1 with probability at most ``alpha``
    (Vovk et al. 2005). That takes at least 1/alpha − 1 held-out rows: 19 for 0.05, 99 for 0.01.
    Where ``calibration_fraction`` is less, as many as needed are held out, as long as 5 rows
    are left to fit; where even that fails, `fit` refuses and says how many rows or which alpha
    would do. `calibrate` replaces the threshold by one from fresh rows.

    X is a numeric array (NaN is missing), or a pandas DataFrame or pyarrow Table whose columns
    may be numeric, binary, categorical or dates, found by name: their order is free, further
    columns are ignored, and a column the model reads must be there. In arrays every column is
    numeric unless ``features`` says otherwise; they call column 0 ``x0``. Infinity is refused.

    Args:
        preset: "fast", "default" or "best"; arguments left at None follow it.
        alpha: share of normal rows that may be flagged.
        score: "neg_elbo", "reconstruction" or "importance_weighted", in nats.
        epochs: upper bound; None: about 2,000 steps, 5 to 300 epochs.
        random_state: of everything random, the held-out rows too. An int makes fits repeat;
            None draws a new one from numpy's global state.
        method: "conformal" (default) keeps alpha; "quantile" is the plain empirical quantile.
        draws: posterior draws behind a score, frozen when fitted.
        model: "vae" (default) or "autoencoder".
        latent_dim: None: half the encoded columns, 2 to 16.
        hidden_dim: None: twice the encoded columns as a power of two, 32 to 256.
        depth: hidden layers in encoder and decoder; 0 is linear.
        likelihood: of numeric columns, "gaussian" (default) or "student_t".
        variance_floor: smallest variance of a standardised numeric column.
        batch_size: None: a 32nd of the rows as a power of two, 32 to 512.
        learning_rate: peak of the cosine schedule.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        beta: weight of the KL term.
        kl_warmup: share of the steps over which beta rises from 0.
        free_bits: nats per latent dimension that cost nothing.
        hide: share of the cells hidden in each batch, so that missing ones are met.
        patience: epochs without a better validation ELBO before stopping.
        threads: of the CPU while fitting.
        device: "auto", "cpu" or "cuda".
        features: names of the columns to read, or a mapping from name to type ("numeric",
            "binary", "categorical", "datetime", or a `config.Feature`). None: all, their types
            inferred.
        calibration_fraction: share of the rows held out for the threshold, 0.2.
        validation_fraction: share of the others that decides when to stop, 0.1.

    Attributes:
        offset_: minus the threshold; ``decision_function = score_samples − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: epochs trained.
        n_features_in_: columns of X.
        feature_names_in_: their names, where all are strings.
        notes_: what was decided about columns on the way.
    """

    def __init__(
        self,
        *,
        preset: Literal["fast", "default", "best"] = "default",
        alpha: float = 0.05,
        score: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo",
        epochs: int | None = None,
        random_state: int | RandomState | None = 0,
        method: Literal["conformal", "quantile"] | None = None,
        draws: int | None = None,
        model: Literal["vae", "autoencoder"] | None = None,
        latent_dim: int | None = None,
        hidden_dim: int | None = None,
        depth: int | None = None,
        likelihood: Literal["gaussian", "student_t"] | None = None,
        variance_floor: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        beta: float | None = None,
        kl_warmup: float | None = None,
        free_bits: float | None = None,
        hide: float | None = None,
        patience: int | None = None,
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        features: Sequence[str] | Mapping[str, str | Feature] | None = None,
        calibration_fraction: float | None = None,
        validation_fraction: float | None = None,
    ) -> None:
        self.preset = preset
        self.alpha = alpha
        self.score = score
        self.epochs = epochs
        self.random_state = random_state
        self.method = method
        self.draws = draws
        self.model = model
        self.latent_dim = latent_dim
        self.hidden_dim = hidden_dim
        self.depth = depth
        self.likelihood = likelihood
        self.variance_floor = variance_floor
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.hide = hide
        self.patience = patience
        self.threads = threads
        self.device = device
        self.features = features
        self.calibration_fraction = calibration_fraction
        self.validation_fraction = validation_fraction

    # ------------------------------------------------------------ fitting

    def fit(self, X: Frame, y: object = None) -> Self:  # noqa: ARG002  # the convention's
        """Learn from the normal rows X (N, D) and set ``offset_``; y is ignored.

        Raises:
            ConfigError: an argument that cannot be used.
            DataError, ValueError: X cannot be used.
            CalibrationError: too few rows for alpha.
            TrainingError: the fit diverged.
        """
        table = self._read(X, reset=True)
        config = configuration(self.get_params(deep=False))
        inferred = _infer(table, config, named=hasattr(self, "feature_names_in_"))
        batch = _clean(inferred.schema.from_arrow(table))
        parts = split(len(batch), config)
        self.notes_ = inferred.notes
        self._say_what_was_left_out(table, inferred)
        self.bundle_ = _fit(config, inferred, batch, parts, self._input(table, X))
        self.n_iter_ = int(self.bundle_.manifest["training"]["epochs"])
        return self._set_threshold(batch.take(parts.calibration))

    def calibrate(self, X: Frame) -> Self:
        """Replace ``offset_`` by the threshold for ``alpha`` of fresh normal rows X (N, D).

        Raises:
            CalibrationError: too few rows for alpha.
        """
        return self._set_threshold(self._batch(X))

    def _set_threshold(self, batch: RawBatch) -> Self:
        scores = self.bundle_.scorer.score(batch)
        calibration = calibrate(scores, self.alpha, self.method or "conformal")
        self.bundle_ = self.bundle_.calibrated(calibration, None)
        self.offset_ = -calibration.threshold
        return self

    def _say_what_was_left_out(self, table: pa.Table, inferred: Inferred) -> None:
        unread = [name for name in table.column_names if name not in inferred.schema.names]
        if unread and self.features is None:
            said = "; ".join(note for note in inferred.notes if "left out" in note)
            warnings.warn(said or f"columns left out: {listed(unread)}", stacklevel=3)

    # ------------------------------------------------------------ scores and decisions

    def score_samples(self, X: Frame) -> Scores:
        """(N,) minus the anomaly score, nats: higher is more normal."""
        return -self.anomaly_score(X)

    def anomaly_score(self, X: Frame) -> Scores:
        """(N,) nats: higher is more anomalous."""
        return self._scores(self._batch(X))

    def decision_function(self, X: Frame) -> Scores:
        """(N,) nats: ``score_samples − offset_``, negative where anomalous.

        Raises:
            NotCalibratedError: a loaded bundle that has no threshold yet.
        """
        scores = self.score_samples(X)
        self._check_calibrated()
        return scores - self.offset_

    def predict(self, X: Frame) -> NDArray[np.int64]:
        """(N,) −1 where the anomaly score exceeds the threshold, else 1."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Frame) -> Scores:
        """(N,) conformal p-values, (1 + #{held out ≥ score}) / (n + 1)."""
        scores = self.anomaly_score(X)
        self._check_calibrated()
        return self.bundle_.detector.calibration.p_values(scores)

    def explain(self, X: Frame, most: int | None = None) -> list[Explanation]:
        """For each row the ``most`` largest contributions to its anomaly score (None: all)."""
        batch, scorer = self._batch(X), self.bundle_.scorer
        return explanations(scorer, batch, scorer.explain(batch), most)

    def _scores(self, batch: RawBatch) -> Scores:
        return self.bundle_.scorer.score(batch)

    def _check_calibrated(self) -> None:
        if self.bundle_.calibration is None:
            raise NotCalibratedError("this detector has no threshold yet; call calibrate(X)")

    # ------------------------------------------------------------ latent space

    def transform(self, X: Frame) -> Scores:
        """(N, L): the means of q(z|x)."""
        latent = self.bundle_.scorer.explain(self._batch(X)).latent if self._fitted else None
        return np.asarray(latent, np.float64)

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Latents (N, L) → the most probable rows, in the container that was fitted.

        Arrays have NaN where a column was left out; tables have the columns that
        `generation` describes.
        """
        check_is_fitted(self)
        return self._contained(generation.decode(self.bundle_, np.asarray(X, np.float32)))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Rows drawn from the model, in the container that was fitted.

        ``random_state`` None is the estimator's own, so that two calls agree.
        """
        check_is_fitted(self)
        seed = seed_of(self.random_state if random_state is None else random_state)
        return self._contained(generation.sample(self.bundle_, n_samples, seed))

    @property
    def _n_features_out(self) -> int:
        return int(self.bundle_.manifest["config"]["model"]["latent_dim"])

    def _contained(self, table: pa.Table) -> Any:
        match self.bundle_.manifest["data"].get("container"):
            case "array":
                out = np.full((len(table), self.n_features_in_), np.nan)
                for name in table.column_names:
                    out[:, int(name.removeprefix("x"))] = table.column(name)
                return out
            case "table":
                return table
        return table.to_pandas()

    # ------------------------------------------------------------ saving

    def save(self, path: str | Path) -> Path:
        """Write the bundle folder, which every command and the service can read."""
        check_is_fitted(self)
        return self.bundle_.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A fitted estimator from a bundle folder, whoever wrote it.

        Its arguments are the resolved ones of the fit. Without a calibration in the bundle it
        scores, and decides once `calibrate` was called.

        Raises:
            BundleError: not a bundle of a tabular model.
        """
        bundle = load(path)
        if bundle.manifest["kind"] != "tabular":
            raise BundleError(f"'{path}' holds a model of kind {bundle.manifest['kind']}, not tabular")
        estimator = cls(**_arguments(bundle.manifest))
        estimator._adopt(bundle)
        return estimator

    def _adopt(self, bundle: Bundle) -> None:
        names = bundle.manifest["data"].get("columns") or list(bundle.scorer.schema.names)
        self.bundle_, self.n_features_in_, self.notes_ = bundle, len(names), ()
        self.n_iter_ = int(bundle.manifest["training"]["epochs"])
        if bundle.manifest["data"].get("named", True):
            self.feature_names_in_ = np.array(names, object)
        if bundle.calibration is not None:
            self.offset_ = -bundle.calibration.threshold

    def __getstate__(self) -> dict[str, Any]:
        """The bundle as its files' bytes: a scoring session cannot be pickled."""
        state = dict(super().__getstate__())
        if "bundle_" in state:
            state["bundle_"] = state["bundle_"].files
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "bundle_" in state:
            state = {**state, "bundle_": from_files(state["bundle_"])}
        super().__setstate__(state)

    # ------------------------------------------------------------ reading X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
