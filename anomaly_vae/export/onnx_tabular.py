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
from torch import Tensor

from anomaly_vae.config import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.errors import ExportError
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.likelihoods import (
    LINEAR_RANGE,
    LOG_2PI,
    LOGIT_BOUND,
    UNIFORM_SHARE,
    StudentT,
    TabularLikelihood,
)
from anomaly_vae.models.networks import MLP, Encoder
from anomaly_vae.models.priors import LEAST_EXPONENT
from anomaly_vae.models.vae import VAE, Terms, frozen_noise

OPSET = 18
IR_VERSION = 10
WEIGHTS_FILE = "weights.safetensors"
NOISE = "noise"
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

    def total(self, value: str, count: int, to: type[np.floating[Any]] = np.float64) -> str:
        """(..., N, count) → (..., N, 1): the sum, to the last bit wherever a row lies.

        A product of matrices adds each row in one order, which `sum` does not: it begins where
        the memory of a row happens to be aligned.
        """
        one = numpy_helper.from_array(np.ones(1, to))
        ones = self("ConstantOfShape", self.constant(np.array([count, 1])), value=one)
        return self("MatMul", value, ones)

    def cast(self, value: str, to: int = TensorProto.FLOAT) -> str:
        """Change the element type."""
        return self("Cast", value, to=to)

    def slice(self, value: str, start: int, stop: int) -> str:
        """Columns [start, stop) of the last axis."""
        bounds = (self.axes(start), self.axes(stop), self.axes(-1))
        return self("Slice", value, *bounds)


