"""Teach a detector the anomalies that are known already, in a head beside it.

Boosted trees learn to tell the labelled anomalies from the normal training rows. The score of the
model is then the sum of two surprises, that of the detector and that of the trees. Each is −log of
the share of validation rows, which taught neither, with at least that score
(`calibration.surprise`). The sum is calibrated like any other score, so the false positive rate
keeps its bound, whatever the labels are. A row has a high sum if it is unlike the normal rows, or
like the known anomalies, or somewhat both (compare the integrative p-values of Liang, Sesia & Sun
2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.surprise import fit_surprise
from anomaly_vae.config import Config, TabularConfig
from anomaly_vae.config.scoring import SURPRISE
from anomaly_vae.data.encoding import Matrix, TabularEncoding
from anomaly_vae.data.splitting import MIN_KNOWN, spread
from anomaly_vae.errors import DataError, ExportError
from anomaly_vae.export.onnx_known import KnownHead, Trees, add_known_head, tree_margins
from anomaly_vae.scoring.scorer import open_session
from anomaly_vae.types import KNOWN_ANOMALIES

MAX_NORMAL = 500_000
"""Maximum number of normal rows that the trees learn from."""
MARGIN_TOLERANCE = 1e-4
"""Maximum difference between the margins of graph and trees, relative to max(1, |margin|)."""


@dataclass(frozen=True)
class KnownChoice:
    """Whether a model learns from known anomalies, and why."""

    wanted: bool
    """Whether `model.known` is ``auto``."""
    labels: int
    """Number of labelled anomalies of the training period."""

    @property
    def on(self) -> bool:
        """Whether there is a head."""
        return self.wanted and self.labels >= MIN_KNOWN

    def __str__(self) -> str:
        """Say whether it is on or off, and why."""
        found = f"{self.labels:,} labelled anomalies of the training period"
        if not self.wanted:
            return "known anomalies: off (model.known: off); the model learns from normal rows only"
        if self.on:
            return f"known anomalies: on, {found} teach the model what to look for"
        return f"known anomalies: off, {found} are too few: {MIN_KNOWN} are needed"


def learns_known(config: Config) -> bool:
    """Return whether the model learns from known anomalies, if there are enough of them."""
    return isinstance(config, TabularConfig) and config.model.known == "auto"


def known_choice(config: Config, labels: int) -> KnownChoice:
    """Return whether a configuration with this number of labels gets a head."""
    return KnownChoice(learns_known(config), labels)


def with_known_head(
    bundle: Bundle, train: Matrix, validation: Matrix, known: Matrix, seed: int
) -> Bundle:
    """Return a bundle whose score also says how much a row resembles known anomalies.

    Args:
        bundle: a model of tables without a head, not calibrated.
        train: (N, F) encoded normal rows that the detector learned from.
        validation: (V, F) encoded normal rows, which the trees do not learn from.
        known: (K, F) encoded labelled anomalies.
        seed: seed of the trees.

    Raises:
        DataError: a column has the name of the line in explanations.
        ExportError: the margins of the graph and of the trees differ on the validation rows.
    """
    encoding = bundle.scorer.encoding
    assert isinstance(encoding, TabularEncoding), "the configuration of images refuses the head"
    if KNOWN_ANOMALIES in encoding.labels:
        raise DataError(
            f"column '{KNOWN_ANOMALIES}' has the name that explanations give to the likeness to "
            "known anomalies (model.known); rename it or add it to data.ignore",
            column=KNOWN_ANOMALIES,
        )
    model = fit_trees(train, known, seed)
    trees = tree_table(model)
    margins = _margins(trees, model, validation)
    head = KnownHead(
        trees,
        fit_surprise(bundle.scorer.score_encoded(validation)),
        fit_surprise(margins),
        _columns_by_gain(model, encoding),
    )
    training = {**bundle.manifest["training"], "known": {"labels": len(known)}}
    manifest = {**bundle.manifest, "unit": SURPRISE, "training": training}
    return replace(bundle, manifest=manifest, graph=add_known_head(bundle.graph, head))


def fit_trees(train: Matrix, known: Matrix, seed: int) -> HistGradientBoostingClassifier:
    """Fit boosted trees that tell known anomalies (K, F) from normal rows (N, F).

    Of very many normal rows, `MAX_NORMAL` at equal distances are taken. Both classes have the same
    total weight. With equal weights of rows, few anomalies among many normal rows would hardly
    change a leaf.
    """
    normal = train[spread(len(train), MAX_NORMAL)]
    x = np.concatenate([normal, known])
    y = np.repeat([0, 1], [len(normal), len(known)])
    model = HistGradientBoostingClassifier(
        class_weight="balanced", early_stopping=False, random_state=seed
    )
    return model.fit(x, y)


def tree_table(model: HistGradientBoostingClassifier) -> Trees:
    """Return the nodes of fitted trees.

    scikit-learn compares float32 values with float64 thresholds. The largest float32 that is not
    above a threshold divides them in the same way.
    """
    nodes = [predictor.nodes for (predictor,) in model._predictors]
    table, leaf = np.concatenate(nodes), np.concatenate(nodes)["is_leaf"].astype(bool)
    sizes = [len(tree) for tree in nodes]
    return Trees(
        tree=np.repeat(np.arange(len(nodes)), sizes),
        node=np.concatenate([np.arange(size) for size in sizes]),
        feature=np.where(leaf, 0, table["feature_idx"]).astype(np.int64),
        threshold=np.where(leaf, 0, _round_down(table["num_threshold"])).astype(np.float32),
        left=np.where(leaf, 0, table["left"]).astype(np.int64),
        right=np.where(leaf, 0, table["right"]).astype(np.int64),
        missing_left=np.where(leaf, 0, table["missing_go_to_left"]).astype(np.int64),
        leaf=leaf,
        value=table["value"].astype(np.float32),
        baseline=float(model._baseline_prediction.item()),
    )


def _round_down(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 numbers that are not above these values."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def _margins(trees: Trees, model: HistGradientBoostingClassifier, x: Matrix) -> NDArray[np.float64]:
    """Return the margins (N,) that the graph computes.

    Raises:
        ExportError: they differ from those of the trees.
    """
    session = open_session(tree_margins(trees, x.shape[1]).SerializeToString(), b"")
    found: NDArray[np.float64] = session.run(["margin"], {"x": x})[0]
    truth: Any = model.decision_function(x)
    error = float(np.max(np.abs(found - truth) / np.maximum(1, np.abs(truth)), initial=0.0))
    if not error <= MARGIN_TOLERANCE:
        raise ExportError(
            f"the graph of the trees that learned from known anomalies differs from them by "
            f"{error:.1e} (allowed {MARGIN_TOLERANCE:.0e}); set model.known: off, and please "
            "report this with the version of scikit-learn"
        )
    return found


def _columns_by_gain(
    model: HistGradientBoostingClassifier, encoding: TabularEncoding
) -> tuple[int, ...]:
    """Return the raw columns that the trees use, by their total gain, largest first."""
    gains = np.zeros(encoding.layout.n_columns)
    for (predictor,) in model._predictors:
        inner = predictor.nodes[predictor.nodes["is_leaf"] == 0]
        np.add.at(gains, inner["feature_idx"], inner["gain"])
    by_column = encoding.cells @ gains
    order = np.argsort(-by_column, kind="stable")
    return tuple(int(c) for c in order if by_column[c] > 0)
