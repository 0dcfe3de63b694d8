"""Detect anomalies in tables through scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Feature, TabularConfig
from anomaly_vae.data.arrow import normalise_array
from anomaly_vae.data.dataframes import detect_container, from_table, to_table
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.type_inference import Inferred, infer_schema
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.arguments import SHARED_KEYS
from anomaly_vae.estimators.base import Data, FitInput, VAEDetector, usable
from anomaly_vae.estimators.labels import known_anomalies
from anomaly_vae.features.events import EventReader
from anomaly_vae.generation import tables
from anomaly_vae.messages import listed
from anomaly_vae.training.known_anomalies import learns_known
from anomaly_vae.types import ColumnType

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    **SHARED_KEYS,
    "depth": ("model.depth",),
    "members": ("model.members",),
    "posterior_variance": ("model.posterior_variance",),
    "prior": ("model.prior",),
    "components": ("model.components",),
    "exemplars": ("model.exemplars",),
    "noise": ("training.noise",),
    "hide": ("training.hide",),
    "guard": ("training.guard",),
    "features": ("data.features",),
    "types": ("data.types",),
    "known": ("model.known",),
    "time_format": ("data.time_format",),
}
"""Configuration keys that each constructor argument sets."""


class TabularVAEDetector(VAEDetector[TabularConfig, TabularSchema]):
    """Outlier detector for tables: a variational autoencoder with a conformal threshold.

    `fit` learns from normal rows; leave known anomalies out of X, or mark them in y and set
    ``known="auto"``. It holds out a fraction of the
    rows, whose scores give the threshold, ``-offset_``. On rows exchangeable with those held out,
    `predict` returns −1 with probability at most ``alpha`` (Vovk et al. 2005). This takes at least
    1/alpha − 1 held-out rows: 99 for 0.01, 19 for 0.05. If ``calibration_fraction`` gives fewer,
    as many as needed are held out, provided that 5 rows are left to fit; otherwise `fit` says how
    many rows or which alpha would do. `calibrate` replaces the threshold by one from other rows.

    X is a numeric array, in which NaN is missing, a pandas or polars data frame, a pyarrow table,
    or any object that exports an Arrow stream. Columns of a frame or table may be numeric, binary,
    categorical or dates. They are found by name: their order is free, additional ones are ignored,
    and each column that the model reads must be present. Columns of an array are called ``x0``,
    ``x1``, … and are numeric unless ``features`` says otherwise. Infinity is refused.

    Most arguments set the configuration key of the same name (docs/configuration.md). An argument
    left at None takes the value of the preset, which is the default given here unless the preset
    changes it.

    Args:
        {arguments}

    Attributes:
        offset_: minus the threshold: ``decision_function(X) = score_samples(X) − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: number of epochs trained.
        n_features_in_: number of columns of X.
        feature_names_in_: names of the columns of X, if it has any.
        notes_: decisions about columns, such as those left out.

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(200, 3))
    >>> detector = TabularVAEDetector(preset="fast", alpha=0.05, epochs=2).fit(rows)
    >>> detector.predict([[0.0, 0.1, -0.2], [9.0, -9.0, 9.0]])
    array([ 1, -1])
    >>> detector.p_values([[9.0, -9.0, 9.0]]).round(2)  # the lowest that 19 held-out rows allow
    array([0.05])
    >>> detector.explain([[0.0, 0.0, 99.0]], most=1)[0].contributions[0].feature
    'x2'
    >>> detector.transform(rows).shape, detector.sample(2).shape
    ((200, 3), (2, 3))

    A saved detector is a bundle, which the command line and the service read, too:

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     loaded = TabularVAEDetector.load(detector.save(f"{folder}/bundle"))
    >>> bool((loaded.predict(rows) == detector.predict(rows)).all())
    True
    """

    KIND: ClassVar[str] = "tabular"
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]] = CONFIG_KEYS

    def __init__(
        self,
        *,
        preset: Literal["fast", "default", "best"] = "default",
        alpha: float = 0.01,
        score_type: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo",
        epochs: int | None = None,
        random_state: int | RandomState | None = 0,
        method: Literal["conformal", "certified", "evt", "quantile"] | None = None,
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
        trim: float | None = None,
        members: int | None = None,
        posterior_variance: Literal["shared", "row"] | None = None,
        prior: Literal["aggregated", "standard"] | None = None,
        components: int | None = None,
        exemplars: int | None = None,
        noise: float | None = None,
        hide: float | None = None,
        guard: float | None = None,
        keep: Literal["best", "last"] | None = None,
        patience: int | None = None,
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        features: Sequence[str] | Mapping[str, str | Feature] | None = None,
        types: Mapping[str, str | Feature] | None = None,
        known: Literal["off", "auto"] | None = None,
        time_format: str | None = None,
        calibration_fraction: float | None = None,
        validation_fraction: float | None = None,
        unusual_alpha: float | None = None,
        verbose: int = 0,
    ) -> None:
        self._store(locals())

    # ------------------------------------------------------------ latent space

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Decode latents (N, L) into the most probable rows, in the container that was fitted.

        Arrays have NaN in columns that the model does not read. Frames and tables have two columns
        in place of a date: the hour of the day and the day of the week.
        """
        check_is_fitted(self, "bundle_")
        return self._contained(tables.decode(self.bundle_, np.asarray(X, np.float32)))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Draw rows from the model, in the container that was fitted.

        Args:
            n_samples: number of rows.
            random_state: seed; None takes the estimator's, so that two calls agree.
        """
        check_is_fitted(self, "bundle_")
        seed = self._seed(random_state)
        return self._contained(tables.sample(self.bundle_, n_samples, seed))

    def _contained(self, table: pa.Table) -> Any:
        container = self.bundle_.manifest["data"].get("container")
        if container != "array":
            return from_table(table, container)
        empty = pa.nulls(len(table), pa.float64())
        columns = (
            table.column(name) if name in table.column_names else empty
            for name in array_names(self.n_features_in_)
        )
        return np.column_stack([column.to_pandas() for column in columns])

    # ------------------------------------------------------------ loading

    @classmethod
    def _arguments(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._arguments(manifest)
        if found["features"] is None and "container" not in manifest["data"]:
            columns = manifest["schema"]["columns"]  # a table with labels and ids beside them
            found["features"] = {column["name"]: column["type"] for column in columns}
            found["types"] = None
        return found

    def _adopt(self, bundle: Bundle) -> None:
        super()._adopt(bundle)
        data = bundle.manifest["data"]
        names = data.get("columns", bundle.scorer.schema.names)
        self.n_features_in_ = len(names)
        if data.get("container") != "array":
            self.feature_names_in_ = np.array(names, object)

    # ------------------------------------------------------------ reading X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = True
        return tags

    def _fit_input(self, X: Data, y: object, config: TabularConfig) -> FitInput[TabularSchema]:
        container = detect_container(X)
        table = self._read(X, reset=True)
        anomaly = np.zeros(len(table), bool)
        if y is not None and learns_known(config):
            anomaly = known_anomalies(y, len(table))
        inferred = _infer(_without(table, anomaly), config, numeric=container == "array")
        batch = _clean(inferred.schema, inferred.schema.from_arrow(table))
        normal, known = (batch.take(np.flatnonzero(mask)) for mask in (~anomaly, anomaly))
        origin = {"container": container, "columns": table.column_names}
        return FitInput(inferred.schema, normal, origin, inferred.notes, known)

    def _batch(self, X: Data) -> RawBatch:
        schema = self._schema()
        table = self._read(X, reset=False)
        absent = [name for name in schema.names if name not in table.column_names]
        if absent:
            events = EventReader.of_config(self.bundle_.manifest["config"]["data"])
            computed = events and set(absent) & set(events.definition.names)
            raise DataError(
                f"X lacks columns that the model reads: {listed(absent)}; "
                + (
                    "add windows with anomaly_vae.features.offline.add_windows"
                    if computed
                    else "where their values are unknown, give them as missing"
                )
            )
        return _clean(schema, schema.from_arrow(table))

    def _read(self, X: Data, reset: bool) -> pa.Table:
        """Return X as a table; ``reset`` remembers the names and number of its columns."""
        table = to_table(X)
        if table is None:
            return self._read_array(X, reset)
        if reset:
            self.feature_names_in_ = np.array(table.column_names, object)
            self.n_features_in_ = len(table.column_names)
        named = hasattr(self, "feature_names_in_")
        return table if named else self._read_array(table.to_pandas(), reset)

    def _read_array(self, X: Data, reset: bool) -> pa.Table:
        """Return an array as a table, checked as scikit-learn does; NaN becomes null."""
        _refuse_columns_without_numbers(X)
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        names = getattr(self, "feature_names_in_", array_names(array.shape[1]))
        columns = zip(names, array.T, strict=True)
        return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns})


# ---------------------------------------------------------------- rows


def array_names(count: int) -> list[str]:
    """Return the names of the columns of an array: x0, x1, …"""
    return [f"x{i}" for i in range(count)]


def _without(table: pa.Table, left_out: NDArray[np.bool_]) -> pa.Table:
    """Return a table without the rows of a mask (N,)."""
    if not left_out.any():
        return table
    kept = pa.array(~left_out)
    columns = {name: _filtered(table.column(name), kept) for name in table.column_names}
    return pa.table(columns)


def _filtered(column: pa.ChunkedArray, kept: pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return the values of a column that are kept; views, which Arrow cannot filter, as values."""
    try:
        return column.filter(kept)
    except pa.ArrowNotImplementedError:
        return normalise_array(column).filter(kept)


