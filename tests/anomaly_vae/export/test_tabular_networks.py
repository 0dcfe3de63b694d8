"""The nodes of encoder and decoder, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.export.tabular_networks import NetworkNodes
from anomaly_vae.models.likelihoods import squash
from tests.support.tabular_graphs import LAYOUTS, model_of, rows_of, values_of


@torch.no_grad()
@pytest.mark.parametrize("posterior_variance", ["row", "shared"])
@pytest.mark.parametrize("members", [1, 3])
def test_the_posterior_is_that_of_torch(members: int, posterior_variance: str) -> None:
    layout = LAYOUTS["mixed"]
    model = model_of(layout, members=members, posterior_variance=posterior_variance)
    x = rows_of(layout)
    nodes = NetworkNodes(model, ScoreConfig())
    mean, log_var = values_of(nodes, [nodes.mean, nodes.log_var], x)
    expected = [value.squeeze(-2) for value in model.posterior(torch.from_numpy(x))]
    if members > 1:
        expected = [value.movedim(0, 1) for value in expected]
    np.testing.assert_allclose(mean, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        np.broadcast_to(log_var, mean.shape), expected[1].expand(mean.shape), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_large_numbers_are_squashed_as_in_torch() -> None:
    layout = LAYOUTS["numeric"]
    nodes = NetworkNodes(model_of(layout), ScoreConfig())
    x = np.array([[0.5, -3.0, 1e4, np.nan]], np.float32)
    (features,) = values_of(nodes, [nodes.features()], x)
    numbers = squash(torch.from_numpy(np.nan_to_num(x))).numpy()
    np.testing.assert_allclose(features, np.hstack([numbers, np.isnan(x)]), rtol=1e-6)


def test_rows_are_split_by_the_kind_of_their_columns() -> None:
    layout = LAYOUTS["mixed"]
    nodes, x = NetworkNodes(model_of(layout), ScoreConfig()), rows_of(layout)
    parts = values_of(nodes, nodes.kinds(nodes.filled), x)
    assert [part.shape[1] for part in parts] == [4, 2, 2]
    np.testing.assert_array_equal(np.hstack(parts), np.nan_to_num(x))
    assert nodes.kinds(nodes.filled) == nodes.kinds(nodes.filled)
    only_numbers = NetworkNodes(model_of(LAYOUTS["numeric"]), ScoreConfig())
    assert only_numbers.kinds(only_numbers.filled) == [only_numbers.filled, "", ""]
