"""The comparison of a graph with torch: which differences are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_tensors

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.errors import ExportError
from anomaly_vae.export.graph_check import check_graph, torch_terms
from anomaly_vae.export.onnx_tabular import export_graph, weight_tensors
from anomaly_vae.scoring.scorer import open_session
from tests.support.tabular_graphs import LAYOUTS, model_of, rows_of, run


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
