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
from typing import Any, Literal, NamedTuple, Self, TypeAlias

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
from anomaly_vae.schema import ColumnType, RawBatch, TabularSchema, listed

Scores = NDArray[np.float64]
Frame: TypeAlias = Any
"""What X may be: numbers (N, D), or a pandas DataFrame or Arrow table."""

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

NAME = "detector"
"""What the manifest calls the model; the registry names its own."""
NO_TEST = 1e-6
"""An estimator holds out no test rows; the configuration asks for a share above 0."""
MIN_FIT = 5
"""The fewest rows that must be left to fit, early stopping included."""
LARGEST_SEED = 2**31 - 1


class Parts(NamedTuple):
    """Positions of the rows that train, stop and calibrate; disjoint."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


class TabularVAEDetector(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn ships no types
    TransformerMixin,  # type: ignore[misc]
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
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

    ``score`` is an argument here and no method: tell `GridSearchCV` what to compare by
    ``scoring``.

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
        config = configuration(self.get_params(deep=False))
        container = container_of(X)
        table = self._read(X, reset=True)
        inferred = _infer(table, config, numeric=container == "array")
        batch = _clean(inferred.schema, inferred.schema.from_arrow(table))
        parts = split(len(batch), config)
        origin = {"container": container, "columns": table.column_names}
        self.bundle_ = _fit(config, inferred.schema, batch, parts, origin)
        self.n_iter_ = int(self.bundle_.manifest["training"]["epochs"])
        self.notes_ = inferred.notes
        _warn_of_left_out(inferred.notes)
        return self._set_threshold(batch.take(parts.calibration))

    def calibrate(self, X: Frame) -> Self:
        """Replace ``offset_`` by the threshold for ``alpha`` of fresh normal rows X (N, D).

        Raises:
            CalibrationError: too few rows for alpha.
        """
        return self._set_threshold(self._batch(X))

    def _set_threshold(self, batch: RawBatch) -> Self:
        arguments = {**self.get_params(deep=False), "random_state": 0}  # draws none
        wanted = configuration(arguments).calibration
        scores = self.bundle_.scorer.score(batch)
        calibration = calibrate(scores, wanted.alpha, wanted.method)
        self.bundle_ = self.bundle_.calibrated(calibration, None)
        self.offset_ = -calibration.threshold
        return self

    # ------------------------------------------------------------ scores and decisions

    def score_samples(self, X: Frame) -> Scores:
        """(N,) minus the anomaly score, nats: higher is more normal."""
        return -self.anomaly_score(X)

    def anomaly_score(self, X: Frame) -> Scores:
        """(N,) nats: higher is more anomalous."""
        batch = self._batch(X)
        return self.bundle_.scorer.score(batch)

    def decision_function(self, X: Frame) -> Scores:
        """(N,) nats: ``score_samples − offset_``, negative where anomalous.

        Raises:
            NotCalibratedError: a loaded bundle that has no threshold yet.
        """
        scores = self.score_samples(X)
        self._check_calibrated()
        return np.asarray(scores - self.offset_)

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
        batch = self._batch(X)
        scorer = self.bundle_.scorer
        return explanations(scorer, batch, scorer.explain(batch), most)

    def _check_calibrated(self) -> None:
        if self.bundle_.calibration is None:
            raise NotCalibratedError("this detector has no threshold yet; call calibrate(X)")

    # ------------------------------------------------------------ latent space

    def transform(self, X: Frame) -> Scores:
        """(N, L): the means of q(z|x)."""
        batch = self._batch(X)
        return self.bundle_.scorer.explain(batch).latent.astype(np.float64)

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Latents (N, L) → the most probable rows, in the container that was fitted.

        Arrays have NaN where a column was left out; tables have the columns that
        `generation` describes.
        """
        check_is_fitted(self, "bundle_")
        return self._contained(generation.decode(self.bundle_, np.asarray(X, np.float32)))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Rows drawn from the model, in the container that was fitted.

        ``random_state`` None is the estimator's own, so that two calls agree.
        """
        check_is_fitted(self, "bundle_")
        seed = seed_of(self.random_state if random_state is None else random_state)
        return self._contained(generation.sample(self.bundle_, n_samples, seed))

    @property
    def _n_features_out(self) -> int:
        return int(self.bundle_.manifest["config"]["model"]["latent_dim"])

    def _contained(self, table: pa.Table) -> Any:
        match self.bundle_.manifest["data"].get("container"):
            case "table":
                return table
            case "array":
                empty = pa.nulls(len(table), pa.float64())
                columns = (
                    table.column(name) if name in table.column_names else empty
                    for name in array_names(self.n_features_in_)
                )
                return np.column_stack([column.to_pandas() for column in columns])
        return table.to_pandas()

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
            BundleError: not a bundle of a tabular model.
        """
        bundle = load(path)
        if bundle.manifest["kind"] != "tabular":
            raise BundleError(
                f"'{path}' holds a model of {bundle.manifest['kind']}s, not of tables"
            )
        estimator = cls(**_arguments(bundle.manifest))
        estimator._adopt(bundle)
        return estimator

    def _adopt(self, bundle: Bundle) -> None:
        data = bundle.manifest["data"]
        names = data.get("columns", bundle.scorer.schema.names)
        self.bundle_, self.n_features_in_, self.notes_ = bundle, len(names), ()
        self.n_iter_ = int(bundle.manifest["training"]["epochs"])
        if data.get("container") != "array":
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

    def _batch(self, X: Frame) -> RawBatch:
        """X as the model reads it."""
        check_is_fitted(self, "bundle_")
        schema = self.bundle_.scorer.schema
        table = self._read(X, reset=False)
        absent = [name for name in schema.names if name not in table.column_names]
        if absent:
            raise DataError(
                f"X lacks columns that the model reads: {listed(absent)}; "
                "where their values are unknown, give them as missing"
            )
        return _clean(schema, schema.from_arrow(table))

    def _read(self, X: Frame, reset: bool) -> pa.Table:
        """X as named columns; ``reset`` learns their names and number."""
        named = reset or hasattr(self, "feature_names_in_")
        table = as_table(X) if named else None
        if table is None:
            return self._read_array(X, reset)
        if reset:
            self.feature_names_in_ = np.array(table.column_names, object)
            self.n_features_in_ = len(table.column_names)
        return table

    def _read_array(self, X: Frame, reset: bool) -> pa.Table:
        """Numbers by position, checked as scikit-learn does; NaN becomes null."""
        X = X.to_pandas() if isinstance(X, pa.Table | pa.RecordBatch) else X
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        names = getattr(self, "feature_names_in_", array_names(array.shape[1]))
        columns = zip(names, array.T, strict=True)
        return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns})