def _refuse_columns_without_numbers(X: Data) -> None:
    """Refuse a data frame that is read as an array, because its columns have no names, but is none.

    Raises:
        DataError: a column holds something else than numbers.
    """
    for name, column in X.items() if isinstance(X, pd.DataFrame) else ():
        try:
            column.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"column {name} does not hold numbers, as it must in a data frame whose columns "
                "are not named by text; name them: X.columns = X.columns.map(str)",
                column=str(name),
            ) from None


def _infer(table: pa.Table, config: TabularConfig, numeric: bool) -> Inferred:
    """Infer the schema; ``numeric`` columns, those of an array, are left out only if empty."""
    data = config.data
    if not numeric or isinstance(data.features, dict):
        return infer_schema(table, data)
    names = data.features or table.column_names
    empty = {n for n in table.column_names if table.column(n).null_count == len(table)}
    number = Feature(type=ColumnType.NUMERIC)
    declared = {n: data.types.get(n, number) for n in names if n not in empty}
    notes = tuple(f"column '{n}': left out, it has no value at all" for n in names if n in empty)
    inferred = infer_schema(table, data.model_copy(update={"features": declared}))
    return Inferred(inferred.schema, inferred.notes + notes)


def _clean(schema: TabularSchema, batch: RawBatch) -> RawBatch:
    """Return the batch if every cell fits its column.

    Raises:
        DataError: a cell does not fit; the message names the first and counts the rows.
    """
    wrong = {problem.column for problem in batch.problems[:1]}
    binary = any(c.name in wrong and c.type is ColumnType.BINARY for c in schema.columns)
    return usable(batch, "; declare its type under features" if binary else "")
