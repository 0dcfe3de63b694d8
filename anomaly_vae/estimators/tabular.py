"""The detector of tables as a scikit-learn estimator.

detector = TabularVAEDetector(alpha=0.01).fit(normal)
detector.predict(new)          # 1 normal, −1 anomalous
detector.p_values(new)         # P(p ≤ alpha) ≤ alpha on normal rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.random import RandomState
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config, Feature, TabularConfig
from anomaly_vae.data.dataframes import detect_container, from_table, to_table
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.type_inference import Inferred, infer_schema
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.base import SHARED_KEYS, Data, Learned, VAEDetector, usable
from anomaly_vae.generation import tables
from anomaly_vae.messages import listed
from anomaly_vae.types import ColumnType

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    **SHARED_KEYS,
    "depth": ("model.depth",),
    "members": ("model.members",),
    "posterior_variance": ("model.posterior_variance",),
    "prior": ("model.prior",),
    "components": ("model.components",),
    "noise": ("training.noise",),
    "hide": ("training.hide",),
    "guard": ("training.guard",),
    "features": ("data.features",),
}
"""Constructor argument → the keys of the configuration that it sets."""


class TabularVAEDetector(VAEDetector):
    """Anomaly detection in tables with a variational autoencoder and a conformal threshold.

    `fit` learns what normal rows look like (y is ignored; leave known anomalies out) from all
    but a held-out share of the rows, whose scores give the threshold ``-offset_``. On rows
    exchangeable with those held out, `predict` returns −1 with probability at most ``alpha``
    (Vovk et al. 2005). That takes at least 1/alpha − 1 held-out rows: 19 for 0.05, 99 for 0.01.
    Where ``calibration_fraction`` is less, as many as needed are held out, as long as 5 rows
    are left to fit; where even that fails, `fit` refuses and says how many rows or which alpha
    would do. `calibrate` replaces the threshold by one from fresh rows.

    X is a numeric array (NaN is missing), or a pandas or polars DataFrame, a pyarrow Table or
    another that hands out an Arrow stream. Their columns may be numeric, binary, categorical or
    dates, found by name: their order is free, further columns are ignored, and a column the model
    reads must be there. In arrays every column is numeric unless ``features`` says otherwise; they
    call column 0 ``x0``. Infinity is refused.

    ``score`` is an argument here and no method: tell `GridSearchCV` what to compare by
    ``scoring``. For that reason, and because few rows are refused, some of scikit-learn's checks
    are expected to fail: docs/scikit-learn.md lists them.

    Args:
        preset: "fast", "default" or "best"; arguments left at None follow it.
        alpha: share of normal rows that may be flagged.
        score: "neg_elbo", "reconstruction" or "importance_weighted", in nats.
        epochs: None: 80, but at least 600 steps, at most 6,000, and 3 to 300 epochs.
        random_state: of everything random, the held-out rows too. An int makes fits repeat;
            None draws a new one from numpy's global state.
        method: "conformal" (default) keeps alpha on average; "certified" with 95% confidence in
            this very threshold; "evt" reads it off a fitted tail, which is a model; "quantile" is
            the plain empirical quantile.
        draws: posterior draws behind a score, frozen when fitted.
        model: "vae" (default) or "autoencoder".
        latent_dim: None: the encoded columns, 1 to 64.
        hidden_dim: None: twice the encoded columns as a power of two, 64 to 256.
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
        trim: share of the rows, those that fit worst, that do not teach, 0; give what may be
            anomalous among them.
        members: networks fitted side by side, 3; scores are their mean.
        posterior_variance: "shared" (default) or "row", of q(z|x).
        prior: "aggregated" (default) or "standard", of scores and samples.
        components: most parts of the aggregated posterior, 256.
        noise: deviation of the noise on standardised numbers that the encoder sees through, 0.2.
        hide: share of the cells hidden in each batch, so that missing ones are met.
        guard: ``trim`` of the last of several members, 0.1: what the others learned to expect
            from anomalies among the rows, this one does not.
        keep: weights of the "last" epoch (default), or of the "best" validation ELBO.
        patience: keep best: epochs without a better one before stopping.
        threads: of the CPU while fitting.
        device: "auto", "cpu" or "cuda".
        features: names of the columns to read, or a mapping from name to type ("numeric",
            "binary", "categorical", "datetime", or a `config.Feature`). None: all, their types
            inferred.
        calibration_fraction: share of the rows held out for the threshold; None: a tenth, and no
            more than 20/alpha.
        validation_fraction: share of the others that no weight learns from, 0.1: what is measured
            on unknown rows is measured on them.

    Attributes:
        offset_: minus the threshold; ``decision_function = score_samples − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: epochs trained.
        n_features_in_: columns of X.
        feature_names_in_: their names, where all are strings.
        notes_: what was decided about columns on the way.
    """

    KIND: ClassVar[str] = "tabular"
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]] = CONFIG_KEYS

    def __init__(
        self,
        *,
        preset: Literal["fast", "default", "best"] = "default",
        alpha: float = 0.05,
        score: Literal["neg_elbo", "reconstruction", "importance_weighted"] = "neg_elbo",
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
        noise: float | None = None,
        hide: float | None = None,
        guard: float | None = None,
        keep: Literal["best", "last"] | None = None,
        patience: int | None = None,
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        features: Sequence[str] | Mapping[str, str | Feature] | None = None,
        calibration_fraction: float | None = None,
        validation_fraction: float | None = None,
    ) -> None:
        super().__init__(
            preset=preset,
            alpha=alpha,
            score=score,
            epochs=epochs,
            random_state=random_state,
            method=method,
            draws=draws,
            model=model,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            likelihood=likelihood,
            variance_floor=variance_floor,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            beta=beta,
            kl_warmup=kl_warmup,
            free_bits=free_bits,
            trim=trim,
            keep=keep,
            patience=patience,
            threads=threads,
            device=device,
            calibration_fraction=calibration_fraction,
            validation_fraction=validation_fraction,
        )
        self.depth = depth
        self.members = members
        self.posterior_variance = posterior_variance
        self.prior = prior
        self.components = components
        self.noise = noise
        self.hide = hide
        self.guard = guard
        self.features = features

    # ------------------------------------------------------------ latent space

    def inverse_transform(self, X: ArrayLike) -> Any:
        """Latents (N, L) → the most probable rows, in the container that was fitted.

        Arrays have NaN where a column was left out; tables have the columns that
        `tables` describes.
        """
        check_is_fitted(self, "bundle_")
        return self._contained(tables.decode(self.bundle_, np.asarray(X, np.float32)))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Any:
        """Rows drawn from the model, in the container that was fitted.

        ``random_state`` None is the estimator's own, so that two calls agree.
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

    # ------------------------------------------------------------ a loaded one

    @classmethod
    def _arguments(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._arguments(manifest)
        if found["features"] is None and "container" not in manifest["data"]:
            columns = manifest["schema"]["columns"]  # a table with labels and ids beside them
            found["features"] = {column["name"]: column["type"] for column in columns}
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

    def _learn(self, X: Data, config: Config) -> Learned:
        assert isinstance(config, TabularConfig), "see KIND"
        container = detect_container(X)
        table = self._read(X, reset=True)
        inferred = _infer(table, config, numeric=container == "array")
        batch = _clean(inferred.schema, inferred.schema.from_arrow(table))
        origin = {"container": container, "columns": table.column_names}
        return Learned(inferred.schema, batch, origin, inferred.notes)

    def _batch(self, X: Data) -> RawBatch:
        """X as the model reads it."""
        check_is_fitted(self, "bundle_")
        schema = self.bundle_.scorer.schema
        assert isinstance(schema, TabularSchema), "see KIND"
        table = self._read(X, reset=False)
        absent = [name for name in schema.names if name not in table.column_names]
        if absent:
            raise DataError(
                f"X lacks columns that the model reads: {listed(absent)}; "
                "where their values are unknown, give them as missing"
            )
        return _clean(schema, schema.from_arrow(table))

    def _read(self, X: Data, reset: bool) -> pa.Table:
        """X as named columns; ``reset`` learns their names and number."""
        table = to_table(X)
        if table is None:
            return self._read_array(X, reset)
        if reset:
            self.feature_names_in_ = np.array(table.column_names, object)
            self.n_features_in_ = len(table.column_names)
        named = hasattr(self, "feature_names_in_")
        return table if named else self._read_array(table.to_pandas(), reset)

    def _read_array(self, X: Data, reset: bool) -> pa.Table:
        """Numbers by position, checked as scikit-learn does; NaN becomes null."""
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan")
        names = getattr(self, "feature_names_in_", array_names(array.shape[1]))
        columns = zip(names, array.T, strict=True)
        return pa.table({name: pa.array(column, from_pandas=True) for name, column in columns})


# ---------------------------------------------------------------- rows


def array_names(count: int) -> list[str]:
    """What the columns of an array are called: x0, x1, …"""
    return [f"x{i}" for i in range(count)]


def _infer(table: pa.Table, config: TabularConfig, numeric: bool) -> Inferred:
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
    wrong = {problem.column for problem in batch.problems[:1]}
    binary = any(c.name in wrong and c.type is ColumnType.BINARY for c in schema.columns)
    return usable(batch, "; declare its type under features" if binary else "")
