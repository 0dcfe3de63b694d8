"""The nodes of likelihoods and expected values, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.export.tabular_terms import TermNodes
from tests.support.tabular_graphs import LAYOUTS, model_of, rows_of, values_of


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
@pytest.mark.parametrize("name", ["mixed", "binary", "only rare levels", "frequency bands"])
def test_terms_and_expected_values_are_those_of_torch(name: str, likelihood: str) -> None:
    layout = LAYOUTS[name]
    model, x = model_of(layout, members=1, likelihood=likelihood), rows_of(layout)
    nodes = TermNodes(model, ScoreConfig())
    parameters = nodes.parameters(nodes.means)
    names = [nodes.unscaled(parameters), nodes.term_factors, nodes.expected(parameters)]
    unscaled, factors, expected = values_of(nodes, names, x)
    rows = torch.from_numpy(x)
    found = model.infer(rows, rows.new_zeros(1, model.latent_dim))
    density = model.likelihood(found.outputs)
    truth = -density.log_prob(rows.unsqueeze(-2)).squeeze(-2).numpy()
    size = np.maximum(1, np.abs(truth).max(-1, keepdims=True))
    np.testing.assert_allclose(unscaled * factors / size, truth / size, atol=1e-4)
    np.testing.assert_allclose(expected, density.mean.squeeze(-2), rtol=1e-4, atol=1e-4)
