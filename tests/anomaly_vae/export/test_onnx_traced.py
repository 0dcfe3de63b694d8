"""The traced graph of an image model: nothing of this machine, the same twice, equal to torch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomaly_vae.config import ImageConfig
from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.errors import ExportError
from anomaly_vae.export import onnx_traced
from anomaly_vae.export.graph_check import TOLERANCE
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.onnx_tabular import IR_VERSION, OPSET
from anomaly_vae.export.onnx_traced import (
    check_traced,
    image_tensors,
    shared_graph,
    trace_graph,
)
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.models.builder import build
from anomaly_vae.scoring.scorer import OUTPUTS, open_session
from anomaly_vae.training.fit import Fitted, Prepared
from tests.support.paths import ROOT

SMALLEST = """
import hashlib, torch
from safetensors.numpy import save
from anomaly_vae.models.builder import build
from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.export.onnx_traced import image_tensors, trace_graph
layout = ImageLayout(1, 16)
model = build(ImageModelConfig(network="dense", latent_dim=2, hidden_dim=4), layout)
score = ImageScore(model, layout, ImageScoreConfig(draws=2))
graph = trace_graph(score, save(image_tensors(score)))
print(hashlib.sha256(graph).hexdigest())
"""
"""A program that traces one and the same model."""


@pytest.fixture(scope="module")
def score(image_fitted: Fitted, image_config: ImageConfig) -> ImageScore:
    """The fitted model's score, its statistics read back from the weights file."""
    layout = ImageLayout(image_config.data.channels, image_config.data.size)
    score = ImageScore(image_fitted.model, layout, image_config.score)
    tensors = load_tensors(image_fitted.bundle.weights)
    names = {name: name.removeprefix("model.") for name in score.state_dict()}
    score.load_state_dict({name: torch.from_numpy(tensors[key]) for name, key in names.items()})
    return score.eval()


@pytest.fixture(scope="module")
def proto(image_fitted: Fitted) -> onnx.ModelProto:
    return onnx.load_from_string(image_fitted.bundle.graph)


def test_nothing_of_this_machine_or_of_the_source_is_in_the_graph(image_fitted: Fitted) -> None:
    graph = image_fitted.bundle.graph
    for private in (str(ROOT), str(Path.home()), sys.prefix, ".py", "stack_trace", "pkg.torch"):
        assert private.encode() not in graph, private


def test_the_graph_is_plain_onnx_of_the_version_that_tables_have(proto: onnx.ModelProto) -> None:
    assert proto.ir_version == IR_VERSION
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert [value.name for value in proto.graph.input] == ["x"]
    assert [value.name for value in proto.graph.output] == list(OUTPUTS)


def test_weights_are_read_from_the_file_where_they_lie(
    proto: onnx.ModelProto, image_fitted: Fitted
) -> None:
    weights = image_fitted.bundle.weights
    tensors = load_tensors(weights)
    outside = [t for t in proto.graph.initializer if t.external_data]
    for tensor in outside:
        where = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(where["offset"]), int(where["length"])
        truth = tensors[tensor.name.removeprefix("model.")]
        assert weights[start : start + length] == truth.tobytes()
        assert tuple(tensor.dims) == truth.shape
        assert tensor.data_type == onnx.helper.np_dtype_to_tensor_dtype(truth.dtype)
    assert {t.name for t in outside} >= {"model.encoder.dense.0.weight", "center", "scale"}
    inside = sum(len(t.SerializeToString()) for t in proto.graph.initializer if not t.external_data)
    assert inside < 4_000, "a weight was copied into the graph"


