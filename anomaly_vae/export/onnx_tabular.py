"""Build the scoring graph of a tabular model node by node.

The graph is in ONNX. Its input is ``x`` (N, F), NaN where missing, and its outputs are

    score     (N,)    float64, nats; the anomaly score
    nats      (N, F)  float64, share of each column in the score
    kl        (N,)    float64, share of the KL term; score = Σ nats + kl
    expected  (N, F)  float32, the decoder's mean at the posterior mean
    latent    (N, L)  float32, the posterior mean

A second input, ``explain``, is a boolean that is true unless given. If it is false, ``nats`` and
``expected`` are not computed and have no meaning. Graphs with exemplars have a third one,
``distinct_rows``: if it is 1, all rows repeat the first one, and its exponents are computed once.

The weights are not part of the graph: it reads them from ``weights.safetensors`` by offset, the
same bytes that generation loads into torch. Building the graph takes milliseconds where tracing
takes seconds, and it fixes the order of every sum, so that a row has the same score alone and in
any batch. docs/architecture.md states the measured difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.export.external_weights import external_tensors
from anomaly_vae.export.graph_check import scores_exemplars
from anomaly_vae.export.onnx_exemplars import ExemplarNodes, needs_double
from anomaly_vae.export.tabular_terms import TermNodes
from anomaly_vae.models.autoencoder import Autoencoder
from anomaly_vae.models.exemplars import Exemplars
from anomaly_vae.models.likelihoods import LOG_2PI
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.scoring.scorer import DISTINCT_ROWS, EXPLAIN, TILE_ROWS

OPSET = 18
"""Version of the ONNX operator set."""
IR_VERSION = 10
"""Version of the ONNX file format."""
NOISE = "noise"
"""Name of the frozen noise tensor in the weights file."""
TILE_VALUES, TILE_STEP = 1 << 19, 64
"""Largest number of rows times exemplars in a tile, and the step of the number of rows."""


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
    inputs.append(helper.make_tensor_value_info(EXPLAIN, TensorProto.BOOL, []))
    if builder.uses_exemplars:
        inputs.append(helper.make_tensor_value_info(DISTINCT_ROWS, TensorProto.INT64, [1]))
    outputs = builder.outputs()
    constants = [*builder.g.constants.values(), *external_tensors(weights, builder.used)]
    constants.append(numpy_helper.from_array(np.array(True), EXPLAIN))
    if builder.uses_exemplars:
        every = np.array([np.iinfo(np.int64).max])
        constants.append(numpy_helper.from_array(every, DISTINCT_ROWS))
    graph = helper.make_graph(builder.g.nodes, "scoring", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    if model.exemplars is not None:
        proto.metadata_props.add(key=TILE_ROWS, value=str(tile_rows(model.exemplars)))
    return bytes(proto.SerializeToString(deterministic=True))


def tile_rows(member: Exemplars) -> int:
    """Return the number of rows whose exponents fit into the processor's caches."""
    rows = TILE_VALUES // len(member.log_weight) // TILE_STEP * TILE_STEP
    return int(np.clip(rows, TILE_STEP, TabularEncoding.tile))


