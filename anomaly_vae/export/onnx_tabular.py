"""Build the scoring graph of a tabular model node by node, and compare it with torch.

The graph is in ONNX. Its input is ``x`` (N, F), NaN where missing, and its outputs are

    score     (N,)    float64, nats; the anomaly score
    nats      (N, F)  float32, share of each column in the score; float64 with exemplars
    kl        (N,)    float64, share of the KL term; score = Σ nats + kl
    expected  (N, F)  float32, the decoder's mean at the posterior mean
    latent    (N, L)  float32, the posterior mean

With exemplars it has a second input, ``explain``, a boolean that is true unless given; if it is
false, the shares of the columns are not computed, and ``nats`` has no meaning.

The weights are not part of the graph: it reads them from ``weights.safetensors`` by offset, the
same bytes that generation loads into torch. Building the graph takes milliseconds where tracing
takes seconds, and it fixes the order of every sum, so that a row has the same score alone and in
any batch. docs/architecture.md states the measured difference.
"""

from __future__ import annotations

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

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.errors import ExportError
from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.export.onnx_exemplars import ExemplarNodes
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.builder import tabular_parts
from anomaly_vae.models.exemplars import Exemplars
from anomaly_vae.models.likelihoods import (
    LINEAR_RANGE,
    LOG_2PI,
    LOGIT_BOUND,
    UNIFORM_SHARE,
    StudentT,
)
from anomaly_vae.models.networks import MLP, Encoder
from anomaly_vae.models.priors import MIN_EXPONENT
from anomaly_vae.models.vae import VAE, Terms, frozen_noise
from anomaly_vae.scoring.scorer import EXPLAIN

OPSET = 18
"""Version of the ONNX operator set."""
IR_VERSION = 10
"""Version of the ONNX file format."""
WEIGHTS_FILE = "weights.safetensors"
"""Name of the file with the weights."""
NOISE = "noise"
"""Name of the frozen noise tensor in the weights file."""
TOLERANCE = 1e-4
"""Maximum difference between scores of graph and torch, relative to the terms of the score."""


def weight_tensors(model: VAE, score: ScoreConfig) -> dict[str, NDArray[Any]]:
    """Return the content of ``weights.safetensors``: parameters and frozen draws."""
    weights = model.state_dict().items()
    tensors = {name: value.detach().cpu().contiguous().numpy() for name, value in weights}
    tensors[NOISE] = frozen_noise(score.draws, model.latent_dim, score.seed).numpy()
    return tensors


