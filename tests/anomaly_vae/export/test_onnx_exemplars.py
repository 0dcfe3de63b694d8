"""The exemplars' nodes: what torch computes, exactly additive, and the same in any batch."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.export.graph_check import check_graph, torch_terms
from anomaly_vae.export.onnx_tabular import export_graph, tile_rows, weight_tensors
from anomaly_vae.models.builder import build
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.scorer import (
    BLOCK_ROWS,
    DISTINCT_ROWS,
    EXPLAIN,
    OUTPUTS,
    open_session,
    padded,
)
from tests.support.exemplars import exemplars_of

LAYOUTS = {
    "mixed": Layout(4, 2, (5, 6)),
    "numeric": Layout(4, 0, ()),
    "binary": Layout(0, 2, ()),
    "categorical": Layout(0, 0, (5, 2)),
    "a single level": Layout(0, 0, (1,)),
    "frequency bands": Layout(2, 1, (5, 2), ((-3.0, 0.0, 0.0, -1.5, -0.7), (0.0, 0.0))),
}
SHAPES = [
    {"members": 1},
    {"members": 3, "width": 1.0, "metric": True},
    {"members": 3, "reach": 2.0, "width": 5e-3},
    {"members": 1, "width": 1e-6, "metric": True},
]
"""With wide, mixed and narrow kernels; the exponents of narrow ones need float64."""


def rows_of(layout: Layout, n: int = 24) -> NDArray[np.float32]:
    """Ordinary and extreme rows; half of them have missing values, one has no value at all."""
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(n, layout.n_numeric))
    numeric[:2] *= 1e4
    binary = rng.integers(0, 2, (n, layout.n_binary))
    codes = rng.integers(0, np.array(layout.n_levels, int), (n, layout.n_categorical))
    x = np.concatenate([numeric, binary, codes], axis=1).astype(np.float32)
    x[n // 2 :][rng.random((n - n // 2, layout.n_columns)) < 0.3] = np.nan
    x[-1] = np.nan
    return x


def model_of(
    layout: Layout, members: int, reach: float = 0.0, width: float = 0.1, metric: bool = False
) -> VAE:
    """Return an untrained model with exemplars, whose kernels have variances around a width."""
    config = ModelConfig(members=members, hidden_dim=16, latent_dim=2, prior="standard")
    model = build(config, layout, 1).eval()
    model.reach = torch.tensor([reach]) if reach else None
    metric = metric and layout.n_numeric > 1
    model.exemplars = exemplars_of(layout, width=width, metric=metric)
    return model


def session_of(model: VAE, score: ScoreConfig) -> Any:
    weights = save_tensors(weight_tensors(model, score))
    return open_session(export_graph(model, score, weights), weights)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_the_graph_is_the_model_and_its_parts_add_up(layout: Layout, shape: dict[str, Any]) -> None:
    x, model = rows_of(layout), model_of(layout, **shape)
    for kind in ("neg_elbo", "importance_weighted"):
        score = ScoreConfig(type=kind, draws=1 if kind == "neg_elbo" else 4)
        got = dict(zip(OUTPUTS, session_of(model, score).run(OUTPUTS, {"x": x}), strict=True))
        assert check_graph(model, score, x, got["score"]) < 1e-5
        terms = torch_terms(model, score, torch.from_numpy(x))
        size = np.maximum(1, np.abs(got["nats"]).max(1))
        assert np.all(np.abs(got["nats"] + terms.log_prob.numpy()).max(1) < 1e-4 * size)
        whole = got["nats"].sum(1) + got["kl"]
        np.testing.assert_allclose(got["score"], whole, rtol=1e-12, atol=1e-12)
        assert np.all(got["nats"][np.isnan(x)] == 0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_scores_without_explanations_are_the_same(layout: Layout) -> None:
    x, session = rows_of(layout), session_of(model_of(layout, 3), ScoreConfig())
    asked = ("score", "kl")
    whole = session.run(asked, {"x": x})
    brief = session.run(asked, {"x": x, EXPLAIN: np.array(False)})
    for one, other in zip(whole, brief, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("width", [1.0, 5e-3, 1e-6])
def test_missing_values_of_other_rows_change_no_score(width: float, metric: bool) -> None:
    """A tile with gaps takes another branch of the graph."""
    model = model_of(LAYOUTS["mixed"], 3, width=width, metric=metric)
    x, session = rows_of(LAYOUTS["mixed"]), session_of(model, ScoreConfig())
    (together,) = session.run(("score",), {"x": x})
    for start in range(0, len(x), 4):
        (apart,) = session.run(("score",), {"x": x[start : start + 4]})
        np.testing.assert_array_equal(apart, together[start : start + 4])


@pytest.mark.parametrize("width", [1.0, 5e-3, 1e-6])
def test_a_lone_row_has_the_score_that_it_has_among_others(width: float) -> None:
    """To the last bit, also with more exemplars than a processor takes at a time."""
    layout, names = LAYOUTS["mixed"], ("score", "kl", "nats")
    model = model_of(layout, 3)
    model.exemplars = exemplars_of(layout, 301, width=width)
    x, session = rows_of(layout), session_of(model, ScoreConfig())
    together = session.run(names, {"x": x})
    for row in range(len(x)):
        alone = session.run(names, {"x": padded(x[row : row + 1], BLOCK_ROWS)})
        for one, every in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], every[row])


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("count", [300, 301])
@pytest.mark.parametrize("width", [1.0, 5e-3, 1e-6])
def test_a_repeated_row_is_compared_with_the_exemplars_once(
    width: float, count: int, equal: bool
) -> None:
    """Its score has the same bits, whatever its columns are, and also if values are missing."""
    names, brief = ("score", "kl"), {EXPLAIN: np.array(False)}
    for layout in LAYOUTS.values():
        model = model_of(layout, 3, reach=2.0)
        model.exemplars = exemplars_of(layout, count, width=width)
        if equal:
            model.exemplars.log_weight[:] = -np.log(count)
        x, session = rows_of(layout), session_of(model, ScoreConfig())
        together = session.run(names, {"x": x, **brief})
        for row in range(len(x)):
            given = {"x": padded(x[row : row + 1], BLOCK_ROWS), DISTINCT_ROWS: np.array([1])}
            alone = session.run(names, {**given, **brief})
            for one, every in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, every[row].repeat(BLOCK_ROWS))


def test_only_narrow_kernels_need_float64() -> None:
    """Where a few kernels are narrow, the exponents of the others remain in float32."""
    for width, kinds in ((1.0, {"f4"}), (5e-3, {"f4", "f8"}), (1e-6, {"f8"})):
        model = model_of(LAYOUTS["numeric"], 1, width=width)
        weights = save_tensors(weight_tensors(model, ScoreConfig()))
        graph = onnx.load_from_string(export_graph(model, ScoreConfig(), weights)).graph
        (choice,) = (n for n in graph.node if n.op_type == "If" and n.input[0] != EXPLAIN)
        complete = {a.name: a.g.node for a in choice.attribute}["else_branch"]
        products = [node.op_type for node in complete].count("MatMul")
        assert products == len(kinds) + 1, "and the sum over the exemplars"
        assert any(node.op_type == "Cast" for node in complete) == ("f8" in kinds)


@pytest.mark.parametrize(
    ("count", "rows"), [(7, 512), (1_024, 512), (2_048, 256), (3_601, 128), (4_096, 128)]
)
def test_more_exemplars_make_smaller_tiles(count: int, rows: int) -> None:
    assert tile_rows(exemplars_of(Layout(1, 0, ()), count)) == rows


@torch.no_grad()
def test_a_reconstruction_has_no_exemplars() -> None:
    layout = LAYOUTS["numeric"]
    x, model = rows_of(layout), model_of(layout, 1)
    score = ScoreConfig(type="reconstruction")
    (with_them,) = session_of(model, score).run(("score",), {"x": x})
    model.exemplars = None
    (without,) = session_of(model, score).run(("score",), {"x": x})
    np.testing.assert_array_equal(with_them, without)