def weight_tensors(model: VAE, score: ScoreConfig) -> dict[str, NDArray[Any]]:
    """Everything ``weights.safetensors`` holds: the parameters and the frozen draws."""
    weights = model.state_dict().items()
    tensors = {name: value.detach().cpu().contiguous().numpy() for name, value in weights}
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
    """Mirrors `VAE.aggregated_elbo` and its siblings, and the tabular likelihoods, as nodes.

    Several members are a first axis of everything that depends on weights. The score and its
    parts are their mean (`VAE.over_members`); the latents, and what is expected, are the first
    member's.
    """

    def __init__(self, model: VAE, score: ScoreConfig) -> None:
        self.model, self.score, self.members = model, score, model.members
        likelihood = model.likelihood
        assert isinstance(likelihood, TabularLikelihood), "the only kind so far"
        self.likelihood = likelihood
        self.layout: Layout = likelihood.layout
        self.g = Graph()
        self.used: set[str] = set()
        self.with_draws = False
        """whether what is built now has an axis for the draws, the last but one"""

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Build everything; returns the graph's outputs."""
        g, f, latent = self.g, self.layout.n_columns, self.model.latent_dim
        self.missing = g("IsNaN", "x")
        self.filled = g("Where", self.missing, 0.0, "x")
        self.mean, self.log_var = self.posterior()
        at_mean = self.parameters(self.mean)
        nats, kl = self.over_members(*self.terms(at_mean))
        g.named("nats", nats)
        g.named("kl", kl)
        g.named("score", g("Add", self.summed(nats, f), kl))
        g.named("expected", self.first(self.expected(at_mean)))
        g.named("latent", self.first(self.mean))
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

    def summed(self, value: str, count: int) -> str:
        """(..., N, count) → (..., N), float64."""
        g = self.g
        return g("Squeeze", g.total(g.cast(value, TensorProto.DOUBLE), count), g.axes(-1))

    # ------------------------------------------------------------ members

    def over_members(self, nats: str, kl: str) -> tuple[str, str]:
        """See `VAE.over_members`: (E, N, F) and (E, N) → without the first axis."""
        if self.members == 1:
            return nats, kl
        if self.model.reach is None:
            return self.average(nats), self.average(kl)
        return self.guarded(nats, kl)

    def average(self, value: str) -> str:
        """The mean over the first axis."""
        g = self.g
        return g("ReduceMean", value, g.axes(0), keepdims=0)

    def guarded(self, nats: str, kl: str) -> tuple[str, str]:
        """The mean of all members but the last, and its share of the way from there to the last."""
        g, last = self.g, self.members - 1
        bounds = g.axes(0), g.axes(last), g.axes(0)
        means = [self.average(g("Slice", part, *bounds)) for part in (nats, kl)]
        guard = [g("Gather", part, g.constant(np.int64(last)), axis=0) for part in (nats, kl)]
        gaps = [g("Sub", part, mean) for part, mean in zip(guard, means, strict=True)]
        gap = g("Abs", g("Add", self.summed(gaps[0], self.layout.n_columns), gaps[1]))
        reach = g.cast(self.weight("reach"), TensorProto.DOUBLE)
        share = g("Min", g("Div", reach, gap), self.double(1 / self.members))
        beside = g("Unsqueeze", g.cast(share), g.axes(-1))
        return (
            g("Add", means[0], g("Mul", beside, gaps[0])),
            g("Add", means[1], g("Mul", share, gaps[1])),
        )

    def first(self, value: str) -> str:
        """The first member's."""
        g = self.g
        return g("Gather", value, g.constant(np.int64(0)), axis=0) if self.members > 1 else value

    def per_column(self, value: str) -> str:
        """Members' rows of one value per column (E, 1, 1, n), without the axis for draws."""
        g = self.g
        alone = self.members > 1 and not self.with_draws
        return g("Squeeze", value, g.axes(1)) if alone else value

    # ------------------------------------------------------------ networks

    def weight(self, name: str) -> str:
        """A tensor of ``weights.safetensors``."""
        self.used.add(name)
        return name

    def linear(self, x: str, prefix: str, bias: bool = True) -> str:
        """x Wᵀ + b over the last axis; see `networks.Linears`."""
        g, several = self.g, self.members > 1
        across = g(
            "Transpose", self.weight(f"{prefix}.weight"), perm=[0, 2, 1] if several else [1, 0]
        )
        y = g("MatMul", x, across)
        if not bias:
            return y
        shift = self.weight(f"{prefix}.bias")
        return g("Add", y, g("Unsqueeze", shift, g.axes(1)) if several else shift)

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
        if isinstance(self.model.encoder.log_var, Tensor):
            mean, log_var = out, g("Expand", self.weight("encoder.log_var"), g("Shape", out))
        else:
            mean, log_var = g.many("Split", 2, out, axis=-1, num_outputs=2)
        return mean, g("Clip", log_var, *Encoder.LOG_VAR)

    # ------------------------------------------------------------ scores

    def terms(self, at_mean: list[str]) -> tuple[str, str]:
        """(nats, kl) of the configured score, both to be summed."""
        g = self.g
        kind = "reconstruction" if isinstance(self.model, Autoencoder) else self.score.type
        if kind == "reconstruction":
            nats = g("Neg", self.log_prob(at_mean, self.filled, self.missing))
            zero = g("Mul", self.summed(self.mean, self.model.latent_dim), self.double(0.0))
            return nats, zero
        if kind == "neg_elbo" and self.score.draws == 1:  # the draw is the mean
            return g("Neg", self.log_prob(at_mean, self.filled, self.missing)), self.rate_at_mean()
        z, x, missing, noise = self.draws()
        self.with_draws = True
        log_prob = self.log_prob(self.parameters(z), x, missing)
        if kind == "importance_weighted":
            return self.importance_weighted(z, noise, log_prob)
        nats = g("Neg", g("ReduceMean", log_prob, g.axes(-2), keepdims=0))
        return nats, self.rate(z, noise)

    def draws(self) -> tuple[str, str, str, str]:
        """z (..., N, K, L), then x and its mask with an axis for the draws, and the noise."""
        g = self.g
        sigma = g("Unsqueeze", g("Exp", g("Mul", self.log_var, 0.5)), g.axes(-2))
        noise = self.weight(NOISE)
        z = g("Add", g("Unsqueeze", self.mean, g.axes(-2)), g("Mul", sigma, noise))
        x, missing = (g("Unsqueeze", v, g.axes(-2)) for v in (self.filled, self.missing))
        return z, x, missing, noise

    def rate_at_mean(self) -> str:
        """See `VAE.aggregated_elbo` with one draw, the mean."""
        g = self.g
        if self.model.aggregated is None:
            return self.kl()
        log_2pi = self.double(LOG_2PI * self.model.latent_dim)
        total = g("Add", self.summed(self.log_var, self.model.latent_dim), log_2pi)
        return g("Sub", g("Mul", total, self.double(-0.5)), self.log_aggregated(self.mean))

    def rate(self, z: str, noise: str) -> str:
        """See `VAE.aggregated_elbo`."""
        g = self.g
        if self.model.aggregated is None:
            return self.kl()
        each = g("Sub", g.cast(self.log_q(noise), TensorProto.DOUBLE), self.log_aggregated(z))
        draws = self.score.draws
        return g("Div", self.summed(each, draws), self.double(draws))

    def kl(self) -> str:
        """See `priors.StandardNormal.kl`, summed in float64."""
        g = self.g
        square = g("Mul", self.mean, self.mean)
        inner = g("Sub", g("Sub", g("Add", square, g("Exp", self.log_var)), 1.0), self.log_var)
        return self.summed(g("Mul", inner, 0.5), self.model.latent_dim)

    def log_q(self, noise: str) -> str:
        """See `vae.posterior_log_prob`: (..., N, K)."""
        g = self.g
        spread = g.total(self.log_var, self.model.latent_dim, np.float32)
        total = g("Add", g.sum(g("Mul", noise, noise), -1), spread)
        return g("Mul", g("Add", total, LOG_2PI * self.model.latent_dim), -0.5)

    def log_prior(self, z: str) -> str:
        """log p(z) of draws (..., N, K, L), float64."""
        g = self.g
        if self.model.aggregated is not None:
            return self.log_aggregated(z)
        square = self.summed(g("Mul", z, z), self.model.latent_dim)
        inner = g("Add", square, self.double(LOG_2PI * self.model.latent_dim))
        return g("Mul", inner, self.double(-0.5))

    def log_aggregated(self, z: str) -> str:
        """See `priors.Mixture.log_prob`: the last axis of z goes.

        With u = z / s, each part's exponent is log norm − ½ |u − c|² / v: linear in u, |u|² and 1,
        and so one product of matrices, in float64.
        """
        g = self.g
        white = g("Div", g.cast(z, TensorProto.DOUBLE), self.beside_draws(self.prior("scale")))
        square = g.total(g("Mul", white, white), self.model.latent_dim)
        one = g("Add", g("Mul", square, self.double(0.0)), self.double(1.0))
        rows = g("Concat", white, square, one, axis=-1)
        return self.log_sum_exp(g("MatMul", rows, self.beside_draws(self.parts())))

    def parts(self) -> str:
        """(..., L + 2, M): what u, |u|² and 1 are multiplied by; folded when a session opens."""
        g = self.g
        center, log_var = self.prior("center"), self.prior("log_var")
        half = g("Mul", g("Exp", g("Neg", log_var)), self.double(-0.5))
        half = g("Unsqueeze", half, g.axes(-1))
        square = g.sum(g("Mul", center, center), -1, keepdims=1)
        constant = g("Add", self.log_norm(log_var), g("Mul", half, square))
        slope = g("Mul", center, g("Mul", half, self.double(-2.0)))
        columns = g("Concat", slope, half, constant, axis=-1)
        return g("Transpose", columns, perm=[0, 2, 1] if self.members > 1 else [1, 0])

    def log_norm(self, log_var: str) -> str:
        """See `priors.Mixture.log_norm`: (..., M, 1)."""
        g, latent_dim = self.g, self.model.latent_dim
        scatter = g("Mul", g("Add", log_var, self.double(LOG_2PI)), self.double(0.5 * latent_dim))
        norm = g("Sub", self.prior("log_weight"), scatter)
        volume = g.sum(g("Log", self.prior("scale")), -1, keepdims=1)
        return g("Sub", g("Unsqueeze", norm, g.axes(-1)), volume)

    def prior(self, name: str) -> str:
        """A tensor of the aggregated posterior, in float64."""
        return self.g.cast(self.weight(f"aggregated.{name}"), TensorProto.DOUBLE)

    def beside_draws(self, value: str) -> str:
        """Members' matrices (E, A, B) with the axis that rows have where draws follow."""
        g = self.g
        return g("Unsqueeze", value, g.axes(1)) if self.several_draws else value

    @property
    def several_draws(self) -> bool:
        """Whether there is an axis for members and one for draws."""
        return self.with_draws and self.members > 1

    def log_sum_exp(self, value: str, count: int = 0) -> str:
        """Over the last axis of a float64 value, about its maximum; ``count`` unless in blocks."""
        g = self.g
        most = g("ReduceMax", value, g.axes(-1), keepdims=1)
        each = g("Exp", g("Max", g.cast(g("Sub", value, most)), LEAST_EXPONENT))
        total = g.total(each, count, np.float32) if count else g.sum(each, -1, keepdims=1)
        log = g("Log", g.cast(total, TensorProto.DOUBLE))
        return g("Squeeze", g("Add", log, most), g.axes(-1))

    def importance_weighted(self, z: str, noise: str, log_prob: str) -> tuple[str, str]:
        """See `VAE.importance_weighted`."""
        g = self.g
        likely = self.summed(log_prob, self.layout.n_columns)
        log_q = g.cast(self.log_q(noise), TensorProto.DOUBLE)
        log_w = g("Sub", g("Add", likely, self.log_prior(z)), log_q)
        norm = self.log_sum_exp(log_w, self.score.draws)
        bound = g("Sub", norm, self.double(math.log(self.score.draws)))
        weights = g("Exp", g.cast(g("Sub", log_w, g("Unsqueeze", norm, g.axes(-1)))))
        weights = g("Unsqueeze", weights, g.axes(-1))
        nats = g("Neg", g.sum(g("Mul", weights, log_prob), -2))
        total = self.summed(nats, self.layout.n_columns)
        return nats, g("Sub", g("Neg", bound), total)

    # ------------------------------------------------------------ likelihoods

    def parameters(self, z: str) -> list[str]:
        """Decoder outputs, one value per non-empty block of `TabularLikelihood.widths`."""
        out = self.decoder(z)
        ends = np.cumsum(self.likelihood.widths)
        spans = zip(ends - self.likelihood.widths, ends, strict=True)
        return [self.g.slice(out, int(a), int(b)) if b > a else "" for a, b in spans]

    def decoder(self, z: str) -> str:
        """See `networks.Decoder`; members take their rows, draws and all, in one axis."""
        g, network = self.g, _network(self.model.decoder)
        if not self.several_draws:
            return self.mlp(z, network, "decoder.network")
        shape = g.constant(np.array([self.members, -1, self.model.latent_dim], np.int64))
        out = self.mlp(g("Reshape", z, shape), network, "decoder.network")
        width = int(self.likelihood.n_outputs)
        back = np.array([self.members, -1, self.score.draws, width], np.int64)
        return g("Reshape", out, g.constant(back))

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
            likely = g.total(chosen, layout.max_levels, np.float32)
            pieces.append(g("Squeeze", g("Log", likely), g.axes(-1)))
        nats = g("Concat", *pieces, axis=-1)
        return g("Where", missing, 0.0, nats)

    def numeric(self, x: str, mean: str, raw: str) -> str:
        """See `likelihoods.Gaussian` and `StudentT`; lgamma has no node, so it is a constant."""
        g = self.g
        variance = g("Add", g("Exp", raw), self.likelihood.variance_floor)
        factor, limit = (
            self.per_column(self.weight(f"likelihood.variance_{name}"))
            for name in ("factor", "limit")
        )
        variance = g("Min", g("Mul", variance, factor), limit)
        log_var = g("Log", variance)
        residual = g("Sub", x, mean)
        squared = g("Div", g("Mul", residual, residual), variance)
        if self.likelihood.raw_df is None:
            return g("Mul", g("Add", g("Add", squared, log_var), LOG_2PI), -0.5)
        df = self.likelihood.df().detach()
        norm, slope, spread = (
            self.per_column(g.constant(value.numpy()))
            for value in (StudentT.log_norm(df.double()).float(), (df + 1) / 2, df)
        )
        ratio = g("Div", squared, spread)
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
        softmax = g("Div", weights, g.total(weights, present.shape[-1], np.float32))
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


def torch_terms(model: VAE, score: ScoreConfig, x: Tensor) -> Terms:
    """What the graph computes, by torch."""
    noise = frozen_noise(score.draws, model.latent_dim, score.seed).to(x.dtype)
    if score.type == "reconstruction":
        terms = model.reconstruction(x)
    elif score.type == "importance_weighted":
        terms = model.importance_weighted(x, noise)
    else:
        terms = model.aggregated_elbo(x, noise)
    return model.over_members(terms)


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