def export_graph(model: VAE, score: ScoreConfig, weights: bytes) -> bytes:
    """Return the serialised scoring graph of a trained tabular model.

    Args:
        model: the model with its variances and aggregated posterior.
        score: type and draws of the score.
        weights: content of the safetensors file that the graph will read.
    """
    builder = _Builder(model, score)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", builder.layout.n_columns])
    ]
    outputs = builder.outputs()
    constants = [*builder.g.constants.values(), *_external_tensors(weights, builder.used)]
    if builder.scored_exemplars is not None:
        inputs.append(helper.make_tensor_value_info(EXPLAIN, TensorProto.BOOL, []))
        constants.append(numpy_helper.from_array(np.array(True), EXPLAIN))
    graph = helper.make_graph(builder.g.nodes, "scoring", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(proto.SerializeToString(deterministic=True))


class _Builder:
    """The nodes of `VAE.aggregated_elbo` and its variants, and of the tabular likelihoods.

    With several members, everything that depends on weights has a leading member axis. The score
    and its parts are averaged (`VAE.average_members`); latents and expected values are those of the
    first member.
    """

    def __init__(self, model: VAE, score: ScoreConfig) -> None:
        self.model, self.score, self.members = model, score, model.members
        self.networks = tabular_parts(model)
        self.likelihood = self.networks.likelihood
        self.layout: Layout = self.likelihood.layout
        self.g = GraphBuilder()
        self.used: set[str] = set()
        self.with_draws = False
        """Whether the nodes under construction have a draw axis; it is the last but one."""

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Build all nodes and return the graph's outputs."""
        g, f, latent = self.g, self.layout.n_columns, self.model.latent_dim
        self.missing = g("IsNaN", "x")
        self.filled = g("Where", self.missing, 0.0, "x")
        self.mean, self.log_var = self.posterior()
        at_mean = self.parameters(self.mean)
        nats, kl = self.average_members(*self.terms(at_mean))
        score = g("Add", g.sum_double(nats, f), kl)
        if self.scored_exemplars is not None:
            rows = self.coordinates(self.scored_exemplars, at_mean)
            score, nats, kl = self.add_exemplars(self.scored_exemplars, rows, score, nats, kl)
        g.named("nats", nats)
        g.named("kl", kl)
        g.named("score", score)
        g.named("expected", self.first_member(self.expected(at_mean)))
        g.named("latent", self.first_member(self.mean))
        shapes: dict[str, list[str | int | None]] = {
            "score": ["N"],
            "nats": ["N", f],
            "kl": ["N"],
            "expected": ["N", f],
        }
        shapes["latent"] = ["N", latent]
        double = {"score", "kl"} | ({"nats"} if self.scored_exemplars is not None else set())
        return [
            helper.make_tensor_value_info(
                name, TensorProto.DOUBLE if name in double else TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    # ------------------------------------------------------------ members

    def average_members(self, nats: str, kl: str) -> tuple[str, str]:
        """Remove the member axis of nats (E, N, F) and kl (E, N); see `VAE.average_members`."""
        if self.members == 1:
            return nats, kl
        if self.model.reach is None:
            return self.mean_over_members(nats), self.mean_over_members(kl)
        return self.limit_guard(nats, kl)

    def mean_over_members(self, value: str) -> str:
        """Average over the member axis."""
        g = self.g
        return g("ReduceMean", value, g.axes(0), keepdims=0)

    def limit_guard(self, nats: str, kl: str) -> tuple[str, str]:
        """Move from the mean of the other members towards the guard, by at most its limit."""
        g, last = self.g, self.members - 1
        bounds = g.axes(0), g.axes(last), g.axes(0)
        means = [self.mean_over_members(g("Slice", part, *bounds)) for part in (nats, kl)]
        guard = [g("Gather", part, g.constant(np.int64(last)), axis=0) for part in (nats, kl)]
        gaps = [g("Sub", part, mean) for part, mean in zip(guard, means, strict=True)]
        gap = g("Abs", g("Add", g.sum_double(gaps[0], self.layout.n_columns), gaps[1]))
        reach = g.cast(self.weight("reach"), TensorProto.DOUBLE)
        share = g("Min", g("Div", reach, gap), g.double(1 / self.members))
        beside = g("Unsqueeze", g.cast(share), g.axes(-1))
        return (
            g("Add", means[0], g("Mul", beside, gaps[0])),
            g("Add", means[1], g("Mul", share, gaps[1])),
        )

    @property
    def scored_exemplars(self) -> Exemplars | None:
        """Exemplar member, if the score has one."""
        return self.model.exemplars if scores_exemplars(self.model, self.score) else None

    def coordinates(self, member: Exemplars, at_mean: list[str]) -> str:
        """Compute the exemplars' rows (N, F), 0 where missing; see `Exemplars.coordinates`."""
        g, n, f = self.g, self.layout.n_numeric, self.layout.n_columns
        if member.metric is None:
            return self.filled
        missing, filled = (g.slice(part, 0, n) for part in (self.missing, self.filled))
        some = g("Squeeze", g.cast(g("ReduceMax", g.cast(missing), keepdims=1), TensorProto.BOOL))

        def guessed() -> str:
            return g.as_double(g("Where", missing, self.first_member(at_mean[0]), filled))

        numbers = g.choose(some, guessed, lambda: g.as_double(filled))
        product = g.cast(g("MatMul", numbers, g.as_double(self.weight("exemplars.metric"))))
        return g("Concat", g("Where", missing, 0.0, product), g.slice(self.filled, n, f), axis=-1)

    def add_exemplars(
        self, member: Exemplars, rows: str, score: str, nats: str, kl: str
    ) -> tuple[str, str, str]:
        """Average score, nats and kl with those of the exemplars; see `VAE.add_exemplars`.

        Args:
            member: the exemplars.
            rows: result of `coordinates`.
            score: (N,), of the networks.
            nats: (N, F), of the networks.
            kl: (N,), of the networks.
        """
        g = self.g
        own = ExemplarNodes(
            g, member, lambda name: self.weight(f"exemplars.{name}"), rows, self.missing
        ).terms()
        share = g.as_double(self.weight("exemplars.share"))
        rest = g("Sub", g.double(1.0), share)
        pairs = zip((score, g.as_double(nats), kl), own, strict=True)
        mean = [g("Add", g("Mul", rest, network), g("Mul", share, part)) for network, part in pairs]
        return mean[0], mean[1], mean[2]

    def first_member(self, value: str) -> str:
        """Return the values of the first member."""
        g = self.g
        return g("Gather", value, g.constant(np.int64(0)), axis=0) if self.members > 1 else value

    def align_per_column(self, value: str) -> str:
        """Remove the draw axis from members' values (E, 1, 1, n) unless draws are in use."""
        g = self.g
        alone = self.members > 1 and not self.with_draws
        return g("Squeeze", value, g.axes(1)) if alone else value

    # ------------------------------------------------------------ networks

    def weight(self, name: str) -> str:
        """Refer to a tensor of ``weights.safetensors``."""
        self.used.add(name)
        return name

    def linear(self, x: str, prefix: str, bias: bool = True) -> str:
        """Compute x Wᵀ + b over the last axis; see `networks.MemberLinear`."""
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
        """Compute a dense network; see `networks.MLP`."""
        g = self.g
        y = self.linear(x, f"{prefix}.skip")
        for index in range(len(network.hidden)):
            h = self.linear(x, f"{prefix}.hidden.{index}")
            x = g("Mul", h, g("Sigmoid", h))
        return (
            y if network.out is None else g("Add", y, self.linear(x, f"{prefix}.out", bias=False))
        )

    def features(self) -> str:
        """Compute the encoder's input; see `likelihoods.TabularFeatures`."""
        g, layout = self.g, self.layout
        first = layout.n_numeric + layout.n_binary
        pieces = [self.squash(g.slice(self.filled, 0, first))]
        if layout.n_categorical:
            codes = g("Unsqueeze", g.slice(self.filled, first, layout.n_columns), g.axes(-1))
            levels = g.constant(np.arange(1, layout.max_levels, dtype=np.float32))
            pieces.append(g("Flatten", g.cast(g("Equal", codes, levels)), axis=1))
        return g("Concat", *pieces, g.cast(self.missing), axis=-1)

    def squash(self, x: str) -> str:
        """Limit large numbers; see `likelihoods.squash`. Zeros and ones are unchanged."""
        g = self.g
        excess = g("Relu", g("Sub", g("Abs", x), LINEAR_RANGE))
        bent = g("Sub", excess, g("Log", g("Add", excess, 1.0)))
        return g("Sub", x, g("Mul", g("Sign", x), bent))

    def posterior(self) -> tuple[str, str]:
        """Compute mean and log-variance of q(z|x); see `networks.Encoder`."""
        g = self.g
        out = self.mlp(self.features(), self.networks.encoder.network, "encoder.network")
        if self.networks.encoder.log_var is not None:
            mean, log_var = out, g("Expand", self.weight("encoder.log_var"), g("Shape", out))
        else:
            mean, log_var = g.add_split("Split", 2, out, axis=-1, num_outputs=2)
        return mean, g("Clip", log_var, *Encoder.LOG_VAR_BOUNDS)

    # ------------------------------------------------------------ scores

    def terms(self, at_mean: list[str]) -> tuple[str, str]:
        """Compute nats and kl of the configured score; the score is their sum."""
        g = self.g
        kind = "reconstruction" if isinstance(self.model, Autoencoder) else self.score.type
        if kind == "reconstruction":
            nats = g("Neg", self.log_prob(at_mean, self.filled, self.missing))
            zero = g("Mul", g.sum_double(self.mean, self.model.latent_dim), g.double(0.0))
            return nats, zero
        if kind == "neg_elbo" and self.score.draws == 1:  # the only draw is the mean
            return g(
                "Neg", self.log_prob(at_mean, self.filled, self.missing)
            ), self.aggregated_kl_at_mean()
        z, x, missing, noise = self.draws()
        self.with_draws = True
        log_prob = self.log_prob(self.parameters(z), x, missing)
        if kind == "importance_weighted":
            return self.importance_weighted(z, noise, log_prob)
        nats = g("Neg", g("ReduceMean", log_prob, g.axes(-2), keepdims=0))
        return nats, self.aggregated_kl(z, noise)

    def draws(self) -> tuple[str, str, str, str]:
        """Draw z (..., N, K, L); return z, x and its mask with a draw axis, and the noise."""
        g = self.g
        sigma = g("Unsqueeze", g("Exp", g("Mul", self.log_var, 0.5)), g.axes(-2))
        noise = self.weight(NOISE)
        z = g("Add", g("Unsqueeze", self.mean, g.axes(-2)), g("Mul", sigma, noise))
        x, missing = (g("Unsqueeze", v, g.axes(-2)) for v in (self.filled, self.missing))
        return z, x, missing, noise

    def aggregated_kl_at_mean(self) -> str:
        """Compute the KL term of `VAE.aggregated_elbo` with the mean as the only draw."""
        g = self.g
        if self.model.aggregated is None:
            return self.standard_kl()
        log_2pi = g.double(LOG_2PI * self.model.latent_dim)
        total = g("Add", g.sum_double(self.log_var, self.model.latent_dim), log_2pi)
        return g("Sub", g("Mul", total, g.double(-0.5)), self.log_aggregated(self.mean))

    def aggregated_kl(self, z: str, noise: str) -> str:
        """Compute the KL term of `VAE.aggregated_elbo`."""
        g = self.g
        if self.model.aggregated is None:
            return self.standard_kl()
        each = g("Sub", g.cast(self.log_q(noise), TensorProto.DOUBLE), self.log_aggregated(z))
        draws = self.score.draws
        return g("Div", g.sum_double(each, draws), g.double(draws))

    def standard_kl(self) -> str:
        """Compute the KL term of `priors.StandardNormal.kl`, summed in float64."""
        g = self.g
        square = g("Mul", self.mean, self.mean)
        inner = g("Sub", g("Sub", g("Add", square, g("Exp", self.log_var)), 1.0), self.log_var)
        return g.sum_double(g("Mul", inner, 0.5), self.model.latent_dim)

    def log_q(self, noise: str) -> str:
        """Compute log q(z|x) of the draws, (..., N, K); see `vae.posterior_log_prob`."""
        g = self.g
        spread = g.stable_sum(self.log_var, self.model.latent_dim, np.float32)
        total = g("Add", g.sum(g("Mul", noise, noise), -1), spread)
        return g("Mul", g("Add", total, LOG_2PI * self.model.latent_dim), -0.5)

    def log_prior(self, z: str) -> str:
        """Compute log p(z) of draws (..., N, K, L), float64."""
        g = self.g
        if self.model.aggregated is not None:
            return self.log_aggregated(z)
        square = g.sum_double(g("Mul", z, z), self.model.latent_dim)
        inner = g("Add", square, g.double(LOG_2PI * self.model.latent_dim))
        return g("Mul", inner, g.double(-0.5))

    def log_aggregated(self, z: str) -> str:
        """Compute the log-density of the aggregated posterior; see `priors.Mixture.log_prob`.

        With u = z / s, the exponent of each component is log norm − ½ |u − c|² / v. It is linear in
        u, |u|² and 1, and therefore one product of matrices, in float64.
        """
        g = self.g
        white = g(
            "Div",
            g.cast(z, TensorProto.DOUBLE),
            self.align_with_draws(self.mixture_tensor("scale")),
        )
        square = g.stable_sum(g("Mul", white, white), self.model.latent_dim)
        one = g("Add", g("Mul", square, g.double(0.0)), g.double(1.0))
        rows = g("Concat", white, square, one, axis=-1)
        return self.log_sum_exp(g("MatMul", rows, self.align_with_draws(self.mixture_matrix())))

    def mixture_matrix(self) -> str:
        """Compute the factors (..., L + 2, M) of u, |u|² and 1, which are folded on loading."""
        g = self.g
        center, log_var = self.mixture_tensor("center"), self.mixture_tensor("log_var")
        half = g("Mul", g("Exp", g("Neg", log_var)), g.double(-0.5))
        half = g("Unsqueeze", half, g.axes(-1))
        square = g.sum(g("Mul", center, center), -1, keepdims=1)
        constant = g("Add", self.log_norm(log_var), g("Mul", half, square))
        slope = g("Mul", center, g("Mul", half, g.double(-2.0)))
        columns = g("Concat", slope, half, constant, axis=-1)
        return g("Transpose", columns, perm=[0, 2, 1] if self.members > 1 else [1, 0])

    def log_norm(self, log_var: str) -> str:
        """Compute the normalising constants (..., M, 1); see `priors.Mixture.log_norm`."""
        g, latent_dim = self.g, self.model.latent_dim
        scatter = g("Mul", g("Add", log_var, g.double(LOG_2PI)), g.double(0.5 * latent_dim))
        norm = g("Sub", self.mixture_tensor("log_weight"), scatter)
        volume = g.sum(g("Log", self.mixture_tensor("scale")), -1, keepdims=1)
        return g("Sub", g("Unsqueeze", norm, g.axes(-1)), volume)

    def mixture_tensor(self, name: str) -> str:
        """Refer to a tensor of the aggregated posterior, in float64."""
        return self.g.cast(self.weight(f"aggregated.{name}"), TensorProto.DOUBLE)

    def align_with_draws(self, value: str) -> str:
        """Add the draw axis to members' matrices (E, A, B) if the rows have one."""
        g = self.g
        return g("Unsqueeze", value, g.axes(1)) if self.several_draws else value

    @property
    def several_draws(self) -> bool:
        """Whether values have both a member axis and a draw axis."""
        return self.with_draws and self.members > 1

    def log_sum_exp(self, value: str, count: int = 0) -> str:
        """Compute the log-sum-exp over the last axis of a float64 value, relative to the maximum.

        Args:
            value: name of the value.
            count: length of the axis; 0 if the length is a multiple of what processors add at a
                time.
        """
        g = self.g
        maximum = g("ReduceMax", value, g.axes(-1), keepdims=1)
        each = g("Exp", g("Max", g.cast(g("Sub", value, maximum)), MIN_EXPONENT))
        total = g.stable_sum(each, count, np.float32) if count else g.sum(each, -1, keepdims=1)
        log = g("Log", g.cast(total, TensorProto.DOUBLE))
        return g("Squeeze", g("Add", log, maximum), g.axes(-1))

    def importance_weighted(self, z: str, noise: str, log_prob: str) -> tuple[str, str]:
        """Compute the terms of `VAE.importance_weighted`."""
        g = self.g
        likely = g.sum_double(log_prob, self.layout.n_columns)
        log_q = g.cast(self.log_q(noise), TensorProto.DOUBLE)
        log_w = g("Sub", g("Add", likely, self.log_prior(z)), log_q)
        norm = self.log_sum_exp(log_w, self.score.draws)
        bound = g("Sub", norm, g.double(math.log(self.score.draws)))
        weights = g("Exp", g.cast(g("Sub", log_w, g("Unsqueeze", norm, g.axes(-1)))))
        weights = g("Unsqueeze", weights, g.axes(-1))
        nats = g("Neg", g.sum(g("Mul", weights, log_prob), -2))
        total = g.sum_double(nats, self.layout.n_columns)
        return nats, g("Sub", g("Neg", bound), total)

    # ------------------------------------------------------------ likelihoods

    def parameters(self, z: str) -> list[str]:
        """Compute decoder outputs per block of `TabularLikelihood.widths`; "" for empty blocks."""
        out = self.decoder(z)
        ends = np.cumsum(self.likelihood.widths)
        spans = zip(ends - self.likelihood.widths, ends, strict=True)
        return [self.g.slice(out, int(a), int(b)) if b > a else "" for a, b in spans]

    def decoder(self, z: str) -> str:
        """Compute the decoder; see `networks.Decoder`. Members join rows and draws in one axis."""
        g, network = self.g, self.networks.decoder.network
        if not self.several_draws:
            return self.mlp(z, network, "decoder.network")
        shape = g.constant(np.array([self.members, -1, self.model.latent_dim], np.int64))
        out = self.mlp(g("Reshape", z, shape), network, "decoder.network")
        width = int(self.likelihood.n_outputs)
        back = np.array([self.members, -1, self.score.draws, width], np.int64)
        return g("Reshape", out, g.constant(back))

    def log_prob(self, parameters: list[str], x: str, missing: str) -> str:
        """Compute log p(x|z) per column; see `likelihoods.Joint.log_prob`."""
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
            probs, chosen = self.probs(levels), g.cast(g("Equal", codes, index))
            likely = g.stable_sum(g("Mul", probs, chosen), layout.max_levels, np.float32)
            pieces.append(g("Squeeze", g("Log", self.share(chosen, likely)), g.axes(-1)))
        nats = g("Concat", *pieces, axis=-1)
        return g("Where", missing, 0.0, nats)

    def numeric(self, x: str, mean: str, raw: str) -> str:
        """Compute `likelihoods.Gaussian` or `StudentT`; ONNX has no lgamma, hence a constant."""
        g = self.g
        variance = g("Add", g("Exp", raw), self.likelihood.variance_floor)
        factor, limit = (
            self.align_per_column(self.weight(f"likelihood.variance_{name}"))
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
            self.align_per_column(g.constant(value.numpy()))
            for value in (StudentT.log_norm(df.double()).float(), (df + 1) / 2, df)
        )
        ratio = g("Div", squared, spread)
        tail = g("Mul", g("Log", g("Add", ratio, 1.0)), slope)
        return g("Sub", g("Sub", norm, g("Mul", log_var, 0.5)), tail)

    def bounded(self, logits: str) -> str:
        """Limit logits; see `likelihoods.bounded`."""
        g = self.g
        return g("Mul", g("Tanh", g("Div", logits, LOGIT_BOUND)), LOGIT_BOUND)

    def probs(self, levels: str) -> str:
        """Compute probabilities (..., C, Kmax); see `likelihoods.Categorical.probs`."""
        g = self.g
        present = self.likelihood.present.numpy()
        shape = g("Concat", g("Shape", levels, end=-1), g.axes(*present.shape), axis=0)
        logits = self.bounded(g("Reshape", levels, shape))
        weights = g("Mul", g("Exp", logits), g.constant(present))
        softmax = g("Div", weights, g.stable_sum(weights, present.shape[-1], np.float32))
        uniform = UNIFORM_SHARE * present / present.sum(-1, keepdims=True)
        return g(
            "Add", g("Mul", softmax, 1 - UNIFORM_SHARE), g.constant(uniform.astype(np.float32))
        )

    def share(self, chosen: str, prob: str) -> str:
        """Multiply probabilities (..., C, 1) of levels by the shares of single values."""
        g, shares = self.g, self.likelihood.shares
        if shares is None:
            return prob
        own = g("Mul", chosen, g.constant(shares.numpy()))
        return g("Mul", prob, g.stable_sum(own, self.layout.max_levels, np.float32))

    def expected(self, parameters: list[str]) -> str:
        """Compute expected values; see `likelihoods.Joint.mean`."""
        g = self.g
        mean, _, binary, levels = parameters
        pieces = [mean] if mean else []
        if binary:
            pieces.append(g("Sigmoid", self.bounded(binary)))
        if levels:
            pieces.append(g.cast(g("ArgMax", self.probs(levels), axis=-1, keepdims=0)))
        return g("Concat", *pieces, axis=-1)


def _external_tensors(weights: bytes, used: set[str]) -> list[onnx.TensorProto]:
    """Refer to tensors of a safetensors file: an 8-byte header length, the header, raw tensors."""
    header, base = read_header(weights)
    return [external_tensor(name, TensorProto.FLOAT, header[name], base) for name in sorted(used)]


def read_header(weights: bytes) -> tuple[Mapping[str, Any], int]:
    """Return the header of a safetensors file, and the offset at which its tensors begin."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), 8 + length


def external_tensor(name: str, kind: int, entry: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """Return a tensor of a graph that is stored in the weights file."""
    start, end = entry["data_offsets"]
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=entry["shape"])
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": WEIGHTS_FILE, "offset": str(base + start), "length": str(end - start)}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def scores_exemplars(model: VAE, score: ScoreConfig) -> bool:
    """Return whether a score has the bound of the exemplars; a reconstruction has none."""
    return model.exemplars is not None and score.type != "reconstruction"


def torch_terms(model: VAE, score: ScoreConfig, x: Tensor) -> Terms:
    """Compute in torch the terms that the graph computes."""
    noise = frozen_noise(score.draws, model.latent_dim, score.seed).to(x.dtype)
    if score.type == "reconstruction":
        terms = model.reconstruction(x)
    elif score.type == "importance_weighted":
        terms = model.importance_weighted(x, noise)
    else:
        terms = model.aggregated_elbo(x, noise)
    terms = model.average_members(terms)
    return model.add_exemplars(terms, x) if scores_exemplars(model, score) else terms


@torch.no_grad()
def check_graph(
    model: VAE, score: ScoreConfig, x: NDArray[np.float32], scores: NDArray[np.float64]
) -> float:
    """Compare the scores of a graph with torch.

    Args:
        model: the model in torch.
        score: type and draws of the score.
        x: (N, F), encoded rows.
        scores: (N,), scores of the graph.

    Returns:
        The largest disagreement, relative to the terms of the score; see `disagreement`.

    Raises:
        ExportError: it is above `TOLERANCE`.
    """
    chunks = torch.from_numpy(x).split(4096)
    terms = [torch_terms(model, score, chunk) for chunk in chunks]
    truth = torch.cat([-part.bound for part in terms]).double().numpy()
    size = [part.log_prob.abs().sum(-1) + part.kl.sum(-1).abs() for part in terms]
    return disagreement(truth, scores, torch.cat(size).double().numpy())


def disagreement(
    truth: NDArray[np.float64], scores: NDArray[np.float64], size: NDArray[np.float64]
) -> float:
    """Return the largest difference between two arrays, relative to max(1, size).

    Args:
        truth: (N,).
        scores: (N,).
        size: (N,), magnitude that the differences are compared with: terms of both signs round by
            their own size and not by that of their sum.

    Raises:
        ExportError: the difference is above `TOLERANCE`.
    """
    error = float(np.max(np.abs(truth - scores) / np.maximum(1, size), initial=0.0))
    if not error <= TOLERANCE:
        raise ExportError(
            f"the scoring graph differs from the model by {error:.1e} nats relative "
            f"(allowed {TOLERANCE:.0e}); please report this with the configuration"
        )
    return error
