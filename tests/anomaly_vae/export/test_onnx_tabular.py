"""The scoring graph: what torch computes, for every kind of model, from the weights' own bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.export.graph_check import check_graph, torch_terms
from anomaly_vae.export.onnx_tabular import export_graph, weight_tensors
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.scoring.scorer import OUTPUTS, open_session
from tests.support.tabular_graphs import LAYOUTS, model_of, rows_of, run

SHAPES = [
    {"members": 1, "posterior_variance": "row", "prior": "standard"},
    {"members": 1},
    {"members": 3},
    {"members": 3, "reach": 4.0},
    {"members": 2, "posterior_variance": "row", "prior": "standard"},
]
VARIANTS = [
    *itertools.product(["vae"], ["gaussian", "student_t"], ["neg_elbo"], [1, 5]),
    *itertools.product(["vae"], ["gaussian", "student_t"], ["importance_weighted"], [4]),
    *itertools.product(["vae", "autoencoder"], ["gaussian", "student_t"], ["reconstruction"], [1]),
    ("autoencoder", "gaussian", "neg_elbo", 4),
    ("autoencoder", "gaussian", "importance_weighted", 4),
]


def expected_of(model: VAE, rows: torch.Tensor) -> torch.Tensor:
    """What the first member's decoder makes of its posterior mean."""
    found = model.infer(rows, rows.new_zeros(1, model.latent_dim))
    mean = model.likelihood(found.outputs).mean
    return (mean if model.members == 1 else mean[0]).squeeze(1)


def score_config(kind: str, draws: int) -> ScoreConfig:
    return ScoreConfig.model_validate({"type": kind, "draws": draws})


def assert_agree(got: NDArray[Any], truth: torch.Tensor, what: str) -> None:
    """To 1e-4 of the largest value of the row: single precision, also at the extremes."""
    truth = np.asarray(truth)
    size = np.maximum(1, np.abs(truth).reshape(len(truth), -1).max(1))
    error = np.abs(got - truth).reshape(len(truth), -1).max(1) / size
    assert error.max() < 1e-4, what


@pytest.mark.parametrize("share", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=map(str, SHAPES))
@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_graph_is_the_model(name: str, shape: int, share: int) -> None:
    """Every output, for every model, likelihood and score.

    Half of the variants of each layout and shape are slow; the others have every pair of a layout
    and a variant, and of a shape and a variant.
    """
    layout, first = LAYOUTS[name], (list(LAYOUTS).index(name) + shape + share) % 2
    x = rows_of(layout)
    rows = torch.from_numpy(x)
    for kind, likelihood, score_type, draws in VARIANTS[first::2]:
        if likelihood == "student_t" and not layout.n_numeric:
            continue
        sizes: dict[str, Any] = {"hidden_dim": 32, **SHAPES[shape]}
        model = model_of(layout, type=kind, likelihood=likelihood, **sizes)
        score = score_config(score_type, draws)
        what = f"{kind} {likelihood} {score_type} {draws}"
        got = run(model, score, x)
        terms = torch_terms(model, score, rows)
        assert check_graph(model, score, x, got["score"]) < 1e-4, what
        assert_agree(got["nats"], -terms.log_prob, what)
        code, _ = model.posterior(rows)
        assert_agree(got["latent"], code if model.members == 1 else code[0], what)
        assert_agree(got["expected"], expected_of(model, rows), what)
        if score_type != "importance_weighted":  # there it is a small difference of large sums
            assert_agree(got["kl"], terms.kl.sum(-1), what)
        whole = got["nats"].astype(np.float64).sum(1) + got["kl"]
        np.testing.assert_allclose(got["score"], whole, rtol=1e-12, atol=1e-12)
        assert np.all(got["nats"][np.isnan(x)] == 0)
        assert [got[name].dtype for name in OUTPUTS] == [float, float, float, "f4", "f4"]


@torch.no_grad()
def test_a_guard_moves_a_score_by_its_reach_and_no_more_than_its_share() -> None:
    layout = LAYOUTS["numeric"]
    model, x = model_of(layout, members=3), rows_of(layout)
    every = -model.aggregated_elbo(torch.from_numpy(x), torch.zeros(1, 4)).bound.double().numpy()
    others, gap = every[:2].mean(0), every[2] - every[:2].mean(0)
    for reach in (0.1, 1.0, 1e12):
        model.reach = torch.tensor([reach])
        moved = np.clip(gap / 3, -reach, reach)
        got = run(model, ScoreConfig(), x)["score"]
        np.testing.assert_allclose(got, others + moved, rtol=1e-4)
        assert reach == 1e12 or 0 < np.mean(np.abs(moved) == reach) < 1
    model.reach = None
    np.testing.assert_allclose(run(model, ScoreConfig(), x)["score"], got, rtol=1e-4)


@torch.no_grad()
def test_a_guard_that_agrees_moves_nothing() -> None:
    layout = LAYOUTS["numeric"]
    model, x = model_of(layout, members=2, reach=1.0), rows_of(layout)
    for value in model.state_dict().values():
        if value.ndim > 1 and len(value) == 2:
            value[1] = value[0]
    alone = -model.aggregated_elbo(torch.from_numpy(x), torch.zeros(1, 4)).bound[0]
    np.testing.assert_allclose(run(model, ScoreConfig(), x)["score"], alone, rtol=1e-5)


