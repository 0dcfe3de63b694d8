"""Trained model → the scoring graph, built node by node and checked against torch.

The graph is ONNX with one input ``x`` (N, F), NaN where missing, and the outputs

    score     (N,)    float64, nats; the anomaly score
    nats      (N, F)  float32, each column's share of it
    kl        (N,)    float64, the rate's share of it; score = Σ nats + kl
    expected  (N, F)  float32, the decoder's mean at the posterior mean
    latent    (N, L)  float32, the posterior mean

Its weights are not inside: they are read from ``weights.safetensors`` by offset, the same bytes
that generation loads into torch. Building it directly takes milliseconds, where an exporter
takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from anomaly_vae.autoencoder import Autoencoder
from anomaly_vae.config import ScoreConfig
from anomaly_vae.encoding import Layout
from anomaly_vae.errors import ExportError
from anomaly_vae.likelihoods import (
    LINEAR_RANGE,
    LOG_2PI,
    LOGIT_BOUND,
    UNIFORM_SHARE,
    StudentT,
    TabularLikelihood,
)
from anomaly_vae.networks import MLP, Encoder
from anomaly_vae.vae import VAE, Terms, frozen_noise

OPSET = 18
IR_VERSION = 10
WEIGHTS_FILE = "weights.safetensors"
NOISE = "noise"
LARGEST_EXPONENT = 80.0
"""A float32 exponential overflows beyond 88."""
TOLERANCE = 1e-4
"""Largest relative disagreement, in nats over max(1, |score|), between graph and torch."""


class Graph:
    """Nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def __call__(self, op: str, *inputs: str | float, **attributes: Any) -> str:
        """Add a node; plain numbers become float32 constants. Returns its output's name."""
        return self.many(op, 1, *inputs, **attributes)[0]

    def many(self, op: str, outputs: int, *inputs: str | float, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        edges = [self.constant(np.float32(i)) if isinstance(i, int | float) else i for i in inputs]
        self.nodes.append(helper.make_node(op, edges, names, **attributes))
        return names

    def constant(self, value: Any) -> str:
        """A constant; equal ones are shared."""
        array = np.asarray(value)
        name = f"c_{array.dtype}_{array.shape}_{hash_of(array)}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def axes(self, *axes: int) -> str:
        """An axes argument."""
        return self.constant(np.array(axes, np.int64))

    def named(self, name: str, value: str) -> None:
        """Give a value an output's name."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def sum(self, value: str, axis: int, keepdims: int = 0) -> str:
        """Sum over one axis."""
        return self("ReduceSum", value, self.axes(axis), keepdims=keepdims)

    def cast(self, value: str, to: int = TensorProto.FLOAT) -> str:
        """Change the element type."""
        return self("Cast", value, to=to)

    def slice(self, value: str, start: int, stop: int) -> str:
        """Columns [start, stop) of the last axis."""
        bounds = (self.axes(start), self.axes(stop), self.axes(-1))
        return self("Slice", value, *bounds)


def weight_tensors(model: VAE, score: ScoreConfig) -> dict[str, NDArray[Any]]:
    """Everything ``weights.safetensors`` holds: the parameters and the frozen draws."""
    tensors = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    tensors[NOISE] = frozen_noise(score.draws, model.latent_dim, score.seed).numpy()
    return tensors


def export_graph(model: VAE, score: ScoreConfig, weights: bytes) -> bytes:
    """The scoring graph of a trained model; ``weights`` is the safetensors file it will read."""
    builder = _Builder(model, score)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", builder.layout.n_columns])
    ]
    outputs = builder.outputs()
    graph = helper.make_graph(
        builder.g.nodes,
        "scoring",
        inputs,
        outputs,
        [*builder.g.constants.values(), *_external(weights, builder.used)],
    )
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(proto.SerializeToString(deterministic=True))


class _Builder:
    """Mirrors `VAE.elbo` and its siblings, and the tabular likelihoods, as nodes."""

    def __init__(self, model: VAE, score: ScoreConfig) -> None:
        self.model, self.score = model, score
        likelihood = model.likelihood
        assert isinstance(likelihood, TabularLikelihood), "the only kind so far"
        self.likelihood = likelihood
        self.layout: Layout = likelihood.layout
        self.g = Graph()
        self.used: set[str] = set()

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Build everything; returns the graph's outputs."""
        g, f, latent = self.g, self.layout.n_columns, self.model.latent_dim
        self.missing = g("IsNaN", "x")
        self.filled = g("Where", self.missing, 0.0, "x")
        self.mean, self.log_var = self.posterior()
        at_mean = self.parameters(self.mean)
        nats, kl = self.terms(at_mean)
        g.named("nats", nats)
        g.named("kl", kl)
        total = g.sum(g.cast(nats, TensorProto.DOUBLE), -1)
        g.named("score", g("Add", total, kl))
        g.named("expected", self.expected(at_mean))
        g.named("latent", self.mean)
        shapes: dict[str, list[str | int | None]] = {
            "score": ["N"],
            "nats": ["N", f],
            "kl": ["N"],
            "expected": ["N", f],
        }
        shapes["latent"] = ["N", latent]
        double = {"score", "kl"}
        return [
            helper.make_tensor_value_info(
                name, TensorProto.DOUBLE if name in double else TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    # ------------------------------------------------------------ networks

    def weight(self, name: str) -> str:
        """A tensor of ``weights.safetensors``."""
        self.used.add(name)
        return name

    def linear(self, x: str, prefix: str, bias: bool = True) -> str:
        """x Wᵀ + b over the last axis."""
        g = self.g
        y = g("MatMul", x, g("Transpose", self.weight(f"{prefix}.weight"), perm=[1, 0]))
        return g("Add", y, self.weight(f"{prefix}.bias")) if bias else y

    def mlp(self, x: str, network: MLP, prefix: str) -> str:
        """See `networks.MLP`."""
        g = self.g
        y = self.linear(x, f"{prefix}.skip")
        for index in range(len(network.hidden)):
            h = self.linear(x, f"{prefix}.hidden.{index}")
            x = g("Mul", h, g("Sigmoid", h))
        return (
            y if network.out is None else g("Add", y, self.linear(x, f"{prefix}.out", bias=False))
        )

    def features(self) -> str:
        """See `likelihoods.TabularFeatures`."""
        g, layout = self.g, self.layout
        first = layout.n_numeric + layout.n_binary
        pieces = [self.squashed(g.slice(self.filled, 0, first))]
        if layout.n_categorical:
            codes = g("Unsqueeze", g.slice(self.filled, first, layout.n_columns), g.axes(-1))
            levels = g.constant(np.arange(1, layout.max_levels, dtype=np.float32))
            pieces.append(g("Flatten", g.cast(g("Equal", codes, levels)), axis=1))
        return g("Concat", *pieces, g.cast(self.missing), axis=-1)

    def squashed(self, x: str) -> str:
        """See `likelihoods.squashed`; zeros and ones stay what they are."""
        g = self.g
        excess = g("Relu", g("Sub", g("Abs", x), LINEAR_RANGE))
        bent = g("Sub", excess, g("Log", g("Add", excess, 1.0)))
        return g("Sub", x, g("Mul", g("Sign", x), bent))

    def posterior(self) -> tuple[str, str]:
        """See `networks.Encoder`."""
        g = self.g
        out = self.mlp(self.features(), _network(self.model.encoder), "encoder.network")
        mean, log_var = g.many("Split", 2, out, axis=-1, num_outputs=2)
        return mean, g("Clip", log_var, *Encoder.LOG_VAR)

    # ------------------------------------------------------------ scores

    def terms(self, at_mean: list[str]) -> tuple[str, str]:
        """(nats, kl) of the configured score, both to be summed."""
        g = self.g
        kind = "reconstruction" if isinstance(self.model, Autoencoder) else self.score.type
        if kind == "reconstruction":
            nats = g("Neg", self.log_prob(at_mean, self.filled, self.missing))
            zero = g("Mul", g.sum(g.cast(self.mean, TensorProto.DOUBLE), -1), self.double(0.0))
            return nats, zero
        if kind == "neg_elbo" and self.score.draws == 1:  # the draw is the mean
            return g("Neg", self.log_prob(at_mean, self.filled, self.missing)), self.kl()
        z, x, missing, noise = self.draws()
        log_prob = self.log_prob(self.parameters(z), x, missing)
        if kind == "importance_weighted":
            return self.importance_weighted(z, noise, log_prob)
        nats = g("Neg", g("ReduceMean", log_prob, g.axes(1), keepdims=0))
        return nats, self.kl()

    def draws(self) -> tuple[str, str, str, str]:
        """z (N, K, L), then x and its mask with an axis for the draws, and the noise."""
        g = self.g
        sigma = g("Unsqueeze", g("Exp", g("Mul", self.log_var, 0.5)), g.axes(1))
        noise = self.weight(NOISE)
        z = g("Add", g("Unsqueeze", self.mean, g.axes(1)), g("Mul", sigma, noise))
        x, missing = (g("Unsqueeze", v, g.axes(1)) for v in (self.filled, self.missing))
        return z, x, missing, noise

    def kl(self) -> str:
        """See `priors.StandardNormal.kl`, summed in float64."""
        g = self.g
        square = g("Mul", self.mean, self.mean)
        inner = g("Sub", g("Sub", g("Add", square, g("Exp", self.log_var)), 1.0), self.log_var)
        return g.sum(g.cast(g("Mul", inner, 0.5), TensorProto.DOUBLE), -1)

    def importance_weighted(self, z: str, noise: str, log_prob: str) -> tuple[str, str]:
        """See `VAE.importance_weighted`."""
        g = self.g
        log_2pi = LOG_2PI * self.model.latent_dim
        prior = g("Sub", g("Mul", g.sum(g("Mul", z, z), -1), -0.5), 0.5 * log_2pi)
        spread = g("Unsqueeze", g.sum(self.log_var, -1), g.axes(1))
        posterior = g("Add", g.sum(g("Mul", noise, noise), -1), spread)
        log_q = g("Sub", g("Mul", posterior, -0.5), 0.5 * log_2pi)
        log_w = g("Sub", g("Add", g.sum(log_prob, -1), prior), log_q)
        bound = g(
            "Sub", g("ReduceLogSumExp", log_w, g.axes(1), keepdims=0), math.log(self.score.draws)
        )
        weights = g("Unsqueeze", g("Softmax", log_w, axis=1), g.axes(-1))
        nats = g("Neg", g.sum(g("Mul", weights, log_prob), 1))
        total = g.sum(g.cast(nats, TensorProto.DOUBLE), -1)
        return nats, g("Sub", g("Neg", g.cast(bound, TensorProto.DOUBLE)), total)

    # ------------------------------------------------------------ likelihoods

    def parameters(self, z: str) -> list[str]:
        """Decoder outputs, one value per non-empty block of `TabularLikelihood.widths`."""
        out = self.mlp(z, _network(self.model.decoder), "decoder.network")
        ends = np.cumsum(self.likelihood.widths)
        spans = zip(ends - self.likelihood.widths, ends, strict=True)
        return [self.g.slice(out, int(a), int(b)) if b > a else "" for a, b in spans]

    def log_prob(self, parameters: list[str], x: str, missing: str) -> str:
        """See `likelihoods.Joint.log_prob`."""
        g, layout = self.g, self.layout
        mean, raw, binary, levels = parameters
        a, b = layout.n_numeric, layout.n_numeric + layout.n_binary
        pieces = []
        if mean:
            pieces.append(self.numeric(g.slice(x, 0, a), mean, raw))
        if binary:
            logits = self.bounded(binary)
            product = g("Mul", g.slice(x, a, b), logits)
            pieces.append(g("Sub", product, g("Softplus", logits)))
        if levels:
            codes = g("Unsqueeze", g.slice(x, b, layout.n_columns), g.axes(-1))
            index = g.constant(np.arange(layout.max_levels, dtype=np.float32))
            chosen = g("Mul", self.probs(levels), g.cast(g("Equal", codes, index)))
            pieces.append(g("Log", g.sum(chosen, -1)))
        nats = g("Concat", *pieces, axis=-1)
        return g("Where", missing, 0.0, nats)

    def numeric(self, x: str, mean: str, raw: str) -> str:
        """See `likelihoods.Gaussian` and `StudentT`; lgamma has no node, so it is a constant."""
        g = self.g
        variance = g(
            "Add", g("Exp", g("Min", raw, LARGEST_EXPONENT)), self.likelihood.variance_floor
        )
        log_var = g("Log", variance)
        residual = g("Sub", x, mean)
        squared = g("Div", g("Mul", residual, residual), variance)
        if self.likelihood.raw_df is None:
            return g("Mul", g("Add", g("Add", squared, log_var), LOG_2PI), -0.5)
        df = self.likelihood.df().detach()
        norm = g.constant(StudentT.log_norm(df.double()).float().numpy())
        slope = g.constant(((df + 1) / 2).numpy())
        ratio = g("Div", squared, g.constant(df.numpy()))
        tail = g("Mul", g("Log", g("Add", ratio, 1.0)), slope)
        return g("Sub", g("Sub", norm, g("Mul", log_var, 0.5)), tail)

    def bounded(self, logits: str) -> str:
        """See `likelihoods.bounded`."""
        g = self.g
        return g("Mul", g("Tanh", g("Div", logits, LOGIT_BOUND)), LOGIT_BOUND)

    def probs(self, levels: str) -> str:
        """See `likelihoods.Categorical.probs`: (..., C, Kmax)."""
        g = self.g
        present = self.likelihood.present.numpy()
        shape = g("Concat", g("Shape", levels, end=-1), g.axes(*present.shape), axis=0)
        logits = self.bounded(g("Reshape", levels, shape))
        weights = g("Mul", g("Exp", logits), g.constant(present))
        softmax = g("Div", weights, g.sum(weights, -1, keepdims=1))
        uniform = UNIFORM_SHARE * present / present.sum(-1, keepdims=True)
        return g(
            "Add", g("Mul", softmax, 1 - UNIFORM_SHARE), g.constant(uniform.astype(np.float32))
        )

    def expected(self, parameters: list[str]) -> str:
        """See `likelihoods.Joint.mean`."""
        g = self.g
        mean, _, binary, levels = parameters
        pieces = [mean] if mean else []
        if binary:
            pieces.append(g("Sigmoid", self.bounded(binary)))
        if levels:
            pieces.append(g.cast(g("ArgMax", self.probs(levels), axis=-1, keepdims=0)))
        return g("Concat", *pieces, axis=-1)

    def double(self, value: float) -> str:
        """A float64 constant."""
        return self.g.constant(np.float64(value))


def _network(part: torch.nn.Module) -> MLP:
    assert isinstance(part.network, MLP), "tables have no other"
    return part.network


def _external(weights: bytes, used: set[str]) -> list[onnx.TensorProto]:
    """References into a safetensors file: an 8-byte header length, the header, then raw tensors."""
    header, base = header_of(weights)
    return [reference(name, TensorProto.FLOAT, header[name], base) for name in sorted(used)]


def header_of(weights: bytes) -> tuple[Mapping[str, Any], int]:
    """What lies where in a safetensors file, and where its tensors begin."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), 8 + length


def reference(name: str, kind: int, entry: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """A tensor of a graph that lies in the weights file."""
    start, end = entry["data_offsets"]
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=entry["shape"])
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": WEIGHTS_FILE, "offset": str(base + start), "length": str(end - start)}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def torch_terms(model: VAE, score: ScoreConfig, x: torch.Tensor) -> Terms:
    """What the graph computes, by torch."""
    noise = frozen_noise(score.draws, model.latent_dim, score.seed).to(x.dtype)
    if score.type == "reconstruction":
        return model.reconstruction(x)
    if score.type == "importance_weighted":
        return model.importance_weighted(x, noise)
    return model.elbo(x, noise)


@torch.no_grad()
def check_graph(
    model: VAE, score: ScoreConfig, x: NDArray[np.float32], scores: NDArray[np.float64]
) -> float:
    """Largest disagreement of the graph's ``scores`` (N,) with torch, relative to max(1, |score|).

    Raises:
        ExportError: it is above `TOLERANCE`.
    """
    chunks = torch.from_numpy(x).split(4096)
    truth = torch.cat([-torch_terms(model, score, chunk).bound for chunk in chunks])
    exact = truth.double().numpy()
    return disagreement(exact, scores, np.abs(exact))


def disagreement(
    truth: NDArray[np.float64], scores: NDArray[np.float64], size: NDArray[np.float64]
) -> float:
    """The largest difference of (N,) from (N,), relative to max(1, size), size (N,).

    Raises:
        ExportError: it is above `TOLERANCE`.
    """
    error = float(np.max(np.abs(truth - scores) / np.maximum(1, size), initial=0.0))
    if not error <= TOLERANCE:
        raise ExportError(
            f"the scoring graph differs from the model by {error:.1e} nats relative "
            f"(allowed {TOLERANCE:.0e}); please report this with the configuration"
        )
    return error


def hash_of(array: NDArray[Any]) -> str:
    """A short name for a constant's content."""
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
