"""What the estimators share: a bundle with scikit-learn's verbs.

A fitted estimator is a bundle: what scores here is what is saved, registered and served. A kind
of data adds how its X is read, and what its samples come as.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from anomaly_vae.artifacts.bundle import Bundle, from_files, load_bundle
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold, rows_needed
from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import BundleError, CalibrationError, DataError, NotCalibratedError
from anomaly_vae.monitoring.exchangeability import fit_reference
from anomaly_vae.scoring.detector import Detections, Explanation, explanations
from anomaly_vae.scoring.modality import Schema
from anomaly_vae.training.fit import fit_bundle, prepare

Scores = NDArray[np.float64]
Data: TypeAlias = Any
"""What X may be; each estimator says."""

SHARED_KEYS: dict[str, tuple[str, ...]] = {
    "preset": ("preset",),
    "alpha": ("calibration.alpha",),
    "method": ("calibration.method",),
    "score": ("score.type",),
    "draws": ("score.draws",),
    "model": ("model.type",),
    "latent_dim": ("model.latent_dim",),
    "hidden_dim": ("model.hidden_dim",),
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
    "trim": ("training.trim",),
    "keep": ("training.keep",),
    "patience": ("training.patience",),
    "threads": ("training.threads",),
    "device": ("training.device",),
    "calibration_fraction": ("data.splits.calibration",),
    "validation_fraction": ("data.splits.validation",),
    "random_state": ("training.seed", "score.seed", "data.splits.seed"),
}
"""Constructor argument of every estimator → the keys of the configuration that it sets."""

NAME = "detector"
"""What the manifest calls the model; the registry names its own."""
NO_TEST = 1e-6
"""An estimator holds out no test rows; the configuration asks for a share above 0."""
HELD_OUT = 0.1
"""Share of the rows that calibrates, where no other is asked for."""
ENOUGH = 20
"""Held-out rows above the threshold that are enough: on other rows exchangeable with them, the
share flagged then has a standard deviation of 1 / √20 of alpha (Vovk 2012)."""
MOST_HELD_OUT = 0.75
"""A larger share of the rows that calibrates is worth a warning."""
MIN_FIT = 5
"""The fewest rows that must be left to fit, those it measures itself on included."""
LARGEST_SEED = 2**31 - 1


class Parts(NamedTuple):
    """Positions of the rows that train, stop and calibrate; disjoint."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Learned:
    """What `fit` makes of X: its rows, how they are read, and what the manifest adds about them."""

    schema: Schema
    batch: RawBatch
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class VAEDetector(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn ships no types
    TransformerMixin,  # type: ignore[misc]
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """The verbs. The arguments of every kind are documented where they are used."""

    KIND: ClassVar[str]
    """of the configuration"""
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]]
    """constructor argument → the keys of the configuration that it sets"""

    def __init__(
        self,
        *,
        preset: str = "default",
        alpha: float = 0.05,
        score: str = "neg_elbo",
        epochs: int | None = None,
        random_state: int | RandomState | None = 0,
        method: str | None = None,
        draws: int | None = None,
        model: str | None = None,
        latent_dim: int | None = None,
        hidden_dim: int | None = None,
        likelihood: str | None = None,
        variance_floor: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        beta: float | None = None,
        kl_warmup: float | None = None,
        free_bits: float | None = None,
        trim: float | None = None,
        keep: str | None = None,
        patience: int | None = None,
        threads: int | None = None,
        device: str | None = None,
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
        self.likelihood = likelihood
        self.variance_floor = variance_floor
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.trim = trim
        self.keep = keep
        self.patience = patience
        self.threads = threads
        self.device = device
        self.calibration_fraction = calibration_fraction
        self.validation_fraction = validation_fraction

    # ------------------------------------------------------------ what a kind of data adds

    @abstractmethod
    def _learn(self, X: Data, config: Config) -> Learned:
        """Read the X of `fit`."""

    @abstractmethod
    def _batch(self, X: Data) -> RawBatch:
        """Read X as the fitted model does, every row of it usable."""

    @abstractmethod
    def inverse_transform(self, X: ArrayLike) -> Any:
        """Latents (N, L) → the most probable data."""

    @abstractmethod
    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Data drawn from the model."""

    # ------------------------------------------------------------ fitting

    def fit(self, X: Data, y: object = None) -> Self:  # noqa: ARG002  # the convention's
        """Learn from the normal rows or images X and set ``offset_``; y is ignored.

        Raises:
            ConfigError: an argument that cannot be used.
            DataError, ValueError: X cannot be used.
            CalibrationError: too few for alpha.
            TrainingError: the fit diverged.
        """
        config = self._configuration()
        learned = self._learn(X, config)
        config, parts = split(len(learned.batch), config, self.calibration_fraction is None)
        self.bundle_ = _fit(config, learned, parts)
        self.n_iter_ = int(self.bundle_.manifest["training"]["epochs"])
        self.notes_ = learned.notes
        _warn_of_left_out(learned.notes)
        if self.calibration_fraction is None:
            _warn_of_few_left(parts, config.calibration.alpha)
        return self._set_threshold(learned.batch.take(parts.calibration))

    def calibrate(self, X: Data) -> Self:
        """Replace ``offset_`` by the threshold for ``alpha`` of fresh normal rows or images X.

        Raises:
            CalibrationError: too few for alpha.
        """
        return self._set_threshold(self._batch(X))

    def _set_threshold(self, batch: RawBatch) -> Self:
        wanted = self._configuration(random_state=0).calibration  # draws no seed
        scores = self.bundle_.scorer.score(batch)
        calibration = choose_threshold(CalibrationSample.from_scores(scores), wanted)
        if "note" in calibration.figures:
            warnings.warn(calibration.figures["note"], stacklevel=3)
        reference = fit_reference(self.bundle_.scorer.encoding, batch)
        self.bundle_ = self.bundle_.calibrated(calibration, None, reference)
        self.offset_ = -calibration.threshold
        return self

    def _configuration(self, **changed: Any) -> Config:
        arguments = {**self.get_params(deep=False), **changed}
        return configuration(self.KIND, self.KEYS, arguments)

    # ------------------------------------------------------------ scores and decisions

    def score_samples(self, X: Data) -> Scores:
        """(N,) minus the anomaly score: higher is more normal."""
        return -self.anomaly_score(X)

    def anomaly_score(self, X: Data) -> Scores:
        """(N,) higher is more anomalous; in nats, unless standardised."""
        batch = self._batch(X)
        return self.bundle_.scorer.score(batch)

    def decision_function(self, X: Data) -> Scores:
        """(N,) ``score_samples − offset_``, negative where anomalous.

        Where a loaded bundle has groups, each row's own threshold takes the place of ``offset_``.

        Raises:
            NotCalibratedError: a loaded bundle that has no threshold yet.
        """
        found = self._detect(X)
        offset = self.offset_ if found.threshold is None else -found.threshold
        return np.asarray(-found.score - offset)

    def predict(self, X: Data) -> NDArray[np.int64]:
        """(N,) −1 where the anomaly score exceeds the threshold, else 1."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Data) -> Scores:
        """(N,) conformal p-values, (1 + #{held out ≥ score}) / (n + 1)."""
        return self._detect(X).p_value

    def explain(self, X: Data, most: int | None = None) -> list[Explanation]:
        """For each row the ``most`` largest contributions to its anomaly score (None: all)."""
        batch = self._batch(X)
        scorer = self.bundle_.scorer
        return explanations(scorer, batch, scorer.explain(batch), most)

    def _detect(self, X: Data) -> Detections:
        batch = self._batch(X)
        if self.bundle_.calibration is None:
            raise NotCalibratedError("this detector has no threshold yet; call calibrate(X)")
        return self.bundle_.detector.detect(batch)

    # ------------------------------------------------------------ latent space

    def transform(self, X: Data) -> Scores:
        """(N, L): the means of q(z|x)."""
        batch = self._batch(X)
        return self.bundle_.scorer.explain(batch).latent.astype(np.float64)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[np.object_]:
        """What the columns of `transform` are called: latent0, latent1, …

        ``input_features`` are compared with those of the fit, and have no other effect.
        """
        count = len(super().get_feature_names_out(input_features))
        return np.array([f"latent{i}" for i in range(count)], object)

    @property
    def _n_features_out(self) -> int:
        scorer = self.bundle_.scorer
        nothing = np.zeros((0, scorer.encoding.layout.n_columns), np.float32)
        return int(scorer.explain_encoded(nothing).latent.shape[1])

    def _seed(self, random_state: int | RandomState | None) -> int:
        """That of a method's argument; without one, the estimator's own."""
        return seed_of(self.random_state if random_state is None else random_state)

    # ------------------------------------------------------------ saving

    def save(self, path: str | Path) -> Path:
        """Write the bundle folder, which every command and the service can read."""
        check_is_fitted(self, "bundle_")
        return self.bundle_.save(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A fitted estimator from a bundle folder, whoever wrote it.

        Its arguments are the resolved ones of the fit. Without a calibration in the bundle it
        scores, and decides once `calibrate` was called.

        Raises:
            BundleError: not a bundle of a model of this kind.
        """
        bundle = load_bundle(path)
        if (kind := bundle.manifest["kind"]) != cls.KIND:
            raise BundleError(f"'{path}' holds a model of kind '{kind}', not '{cls.KIND}'")
        estimator = cls(**cls._arguments(bundle.manifest))
        estimator._adopt(bundle)
        return estimator

    @classmethod
    def _arguments(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments behind a manifest: the inverse of `configuration`."""
        found = {
            argument: _value(manifest["config"], key) for argument, (key, *_) in cls.KEYS.items()
        }
        if not isinstance(found["calibration_fraction"], float):
            found["calibration_fraction"] = None  # an interval of time
        calibration = manifest["calibration"] or {}
        return found | {key: calibration[key] for key in ("alpha", "method") if key in calibration}

    def _adopt(self, bundle: Bundle) -> None:
        self.bundle_, self.notes_ = bundle, ()
        self.n_iter_ = int(bundle.manifest["training"]["epochs"])
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


# ---------------------------------------------------------------- arguments


def configuration(
    kind: str, keys: Mapping[str, Sequence[str]], arguments: Mapping[str, Any]
) -> Config:
    """An estimator's arguments as a configuration; None leaves a key at its default.

    Raises:
        ConfigError: a value that does not fit.
    """
    data = {"path": (), "splits": {"test": NO_TEST, "calibration": HELD_OUT}}
    content: dict[str, Any] = {"kind": kind, "name": NAME, "data": data}
    for argument, places in keys.items():
        value = _plain(argument, arguments[argument])
        for key in places if value is not None else ():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
    return validate_config(content)


def _plain(argument: str, value: Any) -> Any:
    """An argument as the configuration spells it."""
    if argument == "random_state":
        return seed_of(value)
    if isinstance(value, Mapping):  # of features to their types
        return {k: {"type": v} if isinstance(v, str) else v for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _value(config: Mapping[str, Any], key: str) -> Any:
    """What a recorded configuration has under a dotted key; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def seed_of(random_state: int | RandomState | None) -> int:
    """scikit-learn's ``random_state`` as a seed: an int is one, the others draw one."""
    generator = check_random_state(random_state)
    if random_state is None or isinstance(random_state, RandomState):
        return int(generator.randint(LARGEST_SEED))
    return int(random_state)


# ---------------------------------------------------------------- rows


def split(n: int, config: Config, frugal: bool) -> tuple[Config, Parts]:
    """Which of n rows train, stop and calibrate, at random by the configuration's seed.

    ``frugal``: no more calibrate than `ENOUGH` calls for. The configuration comes back with the
    share that does.

    Raises:
        CalibrationError: too few to resolve alpha and to fit.
    """
    splits, held = config.data.splits, _held_out(n, config, frugal)
    rest = n - held
    stop = max(1, round(splits.validation * rest))
    order = np.random.default_rng(splits.seed).permutation(n)
    train, validation, calibration = np.split(order, [rest - stop, rest])
    splits = splits.model_copy(update={"calibration": held / n})
    config = config.model_copy(update={"data": config.data.model_copy(update={"splits": splits})})
    return config, Parts(np.sort(train), np.sort(validation), np.sort(calibration))


def _held_out(n: int, config: Config, frugal: bool) -> int:
    share, alpha = config.data.splits.calibration, config.calibration.alpha
    assert isinstance(share, float), "an interval needs a time column"
    needed = rows_needed(config.calibration)
    held = max(round(share * n), needed)
    if frugal:
        held = max(_no_more_than_helps(min(held, math.ceil(ENOUGH / alpha)), alpha), needed)
    if n - held < MIN_FIT:
        raise CalibrationError(
            f"n_samples={n} are too few: alpha={alpha:g} takes {needed} held-out rows, and "
            f"{MIN_FIT} are needed to fit; give at least {needed + MIN_FIT} rows or raise alpha"
        )
    return held


def _no_more_than_helps(held: int, alpha: float) -> int:
    """The fewest rows that flag as many as ``held`` rows would: k/alpha − 1, and alpha is exact."""
    k = math.floor((held + 1) * alpha + 1e-9)
    return math.ceil(k / alpha - 1e-9) - 1


def usable(batch: RawBatch, hint: str = "") -> RawBatch:
    """The batch, if every row can be used.

    Raises:
        DataError: the first that cannot, with the ``hint``, and how many are like it.
    """
    if not batch.problems:
        return batch
    first, rows = batch.problems[0], int((~batch.usable).sum())
    more = f" ({rows} rows cannot be used)" if rows > 1 else ""
    raise DataError(f"X, {first}{hint}{more}", column=first.column)


def _fit(config: Config, learned: Learned, parts: Parts) -> Bundle:
    """An uncalibrated bundle."""
    batch = learned.batch
    train, validation = batch.take(parts.train), batch.take(parts.validation)
    prepared = prepare(config, learned.schema, train, validation)
    data = {
        **learned.origin,
        "rows": len(batch),
        "splits": {name: len(rows) for name, rows in parts._asdict().items()},
        "digest": hashlib.sha256(prepared.encoding.encode(batch).tobytes()).hexdigest(),
    }
    return fit_bundle(config, prepared, data).bundle


def _warn_of_left_out(notes: Sequence[str]) -> None:
    for note in notes:
        if "left out" in note:
            warnings.warn(note, stacklevel=3)


def _warn_of_few_left(parts: Parts, alpha: float) -> None:
    held, left = len(parts.calibration), len(parts.train) + len(parts.validation)
    if held > MOST_HELD_OUT * (held + left):
        warnings.warn(
            f"alpha={alpha:g} takes {held} of the {held + left} rows to calibrate, and only {left} "
            "are left to fit; give more rows or raise alpha",
            stacklevel=3,
        )