@pytest.mark.parametrize("draws", [1, 2, 3, 8, 33])
def test_any_number_of_draws_exports(draws: int) -> None:
    layout = LAYOUTS["mixed"]
    model, x = model_of(layout), rows_of(layout)
    for kind in ("neg_elbo", "importance_weighted"):
        score = score_config(kind, draws)
        assert check_graph(model, score, x, run(model, score, x)["score"]) < 1e-4


@torch.no_grad()
def test_ordinary_rows_agree_to_single_precision() -> None:
    layout = LAYOUTS["mixed"]
    x = rows_of(layout)[5:]
    for kind, likelihood, score_type, draws in VARIANTS[::2]:
        model = model_of(layout, type=kind, likelihood=likelihood)
        score = score_config(score_type, draws)
        assert check_graph(model, score, x, run(model, score, x)["score"]) < 3e-6


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_any_depth_exports(depth: int) -> None:
    layout = LAYOUTS["mixed"]
    model = model_of(layout, depth=depth)
    x = rows_of(layout)
    assert check_graph(model, ScoreConfig(), x, run(model, ScoreConfig(), x)["score"]) < 1e-4


def test_the_score_is_near_what_float64_gives() -> None:
    """Sums over columns are in float64, so a wide table loses nothing to its width."""
    layout = LAYOUTS["wide"]
    model, x = model_of(layout), rows_of(layout)[5:]
    got = run(model, ScoreConfig(), x)["score"]
    with torch.no_grad():
        truth = -torch_terms(model.double(), ScoreConfig(), torch.from_numpy(x).double()).bound
    np.testing.assert_allclose(got, truth, rtol=1e-5)


# ---------------------------------------------------------------- the weights' bytes


def test_the_graph_reads_its_weights_from_the_safetensors_bytes() -> None:
    """The same graph over another model's bytes scores as that other model does."""
    layout, score = LAYOUTS["mixed"], ScoreConfig()
    one, other = (model_of(layout, seed=seed) for seed in (1, 2))
    bytes_of = [save_tensors(weight_tensors(model, score)) for model in (one, other)]
    graph = export_graph(one, score, bytes_of[0])
    x = rows_of(layout)
    for model, weights in zip((one, other), bytes_of, strict=True):
        scores = open_session(graph, weights).run(("score",), {"x": x})[0]
        check_graph(model, score, x, scores)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_of_a_row_is_summed_in_an_order_of_its_own(shape: dict[str, Any]) -> None:
    """Over a last axis a plain sum begins where memory is aligned; that of Softmax does not."""
    model = model_of(LAYOUTS["mixed"], **shape)
    for _, _, score_type, draws in VARIANTS:
        score = score_config(score_type, draws)
        weights = save_tensors(weight_tensors(model, score))
        proto = onnx.load_from_string(export_graph(model, score, weights)).graph
        known = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in local(proto)}
        of_rows, sums = {"x"}, []
        for node in proto.node:
            if of_rows.intersection(node.input):
                of_rows.update(node.output)
                axes = known.get(node.input[-1])
                if node.op_type in SUMS and axes == [-1]:
                    sums.append(node.op_type)
        assert not sums


SUMS = ("ReduceSum", "ReduceMean", "ReduceLogSumExp", "ReduceL2", "ReduceSumSquare")


def local(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The constants that a graph has itself."""
    return [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]


def test_no_weight_is_inside_the_graph() -> None:
    layout, score = LAYOUTS["wide"], ScoreConfig()
    model = model_of(layout)
    weights = save_tensors(weight_tensors(model, score))
    proto = onnx.load_from_string(export_graph(model, score, weights))
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            assert not tensor.raw_data
            assert {entry.key: entry.value for entry in tensor.external_data}["location"] == (
                "weights.safetensors"
            )
        else:
            assert np.prod(tensor.dims) <= 5 * model.members * model.latent_dim
    assert len(proto.SerializeToString()) < len(weights) / 50


def test_the_graph_is_valid_and_the_same_each_time(tmp_path: Path) -> None:
    layout, score = LAYOUTS["mixed"], ScoreConfig()
    model = model_of(layout, likelihood="student_t")
    weights = save_tensors(weight_tensors(model, score))
    graph = export_graph(model, score, weights)
    assert graph == export_graph(model, score, weights)
    (tmp_path / "weights.safetensors").write_bytes(weights)
    (tmp_path / "graph.onnx").write_bytes(graph)
    onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)


def test_the_weights_hold_every_parameter_and_the_frozen_draws() -> None:
    model, score = model_of(LAYOUTS["mixed"]), ScoreConfig(draws=6, seed=3)
    tensors = load_tensors(save_tensors(weight_tensors(model, score)))
    noise = tensors.pop("noise")
    np.testing.assert_array_equal(noise, frozen_noise(6, model.latent_dim, 3))
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(np.array_equal(tensors[name], value) for name, value in state.items())
