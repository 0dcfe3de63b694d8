"""Build the nodes of the exemplar member in the scoring graph; see `models.exemplars`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.models.exemplars import Exemplars, slots
from anomaly_vae.models.likelihoods import LOG_2PI
from anomaly_vae.scoring.scorer import EXPLAIN

SINGLE_RATIO = 500.0
"""Largest |c|²/v of an exemplar whose exponents are computed in float32.

A squared distance is a difference of squares, so float32 rounds an exponent by about 10⁻⁷ |c|²/v
nats, which is 5·10⁻⁵ at this limit. Exemplars with narrower kernels are computed in float64.
"""


class ExemplarTerms(NamedTuple):
    """Names of the values that the member contributes, all float64 and in nats."""

    score: str
    """(N,): −log p(x)."""
    nats: str
    """(N, F): share of each column."""
    kl: str
    """(N,): share of the KL term; score = Σ nats + kl."""


class Density(NamedTuple):
    """Names of the values of a part of the exemplars, in nats."""

    shares: str
    """(N, M) float32: responsibilities within the part."""
    log: str
    """(N, 1) float64: log-density of the part."""
    mean: str
    """(N, 1) float64: log-kernels of a row, averaged by the responsibilities."""


class ExemplarNodes:
    """The nodes of `Exemplars.forward`, for rows ``x`` (N, F) with NaN where missing.

    The exponents of all exemplars are one product of matrices, or two where some kernels are too
    narrow for float32 (`SINGLE_RATIO`). What missing values change is a further product, which is
    computed only for tiles that have some and is exactly 0 for rows that have none. The nodes of
    ``nats`` are needed for explanations only.

    Args:
        g: the graph.
        member: the exemplars.
        stored: function that refers to a stored tensor by the name of the member's attribute.
        filled: (N, F), rows with 0 where missing.
        missing: (N, F), whether a value is missing.
    """

    def __init__(
        self,
        g: GraphBuilder,
        member: Exemplars,
        stored: Callable[[str], str],
        filled: str,
        missing: str,
    ) -> None:
        self.g, self.member, self.layout = g, member, member.layout
        self.stored, self.filled, self.missing = stored, filled, missing
        columns, levels = slots(self.layout)
        self.columns, self.levels = np.array(columns, np.int64), np.array(levels, np.float32)

    def terms(self) -> ExemplarTerms:
        """Compute the member's terms."""
        g = self.g
        parts = [ExemplarPart(self, *part) for part in self.split()]
        densities = [part.density() for part in parts]
        whole, portions = self.mixed(densities)
        score = g("Squeeze", g("Neg", whole.log), g.axes(-1))
        kl = g("Squeeze", g("Sub", whole.mean, whole.log), g.axes(-1))

        matrices = [part.averaged() for part in parts]

        def nats() -> Sequence[str]:
            expected = [
                g("Mul", part.expected(density.shares, matrix), portion)
                for part, density, matrix, portion in zip(
                    parts, densities, matrices, portions, strict=True
                )
            ]
            total = expected[0] if len(expected) == 1 else g("Add", *expected)
            return [self.exact(g("Neg", self.by_column(total)), score, kl)]

        def nothing() -> Sequence[str]:
            return [g.as_double(g("Sub", self.filled, self.filled))]

        return ExemplarTerms(score, g.choose(EXPLAIN, nats, nothing, [TensorProto.DOUBLE])[0], kl)

    def split(self) -> list[tuple[NDArray[np.int64], bool]]:
        """Return the exemplars that need float64, and those that do not, unless there are none."""
        center, log_var = (
            value.double().numpy() for value in (self.member.center, self.member.log_var)
        )
        narrow = (center**2).sum(1) > SINGLE_RATIO * np.exp(log_var)
        parts = (np.flatnonzero(~narrow), False), (np.flatnonzero(narrow), True)
        return [part for part in parts if len(part[0])]

    def mixed(self, parts: Sequence[Density]) -> tuple[Density, list[str]]:
        """Return the density of all parts, and the share (N, 1) of each part in it."""
        g = self.g
        if len(parts) == 1:
            return parts[0], [g.double(1.0)]
        logs = g("Concat", *(part.log for part in parts), axis=-1)
        most = g("Max", *(part.log for part in parts))
        weights = g("Exp", g("Sub", logs, most))
        total = g.stable_sum(weights, len(parts))
        shares = g("Div", weights, total)
        means = g("Concat", *(part.mean for part in parts), axis=-1)
        mean = g.stable_sum(g("Mul", shares, means), len(parts))
        whole = Density("", g("Add", most, g("Log", total)), mean)
        return whole, [g.slice(shares, i, i + 1) for i in range(len(parts))]

    # ------------------------------------------------------------ rows

    @cached_property
    def rows(self) -> str:
        """The inputs of a row that the exponents are linear in, (N, K) float64.

        These are 1, the numbers, the sum of their squares, and one-hot levels, which are all 0
        where missing.
        """
        g, n = self.g, self.layout.n_numeric
        if not n:
            return g("Pad", self.one_hot(), g.axes(0, 1, 0, 0), g.double(1.0))
        numeric = g.as_double(g.slice(self.filled, 0, n))
        pieces = [
            g("Pad", numeric, g.axes(0, 1, 0, 0), g.double(1.0)),
            g.stable_sum(g("Mul", numeric, numeric), n),
        ]
        return g("Concat", *pieces, *([self.one_hot()] if len(self.columns) else []), axis=-1)

    @cached_property
    def single_rows(self) -> str:
        """The same in float32."""
        return self.g.cast(self.rows)

    def one_hot(self) -> str:
        """Compute which levels a row has, (N, S) float64."""
        g = self.g
        codes = g("Gather", "x", g.constant(self.columns), axis=1)
        return g.as_double(g("Equal", codes, g.constant(self.levels)))

    @cached_property
    def gaps(self) -> str:
        """Whether the numbers are missing, (N, n) bool."""
        return self.g.slice(self.missing, 0, self.layout.n_numeric)

    @cached_property
    def some_gaps(self) -> str:
        """Whether any number of the tile is missing."""
        g = self.g
        most = g("ReduceMax", g.cast(self.gaps), keepdims=0)
        return g.cast(most, TensorProto.BOOL)

    @cached_property
    def present_count(self) -> str:
        """The number of values that a row has, (N, 1) float64."""
        return self.g.stable_sum(self.present(self.layout.n_columns), self.layout.n_columns)

    def present(self, count: int) -> str:
        """Compute whether the first columns have values, (N, count) float64."""
        return self.g.as_double(self.g("Not", self.g.slice(self.missing, 0, count)))

    # ------------------------------------------------------------ explanations

    def exact(self, nats: str, score: str, kl: str) -> str:
        """Distribute the rounding of the KL term over the columns, so that the sum is the score."""
        g, count = self.g, self.layout.n_columns
        rest = g("Sub", g("Sub", score, kl), g.sum_double(nats, count))
        least = g("Max", self.present_count, g.double(1.0))
        each = g("Div", g("Unsqueeze", rest, g.axes(-1)), least)
        return g("Add", nats, g("Mul", self.present(count), each))

    def by_column(self, expected: str) -> str:
        """Compute Σ_k r_k log K_f(x_f|c_k), (N, F).

        Args:
            expected: (N, K + n), factors and the constants of the numbers, averaged by the
                responsibilities.
        """
        g, n, levels, rows = self.g, self.layout.n_numeric, len(self.columns), self.rows
        first = n + 2 if n else 1
        pieces = []
        if n:
            numeric = g.slice(rows, 1, n + 1)
            linear = g("Mul", numeric, g.slice(expected, 1, n + 1))
            square = g("Mul", g("Mul", numeric, numeric), g.slice(expected, n + 1, n + 2))
            norm = g.slice(expected, first + levels, first + levels + n)
            known = g("Mul", self.present(n), norm)
            pieces = [g("Add", g("Add", linear, known), square)]
        if levels:
            bounds = first, first + levels
            parts = g("Mul", g.slice(rows, *bounds), g.slice(expected, *bounds))
            pieces.append(g("MatMul", parts, self.membership()))
        return g("Concat", *pieces, axis=-1)

    def membership(self) -> str:
        """Compute (S, C): 1 where a level belongs to a column."""
        g, n = self.g, self.layout.n_numeric
        columns = g.constant(np.arange(n, self.layout.n_columns)[None])
        return g.as_double(g("Equal", g.constant(self.columns[:, None]), columns))


