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

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.errors import ExportError
from anomaly_vae.export.onnx_tabular import check_graph, export_graph, torch_terms, weight_tensors
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import build
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.priors import Mixture
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.scoring.scorer import OUTPUTS, open_session

Rows = NDArray[np.float32]
LAYOUTS = {
    "mixed": Layout(4, 2, (5, 6)),
    "numeric": Layout(4, 0, ()),
    "one column": Layout(1, 0, ()),
    "binary": Layout(0, 2, ()),
    "categorical": Layout(0, 0, (5, 2)),
    "only rare levels": Layout(1, 0, (1, 1)),
    "a single level": Layout(0, 0, (1,)),
    "wide": Layout(1_500, 0, ()),
    "frequency bands": Layout(2, 1, (5, 2), ((-3.0, 0.0, 0.0, -1.5, -0.7), (0.0, 0.0))),
}
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


def rows_of(layout: Layout, n: int = 20) -> Rows:
    """Ordinary rows, rows at the extremes of the encoding, and missing values up to a whole row."""
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(n, layout.n_numeric))
    numeric[:4] = np.array([1e4, -1e4, 1e4, 1e2])[:, None]
    numeric[2, ::2] *= -1
    binary = rng.integers(0, 2, (n, layout.n_binary))
    codes = rng.integers(0, np.array(layout.n_levels, int), (n, layout.n_categorical))
    x = np.concatenate([numeric, binary, codes], axis=1).astype(np.float32)
    x[5:][rng.random((n - 5, layout.n_columns)) < 0.1] = np.nan
    x[4] = np.nan
    return x


def model_of(layout: Layout, seed: int = 1, reach: float = 0.0, **changes: Any) -> VAE:
    """Untrained; degrees of freedom, biases and variances moved off what they start with."""
    small = {"latent_dim": min(layout.n_columns, 8), **changes}
    model = build(ModelConfig.model_validate(small), layout, seed).eval()
    assert isinstance(model.likelihood, TabularLikelihood)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.endswith("weight"):
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
        factor = model.likelihood.variance_factor
        factor.add_(torch.rand(factor.shape, generator=generator))
        model.likelihood.variance_limit.fill_(1.5)
    if small.get("prior") != "standard" and not isinstance(model, Autoencoder):
        parts = [mixture_of(model.latent_dim, seed + member) for member in range(model.members)]
        model.aggregated = Mixture.stack(parts) if len(parts) > 1 else parts[0]
    if reach:
        model.reach = torch.tensor([reach])
    return model


def mixture_of(latent_dim: int, seed: int) -> Mixture:
    """Five parts, one of them narrow."""
    generator = torch.Generator().manual_seed(seed)
    log_weight = torch.log_softmax(torch.randn(5, generator=generator), 0)
    center = 2 * torch.randn(5, latent_dim, generator=generator)
    log_var = torch.tensor([-3.0, 0, 0, 0.5, 1])
    return Mixture(log_weight, center, log_var, torch.full((1, latent_dim), 0.5))


def expected_of(model: VAE, rows: torch.Tensor) -> torch.Tensor:
    """What the first member's decoder makes of its posterior mean."""
    found = model.infer(rows, rows.new_zeros(1, model.latent_dim))
    mean = model.likelihood(found.outputs).mean
    return (mean if model.members == 1 else mean[0]).squeeze(1)


def run(model: VAE, score: ScoreConfig, x: Rows) -> dict[str, NDArray[Any]]:
    weights = save_tensors(weight_tensors(model, score))
    session = open_session(export_graph(model, score, weights), weights)
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"x": x}), strict=True))


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


# ---------------------------------------------------------------- the check


def test_scores_that_are_not_the_models_are_refused() -> None:
    layout, score = LAYOUTS["mixed"], ScoreConfig()
    model, x = model_of(layout), rows_of(layout)
    scores = run(model, score, x)["score"]
    for spoil in (0.02, np.nan, np.inf):
        tampered = scores.copy()
        tampered[7] += spoil
        with pytest.raises(ExportError, match="differs from the model"):
            check_graph(model, score, x, tampered)


@torch.no_grad()
def test_a_difference_is_compared_with_the_terms_and_not_with_their_sum() -> None:
    """A score near 0 may be the sum of large terms of both signs, each with its own rounding."""
    model, x = model_of(LAYOUTS["numeric"], members=1), rows_of(LAYOUTS["numeric"])[5:]
    assert model.aggregated is not None
    model.aggregated.log_weight += 20.0
    terms = torch_terms(model, ScoreConfig(), torch.from_numpy(x))
    size = (terms.log_prob.abs().sum(-1) + terms.kl.sum(-1).abs()).double().numpy()
    scores = -terms.bound.double().numpy()
    assert np.any(size > 2 * np.maximum(1, np.abs(scores)))
    check_graph(model, ScoreConfig(), x, scores + 0.9e-4 * np.maximum(1, size))
    with pytest.raises(ExportError, match="differs from the model"):
        check_graph(model, ScoreConfig(), x, scores + 1.1e-4 * np.maximum(1, size))


@pytest.mark.parametrize(
    "name",
    [
        "noise",
        "encoder.log_var",
        "encoder.network.skip.weight",
        "decoder.network.out.weight",
        "aggregated.center",
        "aggregated.log_var",
        "likelihood.variance_factor",
        "likelihood.variance_limit",
    ],
)
def test_a_graph_over_tampered_weights_is_refused(name: str) -> None:
    layout, score = LAYOUTS["mixed"], ScoreConfig(draws=4)
    model, x = model_of(layout), rows_of(layout)
    tensors = weight_tensors(model, score)
    tensors[name] = 1.2 * tensors[name]
    weights = save_tensors(tensors)
    session = open_session(export_graph(model, score, weights), weights)
    with pytest.raises(ExportError):
        check_graph(model, score, x, session.run(("score",), {"x": x})[0])


def test_the_check_of_no_rows_passes() -> None:
    layout = LAYOUTS["numeric"]
    empty = np.empty((0, 4), np.float32)
    assert check_graph(model_of(layout), ScoreConfig(), empty, np.empty(0)) == 0
