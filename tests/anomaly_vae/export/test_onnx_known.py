"""The graph of a detector that has learned from known anomalies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.surprise import fit_surprise
from anomaly_vae.export.onnx_known import KnownHead, add_known_head, tree_margins
from anomaly_vae.scoring.scorer import (
    KNOWN_COLUMNS,
    KNOWN_OUTPUTS,
    OUTPUTS,
    TILE_ROWS,
    open_session,
)
from anomaly_vae.training.fit import Prepared, fit_bundle
from anomaly_vae.training.known_anomalies import fit_trees, tree_table
from tests.support.known import known_config, prepared_rows


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Return the encoded rows."""
    return prepared_rows(known_config())


@pytest.fixture(scope="module")
def plain(prepared: Prepared) -> Bundle:
    """Return a detector that has not learned from known anomalies."""
    return fit_bundle(known_config("off"), prepared, data={}).bundle


@pytest.fixture(scope="module")
def head(prepared: Prepared, plain: Bundle) -> KnownHead:
    """Return trees and curves."""
    trees = tree_table(fit_trees(prepared.train, prepared.known, seed=0))
    session = open_session(tree_margins(trees, prepared.train.shape[1]).SerializeToString(), b"")
    margins = session.run(["margin"], {"x": prepared.validation})[0]
    detector = plain.scorer.score_encoded(prepared.validation)
    return KnownHead(trees, fit_surprise(detector), fit_surprise(margins), (1, 0))


@pytest.fixture(scope="module")
def with_head(plain: Bundle, head: KnownHead) -> Bundle:
    """Return the detector with the head."""
    return replace(plain, graph=add_known_head(plain.graph, head))


@pytest.fixture(scope="module")
def x(prepared: Prepared) -> np.ndarray:
    """Return rows of all kinds, extremes and rows without values among them."""
    rng = np.random.default_rng(0)
    wild = (10.0 ** rng.integers(-3, 5, (200, prepared.train.shape[1]))).astype(np.float32)
    empty = np.full((1, prepared.train.shape[1]), np.nan, np.float32)
    wild[:, -1] = 1
    return np.concatenate([prepared.known, prepared.validation, prepared.train[:300], wild, empty])


def test_the_score_is_the_sum_of_both_surprises(plain, with_head, head, x):
    session = open_session(tree_margins(head.trees, x.shape[1]).SerializeToString(), b"")
    margins = session.run(["margin"], {"x": x})[0]
    detector = head.detector_curve(plain.scorer.score_encoded(x))
    known = head.trees_curve(margins)
    found = with_head.scorer.explain_encoded(x)
    np.testing.assert_allclose(found.known, known, rtol=1e-12)
    np.testing.assert_allclose(found.score, detector + known, rtol=1e-12)
    np.testing.assert_array_equal(with_head.scorer.score_encoded(x), found.score)


def test_the_parts_sum_to_the_score(with_head, x):
    found = with_head.scorer.explain_encoded(x)
    assert np.isfinite(found.nats).all()
    total = found.nats.sum(1) + found.kl + found.known
    size = np.abs(found.nats).sum(1) + np.abs(found.kl)
    assert (np.abs(total - found.score) <= 1e-12 * np.maximum(size, 1)).all()


def test_the_detector_s_own_outputs_stay(plain, with_head, x):
    before, now = (bundle.scorer.explain_encoded(x) for bundle in (plain, with_head))
    for name in ("expected", "latent", "loss", "rate"):
        np.testing.assert_array_equal(getattr(before, name), getattr(now, name))
    signs = np.sign(before.nats), np.sign(now.nats)
    np.testing.assert_array_equal(*signs)


def test_a_higher_detector_score_never_gets_a_lower_surprise(plain, with_head, x):
    scores, found = plain.scorer.score_encoded(x), with_head.scorer.explain_encoded(x)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found.unknown[order]) >= -1e-12).all()


@pytest.mark.parametrize("size", [1, 3, 13])
def test_a_row_has_one_score_in_any_batch(with_head, x, size):
    whole = with_head.scorer.explain_encoded(x)
    parts = [with_head.scorer.score_encoded(x[i : i + size]) for i in range(0, len(x), size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.score)


def test_the_margin_is_that_of_the_trees_even_at_thresholds_and_without_values(prepared, head):
    model = fit_trees(prepared.train, prepared.known, seed=0)
    x = prepared.validation[:1].repeat(4_000, 0)
    rng = np.random.default_rng(0)
    inner = np.flatnonzero(~head.trees.leaf)
    at = rng.choice(inner, len(x))
    steps = rng.integers(-1, 2, len(x))
    values = head.trees.threshold[at]
    values = np.where(steps > 0, np.nextafter(values, np.float32(np.inf)), values)
    values = np.where(steps < 0, np.nextafter(values, np.float32(-np.inf)), values)
    x[np.arange(len(x)), head.trees.feature[at]] = values
    x[rng.random(x.shape) < 0.05] = np.nan
    session = open_session(tree_margins(head.trees, x.shape[1]).SerializeToString(), b"")
    margins = session.run(["margin"], {"x": x})[0]
    np.testing.assert_allclose(margins, model.decision_function(x), rtol=1e-5, atol=1e-5)


def test_a_graph_with_a_head_keeps_its_outputs_and_gets_three_more(plain, with_head):
    names = [value.name for value in onnx.load_from_string(with_head.graph).graph.output]
    assert names == [*OUTPUTS, *KNOWN_OUTPUTS]
    assert with_head.weights == plain.weights
    assert with_head.scorer.known_columns == (1, 0)
    assert not plain.scorer.has_head


def test_the_detector_s_score_is_compared_with_torch(plain, with_head, x):
    np.testing.assert_array_equal(
        with_head.scorer.detector_scores(x), plain.scorer.score_encoded(x)
    )
    np.testing.assert_array_equal(plain.scorer.detector_scores(x), plain.scorer.score_encoded(x))


def test_a_detector_with_a_member_at_exemplars_learns_from_known_anomalies() -> None:
    config = known_config(exemplars=64)
    prepared = prepared_rows(config)
    bundle = fit_bundle(config, prepared, data={}).bundle
    graph = onnx.load_from_string(bundle.graph).graph
    assert any(node.op_type == "If" for node in graph.node)
    properties = {entry.key for entry in onnx.load_from_string(bundle.graph).metadata_props}
    assert properties == {TILE_ROWS, KNOWN_COLUMNS}
    known, normal = (bundle.scorer.score_encoded(x) for x in (prepared.known, prepared.validation))
    found = bundle.scorer.explain_encoded(prepared.validation)
    np.testing.assert_allclose(found.nats.sum(1) + found.kl + found.known, normal, rtol=1e-9)
    assert np.median(known) > np.quantile(normal, 0.95)
