"""Tabular models of every kind, rows for them, and what their graphs make of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save as save_tensors

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.export.external_weights import external_tensors
from anomaly_vae.export.onnx_tabular import IR_VERSION, OPSET, export_graph, weight_tensors
from anomaly_vae.export.tabular_networks import NetworkNodes
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import build
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.priors import Mixture
from anomaly_vae.models.vae import VAE
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


def run(model: VAE, score: ScoreConfig, x: Rows) -> dict[str, NDArray[Any]]:
    """Return the outputs of the model's graph for rows."""
    weights = save_tensors(weight_tensors(model, score))
    session = open_session(export_graph(model, score, weights), weights)
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"x": x}), strict=True))


def values_of(nodes: NetworkNodes, names: Sequence[str], x: Rows) -> list[NDArray[Any]]:
    """Return named values of nodes for rows (N, F)."""
    weights = save_tensors(weight_tensors(nodes.model, nodes.score))
    constants = [*nodes.g.constants.values(), *external_tensors(weights, nodes.used)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", x.shape[1]])]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    graph = helper.make_graph(nodes.g.nodes, "part", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    found: list[NDArray[Any]] = open_session(proto.SerializeToString(), weights).run(
        names, {"x": x}
    )
    return found