class _Builder(TermNodes):
    """The nodes of `VAE.aggregated_elbo` and its variants, averaged over the members.

    The score and its parts are averaged (`VAE.average_members`); latents and expected values are
    those of the first member.
    """

    def outputs(self) -> list[onnx.ValueInfoProto]:
        """Build all nodes and return the graph's outputs."""
        g = self.g
        at_mean = self.parameters(self.means)
        nats, kl = self.terms(at_mean)
        exemplars = self.exemplars(at_mean)
        guard = self.score_nodes(nats, kl, exemplars)
        g.named("latent", "Identity", self.means[0])
        self.explanation(at_mean, nats, guard, exemplars)
        return self.declared()

    def score_nodes(self, nats: str, kl: str, exemplars: ExemplarNodes | None) -> str:
        """Compute score and KL term, and return the weight (N, 1) of the guard, "" without one."""
        g = self.g
        terms = g.as_double(self.side_by_side(g("Concat", nats, kl, axis=-1)))
        sums = g("MatMul", terms, self.sum_matrix())
        if exemplars is not None:
            own = g("MatMul", g.as_double(exemplars.pair()), self.exemplar_matrix(exemplars.chunks))
            sums = g("Add", sums, own)
        pair, share = self.guarded_sum(sums)
        for index, name in enumerate(("score", "kl")):
            g.named(name, "Gather", pair, g.constant(np.int64(index)), axis=-1)
        return share

    def explanation(
        self, at_mean: list[str], nats: str, guard: str, exemplars: ExemplarNodes | None
    ) -> None:
        """Compute the shares of the columns and the expected values, if they are asked for."""
        g = self.g

        def explained() -> Sequence[str]:
            columns = g("Mul", self.average_columns(nats, guard), self.term_factors)
            columns = g.as_double(columns)
            if exemplars is not None:
                own = g("Mul", exemplars.nats(), g.as_double(self.weight("exemplars.share")))
                columns = g("Add", g("Mul", columns, self.rest()), own)
            return [self.exact(columns), self.first_member(self.expected(at_mean))]

        def unexplained() -> Sequence[str]:
            return [g.as_double(self.filled), self.filled]

        kinds = [TensorProto.DOUBLE, TensorProto.FLOAT]
        g.choose(EXPLAIN, explained, unexplained, kinds, ["nats", "expected"])

    def declared(self) -> list[onnx.ValueInfoProto]:
        """Return names, types and shapes of the outputs."""
        n, latent = self.layout.n_columns, self.model.latent_dim
        double: dict[str, list[str | int | None]] = {"score": ["N"], "nats": ["N", n], "kl": ["N"]}
        single: dict[str, list[str | int | None]] = {"expected": ["N", n], "latent": ["N", latent]}
        kinds = (double, TensorProto.DOUBLE), (single, TensorProto.FLOAT)
        return [
            helper.make_tensor_value_info(name, kind, shape)
            for shapes, kind in kinds
            for name, shape in shapes.items()
        ]

    def exact(self, nats: str) -> str:
        """Distribute the rounding of the score over the columns with a value.

        The shares (N, F) and the KL term then add up to the score exactly.
        """
        g, count = self.g, self.layout.n_columns
        present = g.as_double(g("Not", self.missing))
        rest = g("Sub", g("Sub", "score", "kl"), g.sum_double(nats, count))
        least = g("Max", g.stable_sum(present, count), g.double(1.0))
        each = g("Div", g("Unsqueeze", rest, g.axes(-1)), least)
        return g("Add", nats, g("Mul", present, each))

    # ------------------------------------------------------------ members

    def sum_matrix(self) -> str:
        """Compute the factors of all terms of the networks in the columns of `guarded_sum`.

        The rows are those of the columns and of the KL term, member by member. They are float64,
        and folded on loading.
        """
        g, pieces = self.g, []
        columns = g("Unsqueeze", g.as_double(self.term_factors), g.axes(1))
        share = self.rest() if self.uses_exemplars else g.double(1.0)
        for of_pair in self.average_factors():
            factors = g("Mul", g.constant(of_pair), share)
            pieces += [g("Mul", columns, g.row(factors, 0)), g.row(factors, 1)]
        return g("Concat", *pieces, axis=0)

    def exemplar_matrix(self, chunks: int) -> str:
        """Compute the same of the values of `ExemplarNodes.pair`."""
        g = self.g
        factors = np.zeros((chunks + 1, 5 if self.has_guard else 2))
        factors[:, 1], factors[-1, :2] = 1.0, -1.0
        return g("Mul", g.constant(factors), g.as_double(self.weight("exemplars.share")))

    def average_factors(self) -> Iterator[NDArray[np.float64]]:
        """Yield the factors of each member's columns and KL term, (2, 2) or (2, 5).

        The columns are score and KL term of the mean over the members but the guard, and how much
        the guard's differ from them; the difference of the score comes again at the end.
        """
        score_and_kl, last = np.array([[1.0, 0.0], [1.0, 1.0]]), self.members - 1
        for member in range(self.members):
            if not self.has_guard:
                yield score_and_kl / self.members
                continue
            mean, gap = (0.0, 1.0) if member == last else (1 / last, -1 / last)
            both = np.hstack([mean * score_and_kl, gap * score_and_kl])
            yield np.hstack([both, both[:, 2:3]])

    @property
    def has_guard(self) -> bool:
        """Whether the last member is a guard."""
        return self.members > 1 and self.model.reach is not None

    def guarded_sum(self, sums: str) -> tuple[str, str]:
        """Add what the guard changes to score and KL term (N, 2); see `VAE.average_members`.

        Args:
            sums: (N, 2) or (N, 5); see `average_factors`.

        Returns:
            Score and KL term (N, 2), and the guard's weight (N, 1), "" without a guard.
        """
        g = self.g
        if not self.has_guard:
            return sums, ""
        mean, gap, size = g.add_split("Split", 3, sums, g.axes(2, 2, 1), axis=-1)
        reach = g.as_double(self.weight("reach"))
        if self.uses_exemplars:
            reach = g("Mul", reach, self.rest())
        share = g("Min", g("Div", reach, g("Abs", size)), g.double(1 / self.members))
        return g("Add", mean, g("Mul", share, gap)), share

    def average_columns(self, nats: str, guard: str) -> str:
        """Average the columns' terms (N, E, F) over the members in the same way, (N, F).

        Args:
            nats: name of the terms.
            guard: the guard's weight (N, 1), "" without a guard.
        """
        g, last = self.g, self.members - 1
        if self.members == 1:
            return nats
        if not guard:
            return g("ReduceMean", nats, g.axes(1), keepdims=0)
        others, own = g.add_split("Split", 2, nats, g.axes(last, 1), axis=1)
        mean = g("ReduceMean", others, g.axes(1), keepdims=0)
        gap = g("Sub", g("Squeeze", own, g.axes(1)), mean)
        return g("Add", mean, g("Mul", g.cast(guard), gap))

    # ------------------------------------------------------------ exemplars

    @property
    def uses_exemplars(self) -> bool:
        """Whether the score has the bound of the exemplars."""
        return scores_exemplars(self.model, self.score)

    def exemplars(self, at_mean: list[str]) -> ExemplarNodes | None:
        """Return the nodes of the exemplar member, if the score has one."""
        member = self.model.exemplars
        if member is None or not self.uses_exemplars:
            return None
        numbers = self.kinds(self.filled)[0]
        if member.metric is not None:
            numbers = self.coordinates(at_mean)
        return ExemplarNodes(
            self.g,
            member,
            lambda name: self.weight(f"exemplars.{name}"),
            numbers,
            self.missing,
            self.some_gaps,
        )

    def coordinates(self, at_mean: list[str]) -> str:
        """Compute coordinates (N, n), 0 where missing; see `Exemplars.coordinates`."""
        g = self.g
        missing, filled = (self.kinds(value)[0] for value in (self.missing, self.filled))
        numbers = g("Where", missing, self.first_member(at_mean[0]), filled)
        product = g("MatMul", g.as_double(numbers), g.as_double(self.weight("exemplars.metric")))
        return g("Where", missing, 0.0, g.cast(product))

    @cached_property
    def some_gaps(self) -> str:
        """Whether any value of the tile is missing."""
        g = self.g
        return g.cast(g("ReduceMax", g.cast(self.missing), keepdims=0), TensorProto.BOOL)

    def rest(self) -> str:
        """Compute the weight of the networks, (1,) float64."""
        g = self.g
        return g("Sub", g.double(1.0), g.as_double(self.weight("exemplars.share")))

    # ------------------------------------------------------------ scores

    def terms(self, at_mean: list[str]) -> tuple[str, str]:
        """Compute the columns' terms over `term_factors` (N, E, F) and the KL term (N, E, 1).

        The configured score is the sum of all terms.
        """
        g = self.g
        kind = "reconstruction" if isinstance(self.model, Autoencoder) else self.score.type
        if kind == "reconstruction":
            zero = g.stable_sum(self.mean, self.model.latent_dim, np.float32)
            return self.unscaled(at_mean), g("Mul", zero, 0.0)
        if kind == "neg_elbo" and self.score.draws == 1:  # the only draw is the mean
            return self.unscaled(at_mean), self.aggregated_kl_at_mean()
        mean, self.with_draws = self.mean, True
        z, noise = self.draws(mean)
        rows = self.drawn_rows(z)
        unscaled = self.unscaled(self.parameters(rows))
        if kind == "importance_weighted":
            return self.importance_weighted(z, rows, noise, unscaled)
        mean_term = g("ReduceMean", unscaled, g.axes(-2), keepdims=0)
        return mean_term, g.cast(self.aggregated_kl(rows, noise))

    def draws(self, mean: str) -> tuple[str, str]:
        """Draw z (N, E, K, L); return z and the noise."""
        g = self.g
        sigma = g("Unsqueeze", g("Exp", g("Mul", self.log_var, 0.5)), g.axes(-2))
        noise = self.weight(NOISE)
        return g("Add", g("Unsqueeze", mean, g.axes(-2)), g("Mul", sigma, noise)), noise

    def aggregated_kl_at_mean(self) -> str:
        """Compute the KL term of `VAE.aggregated_elbo` with the mean as the only draw."""
        g = self.g
        if self.model.aggregated is None:
            return g.cast(self.standard_kl())
        log_2pi = g.double(LOG_2PI * self.model.latent_dim)
        total = g("Mul", g("Add", self.total(self.log_var), log_2pi), g.double(-0.5))
        return g("Sub", g.cast(total), self.log_aggregated(self.means))

    def aggregated_kl(self, rows: Sequence[str], noise: str) -> str:
        """Compute the KL term of `VAE.aggregated_elbo`."""
        g = self.g
        if self.model.aggregated is None:
            return self.standard_kl()
        log_prior = g.as_double(self.per_draw(self.log_aggregated(rows)))
        each = g("Sub", g.as_double(self.log_q(noise)), log_prior)
        return g("Div", g.stable_sum(each, self.score.draws), g.double(self.score.draws))

    def total(self, latents: str) -> str:
        """Sum over the latents in float64, (..., N, L) to (..., N, 1)."""
        return self.g.stable_sum(self.g.as_double(latents), self.model.latent_dim)

    def per_draw(self, value: str) -> str:
        """Return values (..., N, K, 1) of draws as (..., N, K)."""
        return self.g("Squeeze", value, self.g.axes(-1))

    def standard_kl(self) -> str:
        """Compute the KL term of `priors.StandardNormal.kl`, summed in float64."""
        g = self.g
        square = g("Mul", self.mean, self.mean)
        inner = g("Sub", g("Sub", g("Add", square, g("Exp", self.log_var)), 1.0), self.log_var)
        return self.total(g("Mul", inner, 0.5))

    def log_q(self, noise: str) -> str:
        """Compute log q(z|x) of the draws, (..., N, K); see `vae.posterior_log_prob`."""
        g = self.g
        spread = g.stable_sum(self.log_var, self.model.latent_dim, np.float32)
        total = g("Add", g.sum(g("Mul", noise, noise), -1), spread)
        return g("Mul", g("Add", total, LOG_2PI * self.model.latent_dim), -0.5)

    def log_prior(self, z: str, rows: Sequence[str]) -> str:
        """Compute log p(z) of draws (N, E, K, L), (N, E, K, 1) float64.

        Args:
            z: the draws.
            rows: the same as rows (N K, L) of each member.
        """
        g = self.g
        if self.model.aggregated is not None:
            return g.as_double(self.log_aggregated(rows))
        inner = g("Add", self.total(g("Mul", z, z)), g.double(LOG_2PI * self.model.latent_dim))
        return g("Mul", inner, g.double(-0.5))

    def log_aggregated(self, rows: Sequence[str]) -> str:
        """Compute the log-density of the aggregated posterior, (N, E, 1) or (N, E, K, 1) float32.

        See `priors.Mixture.log_prob`. With u = z / s, the exponent of each component is
        log norm − ½ |u − c|² / v. It is linear in 1, z and z², and therefore one product of
        matrices for each member.

        Args:
            rows: latents (N, L) of each member, or draws (N K, L).
        """
        g, mixture = self.g, self.model.aggregated
        assert mixture is not None
        pairs = enumerate(rows)
        exponents = [self.mixture_exponents(z, member) for member, z in pairs]
        stacked = self.stacked(exponents, int(mixture.log_weight.shape[-1]))
        return g.log_total(stacked)

    def mixture_exponents(self, z: str, member: int) -> str:
        """Compute the exponents (N, M) float32 of a member's latents (N, L)."""
        g = self.g
        factors, constants = self.mixture_factors
        if self.narrow_components:
            z = g.as_double(z)
        parts = (self.part(value, member) for value in (factors, constants))
        exponents = g("Gemm", g("Concat", z, g("Mul", z, z), axis=-1), *parts)
        return g.cast(exponents) if self.narrow_components else exponents

    @cached_property
    def narrow_components(self) -> bool:
        """Whether any component is too narrow for float32."""
        mixture = self.model.aggregated
        assert mixture is not None
        return bool(needs_double(mixture.center, mixture.log_var).any())

    @cached_property
    def mixture_factors(self) -> tuple[str, str]:
        """The factors (E, 2 L, M) of z and z², and the constants (E, M); folded on loading."""
        g = self.g
        center, log_var = self.mixture_tensor("center"), self.mixture_tensor("log_var")
        scale = self.mixture_tensor("scale")
        half = g("Mul", g("Exp", g("Neg", log_var)), g.double(-0.5))
        wide = g("Unsqueeze", half, g.axes(-1))
        square = g("Mul", half, g.sum(g("Mul", center, center), -1))
        constants = g("Add", self.log_norm(log_var), square)
        slope = g("Mul", g("Div", center, scale), g("Mul", wide, g.double(-2.0)))
        curve = g("Div", g("Div", wide, scale), scale)
        factors = g("Concat", slope, curve, axis=-1)
        factors = g("Transpose", factors, perm=[0, 2, 1] if self.members > 1 else [1, 0])
        if self.narrow_components:
            return factors, constants
        return g.cast(factors), g.cast(constants)

    def log_norm(self, log_var: str) -> str:
        """Compute the normalising constants (E, M); see `priors.Mixture.log_norm`."""
        g, latent_dim = self.g, self.model.latent_dim
        scatter = g("Mul", g("Add", log_var, g.double(LOG_2PI)), g.double(0.5 * latent_dim))
        norm = g("Sub", self.mixture_tensor("log_weight"), scatter)
        return g("Sub", norm, g.sum(g("Log", self.mixture_tensor("scale")), -1))

    def mixture_tensor(self, name: str) -> str:
        """Refer to a tensor of the aggregated posterior, in float64."""
        return self.g.cast(self.weight(f"aggregated.{name}"), TensorProto.DOUBLE)

    def importance_weighted(
        self, z: str, rows: Sequence[str], noise: str, unscaled: str
    ) -> tuple[str, str]:
        """Compute the terms of `VAE.importance_weighted` from those of the draws (N, E, K, F)."""
        g, draws = self.g, self.score.draws
        log_joint = g("Sub", self.log_prior(z, rows), self.sum_of_columns(unscaled))
        log_w = g("Sub", self.per_draw(log_joint), g.as_double(self.log_q(noise)))
        norm = g.log_sum_exp(g.cast(log_w))
        weights = g("Unsqueeze", norm.shares, g.axes(-1))
        unscaled = g.sum(g("Mul", weights, unscaled), -2)
        bound = g("Sub", g.as_double(norm.log), g.double(math.log(draws)))
        return unscaled, g.cast(g("Sub", g("Neg", bound), self.sum_of_columns(unscaled)))

    def sum_of_columns(self, unscaled: str) -> str:
        """Sum the columns' terms (..., F), (..., 1) float64."""
        g = self.g
        factors = g("Unsqueeze", g.as_double(self.term_factors), g.axes(1))
        return g("MatMul", g.as_double(unscaled), factors)