class ExemplarPart:
    """The nodes of some of the exemplars, M of them. Their factors are folded on loading.

    Args:
        nodes: the nodes of all of them.
        index: (M,), which of them.
        double: whether exponents are in float64.
    """

    def __init__(self, nodes: ExemplarNodes, index: NDArray[np.int64], double: bool) -> None:
        self.nodes, self.g, self.layout = nodes, nodes.g, nodes.layout
        self.index, self.double = index, double
        self.kind = TensorProto.DOUBLE if double else TensorProto.FLOAT

    def density(self) -> Density:
        """Compute the density of the part."""
        g, exponents = self.g, self.exponents()
        most = g("ReduceMax", exponents, g.axes(-1), keepdims=1)
        below = g.cast(g("Sub", exponents, most)) if self.double else exponents
        shares = g("Softmax", below, axis=-1)
        largest = g.as_double(g("ReduceMax", shares, g.axes(-1), keepdims=1))
        moment = g.as_double(g.stable_sum(g("Mul", shares, below), len(self.index), np.float32))
        most = most if self.double else g.as_double(most)
        log_density = g("Sub", most, g("Log", largest))
        log_joint = g("Add", moment, most) if self.double else moment
        return Density(shares, log_density, self.without_weights(log_joint, shares))

    def without_weights(self, log_joint: str, shares: str) -> str:
        """Subtract the mean log-weight (N, 1) from log-weights plus log-kernels.

        A row without any value has no kernels; the rounding of what its gaps take away is removed.
        """
        g = self.g
        weights = self.nodes.member.log_weight[self.index]
        if bool((weights == weights[0]).all()):
            mean = g.slice(self.row("log_weight"), 0, 1)
        else:
            column = g.cast(self.column("log_weight"))
            mean = g.as_double(g("MatMul", shares, column))
        some = g("Min", self.nodes.present_count, g.double(1.0))
        return g("Mul", g("Sub", log_joint, mean), some)

    def exponents(self) -> str:
        """Compute (N, M): log-weights plus log-kernels, without the terms of missing numbers."""
        g, nodes = self.g, self.nodes
        rows = nodes.rows if self.double else nodes.single_rows
        factors, matrix = self.own(self.factors), self.matrix

        def complete() -> Sequence[str]:
            return [g("MatMul", rows, factors)]

        def incomplete() -> Sequence[str]:
            gaps = g("Neg", g.cast(nodes.gaps, self.kind))
            return [g("MatMul", g("Concat", rows, gaps, axis=-1), matrix)]

        if not self.layout.n_numeric:
            return complete()[0]
        return g.choose(nodes.some_gaps, incomplete, complete, [self.kind])[0]

    def averaged(self) -> str:
        """Return the factors and the constant terms of the numbers as (M, K + n)."""
        return self.transposed(self.matrix)

    def expected(self, shares: str, averaged: str) -> str:
        """Average factors and constants (M, K + n) by responsibilities, (N, K + n) float64."""
        g = self.g
        return g.as_double(
            g("MatMul", g.cast(shares, self.kind) if self.double else shares, averaged)
        )

    @cached_property
    def matrix(self) -> str:
        """The factors and the constant terms of the numbers, (K + n, M)."""
        pieces = [self.factors, self.norm] if self.layout.n_numeric else [self.factors]
        return self.own(self.g("Concat", *pieces, axis=0))

    @cached_property
    def factors(self) -> str:
        """The factors (K, M) of `ExemplarNodes.rows` in the exponents, float64."""
        g = self.g
        factors = [self.row("log_weight")]
        if self.layout.n_numeric:
            slope = g("Mul", g("Mul", self.half(), self.centers()), g.double(2.0))
            factors[0] = g("Add", factors[0], g.sum(self.norm, 0, keepdims=1))
            factors += [slope, g("Neg", self.half())]
        if len(self.nodes.columns):
            factors.append(self.log_levels())
        return g("Concat", *factors, axis=0)

    @cached_property
    def norm(self) -> str:
        """The constant term of each number in the exponents, (n, M) float64."""
        g = self.g
        scatter = g("Mul", g("Add", self.row("log_var"), g.double(LOG_2PI)), g.double(0.5))
        square = g("Mul", self.half(), g("Mul", self.centers(), self.centers()))
        return g("Neg", g("Add", square, scatter))

    def half(self) -> str:
        """Compute half the precision of each exemplar's kernels, (1, M)."""
        return self.g("Mul", self.g("Exp", self.g("Neg", self.row("log_var"))), self.g.double(0.5))

    def centers(self) -> str:
        """Refer to the numbers of the exemplars as (n, M)."""
        return self.transposed(self.weight("center"))

    def log_levels(self) -> str:
        """Compute (S, M), the log-probability of each level at each exemplar."""
        g, nodes = self.g, self.nodes
        places = g.constant(nodes.columns - self.layout.n_numeric)
        codes = g("Gather", self.transposed(self.weight("codes")), places, axis=0)
        levels = g.as_double(g.constant(nodes.levels[:, None]))
        same, other = (
            g("Unsqueeze", g.as_double(nodes.stored(name)), g.axes(-1))
            for name in ("log_same", "log_other")
        )
        return g("Where", g("Equal", codes, levels), same, other)

    def own(self, matrix: str) -> str:
        """Convert a float64 matrix to the element type of the exponents."""
        return matrix if self.double else self.g.cast(matrix)

    def transposed(self, matrix: str) -> str:
        """Transpose a matrix."""
        return self.g("Transpose", matrix, perm=[1, 0])

    def weight(self, name: str) -> str:
        """Refer to the part of a stored tensor that belongs to these exemplars, in float64."""
        g, whole = self.g, self.g.as_double(self.nodes.stored(name))
        if len(self.index) == len(self.nodes.member.log_weight):
            return whole
        return g("Gather", whole, g.constant(self.index), axis=0)

    def row(self, name: str) -> str:
        """Refer to a stored tensor (M,) as a matrix (1, M)."""
        return self.g("Unsqueeze", self.weight(name), self.g.axes(0))

    def column(self, name: str) -> str:
        """Refer to a stored tensor (M,) as a matrix (M, 1)."""
        return self.g("Unsqueeze", self.weight(name), self.g.axes(-1))