def test_every_output_agrees_with_torch_whatever_the_batch(
    image_fitted: Fitted, image_prepared: Prepared, score: ImageScore
) -> None:
    session = open_session(image_fitted.bundle.graph, image_fitted.bundle.weights)
    x = image_prepared.train[:7]
    with torch.no_grad():
        truth = [part.numpy() for part in score(torch.from_numpy(x))]
    for size in (1, 2, 7):
        parts = [session.run(OUTPUTS, {"x": x[i : i + size]}) for i in range(0, 7, size)]
        for found, expected in zip(zip(*parts, strict=True), truth, strict=True):
            joined = np.concatenate(found)
            assert joined.dtype == expected.dtype
            np.testing.assert_allclose(joined, expected, rtol=1e-3, atol=1e-3)


def test_the_check_passes_the_graph_and_refuses_other_scores(
    image_fitted: Fitted, image_prepared: Prepared, score: ImageScore
) -> None:
    x = image_prepared.validation
    scores = image_fitted.bundle.scorer.score_encoded(x)
    assert check_traced(score, x, scores) < TOLERANCE
    assert image_fitted.graph_error < TOLERANCE
    with pytest.raises(ExportError, match="differs from the model by"):
        check_traced(score, x, scores + 0.01 * np.abs(scores).max())


@dataclass(frozen=True)
class Traced:
    """A score, what it held before it was traced in training mode, and its graph."""

    score: ImageScore
    before: dict[str, torch.Tensor]
    graph: bytes


@pytest.fixture(scope="module")
def traced(image_fitted: Fitted) -> Traced:
    """The model of `SMALLEST`, traced after another one in this process."""
    score = small_score(hidden_dim=4)[0].train()
    before = {name: value.clone() for name, value in score.state_dict().items()}
    return Traced(score, before, trace_graph(score, save_tensors(image_tensors(score))))


def small_score(seed: int = 0, **model: Any) -> tuple[ImageScore, ImageModelConfig]:
    layout, config = ImageLayout(1, 16), ImageModelConfig(network="dense", latent_dim=2, **model)
    return ImageScore(build(config, layout, seed), layout, ImageScoreConfig(draws=2)), config


def shared(score: ImageScore, config: ImageModelConfig) -> bytes:
    encoding = ImageEncoding(ImageLayout(1, 16), "unit")
    return shared_graph(score, encoding, save_tensors(image_tensors(score)), config)


def test_fits_of_one_configuration_share_the_graph_that_each_would_trace(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`traced` is of the same configuration, but has other weights."""
    monkeypatch.setattr(onnx_traced, "_graphs", {})
    first, other = small_score(1, hidden_dim=4), small_score(2, hidden_dim=4)
    graph = shared(*first)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_traced, "_trace", None)
        assert shared(*other) == graph
    assert traced.graph == graph


def test_other_configurations_have_graphs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_traced, "_graphs", {})
    monkeypatch.setattr(onnx_traced, "MAX_GRAPHS", 2)
    monkeypatch.setattr(onnx_traced, "trace_graph", lambda score, _: repr(score).encode())
    scores = [small_score(0, hidden_dim=size) for size in (4, 5, 6)]
    scores.append(small_score(0, hidden_dim=6, likelihood="laplace"))
    assert len({shared(*one) for one in scores}) == len(scores)
    assert len(onnx_traced._graphs) == 2, "the oldest are forgotten"


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_another_process(traced: Traced) -> None:
    other = subprocess.run(
        [sys.executable, "-c", SMALLEST], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == hashlib.sha256(traced.graph).hexdigest()
    assert "torch.onnx" not in other.stderr


def test_tracing_leaves_the_model_in_evaluation_and_its_weights_alone(traced: Traced) -> None:
    assert not traced.score.training
    state = traced.score.state_dict()
    assert all(torch.equal(state[name], value) for name, value in traced.before.items())


def test_the_weights_file_has_the_models_names_and_the_scores_statistics(traced: Traced) -> None:
    tensors = image_tensors(traced.score)
    assert set(traced.score.model.state_dict()) < set(tensors)
    assert {"noise", "center", "scale", "kl_center", "kl_scale"} < set(tensors)
    assert tensors["noise"].shape == (2, 2)