# ---------------------------------------------------------------- arguments


def configuration(arguments: Mapping[str, Any]) -> Config:
    """An estimator's arguments as a configuration; None leaves a key at its default.

    Raises:
        ConfigError: a value that does not fit.
    """
    content: dict[str, Any] = {"name": NAME, "data": {"path": (), "splits": {"test": NO_TEST}}}
    for argument, keys in CONFIG_KEYS.items():
        value = _plain(argument, arguments[argument])
        for key in keys if value is not None else ():
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
    if argument == "features" and isinstance(value, Mapping):
        return {k: {"type": v} if isinstance(v, str) else v for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _arguments(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments behind a manifest: the inverse of `configuration`."""
    found: dict[str, Any] = {}
    for argument, (key, *_) in CONFIG_KEYS.items():
        value: Any = manifest["config"]
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found[argument] = value
    if not isinstance(found["calibration_fraction"], float):
        found["calibration_fraction"] = None  # an interval of time
    if found["features"] is None and "container" not in manifest["data"]:
        columns = manifest["schema"]["columns"]  # a table with labels and ids beside them
        found["features"] = {column["name"]: column["type"] for column in columns}
    calibration = manifest["calibration"] or {}
    return found | {key: calibration[key] for key in ("alpha", "method") if key in calibration}


def seed_of(random_state: int | RandomState | None) -> int:
    """scikit-learn's ``random_state`` as a seed: an int is one, the others draw one."""
    generator = check_random_state(random_state)
    if random_state is None or isinstance(random_state, RandomState):
        return int(generator.randint(LARGEST_SEED))
    return int(random_state)


# ---------------------------------------------------------------- rows


def container_of(X: Frame) -> Literal["array", "frame", "table"]:
    """What X came in; a data frame whose columns have no names counts as an array."""
    if isinstance(X, pa.Table | pa.RecordBatch):
        return "table"
    named = isinstance(X, pd.DataFrame) and all(isinstance(name, str) for name in X.columns)
    return "frame" if named or hasattr(X, "to_arrow") else "array"


def as_table(X: Frame) -> pa.Table | None:
    """A data frame (pandas, polars) or Arrow table with named columns; None for anything else.

    Raises:
        DataError: two columns of one name.
    """
    if container_of(X) == "array":
        return None
    if isinstance(X, pd.DataFrame):
        _refuse_twins(list(X.columns))
        return table_of(X)
    table = X.to_arrow() if hasattr(X, "to_arrow") else pa.table(X)
    _refuse_twins(table.column_names)
    return table


def array_names(count: int) -> list[str]:
    """What the columns of an array are called: x0, x1, …"""
    return [f"x{i}" for i in range(count)]


def split(n: int, config: Config) -> Parts:
    """Which of n rows train, stop and calibrate, at random by the configuration's seed.

    Raises:
        CalibrationError: too few to resolve alpha and to fit.
    """
    splits, alpha = config.data.splits, config.calibration.alpha
    assert isinstance(splits.calibration, float), "an interval needs a time column"
    needed = scores_needed(alpha)
    held = max(round(splits.calibration * n), needed)
    if n - held < MIN_FIT:
        raise CalibrationError(
            f"n_samples={n} are too few: alpha={alpha:g} takes {needed} held-out rows, and "
            f"{MIN_FIT} are needed to fit; give at least {needed + MIN_FIT} rows or raise alpha"
        )
    rest = n - held
    stop = max(1, round(splits.validation * rest))
    order = np.random.default_rng(splits.seed).permutation(n)
    train, validation, calibration = np.split(order, [rest - stop, rest])
    return Parts(np.sort(train), np.sort(validation), np.sort(calibration))


def _fit(
    config: Config,
    schema: TabularSchema,
    batch: RawBatch,
    parts: Parts,
    origin: Mapping[str, Any],
) -> Bundle:
    """An uncalibrated bundle; ``origin`` is what its manifest adds about X."""
    train, validation = batch.take(parts.train), batch.take(parts.validation)
    prepared = prepare(config, schema, train, validation)
    data = {
        **origin,
        "rows": len(batch),
        "splits": {name: len(rows) for name, rows in parts._asdict().items()},
        "digest": hashlib.sha256(prepared.encoding.encode(batch).tobytes()).hexdigest(),
    }
    return fit_bundle(config, prepared, data).bundle


def _infer(table: pa.Table, config: Config, numeric: bool) -> Inferred:
    """The schema; an array's columns are ``numeric`` unless declared, and left out if empty."""
    data = config.data
    if not numeric or isinstance(data.features, dict):
        return infer_schema(table, data)
    wanted = data.features or table.column_names
    full = [
        n for n in wanted if n not in table.column_names or table.column(n).null_count < len(table)
    ]
    declared = {name: Feature(type=ColumnType.NUMERIC) for name in full}
    notes = tuple(
        f"column '{n}': left out, it has no value at all" for n in wanted if n not in full
    )
    inferred = infer_schema(table, data.model_copy(update={"features": declared}))
    return Inferred(inferred.schema, inferred.notes + notes)


def _clean(schema: TabularSchema, batch: RawBatch) -> RawBatch:
    """The batch, if every cell fits.

    Raises:
        DataError: the first cell that does not, and how many rows are like it.
    """
    if not batch.problems:
        return batch
    first, rows = batch.problems[0], int((~batch.usable).sum())
    kind = next(column.type for column in schema.columns if column.name == first.column)
    hint = "; declare its type under features" if kind is ColumnType.BINARY else ""
    more = f" ({rows} rows cannot be used)" if rows > 1 else ""
    raise DataError(f"X, {first}{hint}{more}", column=first.column)


def _refuse_twins(names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"X has two columns called '{twice}'; rename one of them", column=twice)


def _warn_of_left_out(notes: Sequence[str]) -> None:
    for note in notes:
        if "left out" in note:
            warnings.warn(note, stacklevel=3)
