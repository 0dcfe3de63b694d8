"""Build the nodes of the exemplar member in the scoring graph; see `models.exemplars`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.models.exemplars import Exemplars, slots
from anomaly_vae.models.likelihoods import LOG_2PI

SINGLE_RATIO = 500.0
"""Largest |c|²/v of an exemplar whose exponents are computed in float32.

A squared distance is a difference of squares, so float32 rounds an exponent by about 10⁻⁷ |c|²/v
nats, which is 5·10⁻⁵ at this limit. Exemplars with narrower kernels are computed in float64.
"""


def needs_double(center: Tensor, log_var: Tensor) -> Tensor:
    """Return which kernels or components (..., M) are too narrow for float32; see `SINGLE_RATIO`.

    Args:
        center: (..., M, n), their centers.
        log_var: (..., M), their log-variances.
    """
    return center.double().square().sum(-1) > SINGLE_RATIO * log_var.double().exp()


class Density(NamedTuple):
    """Names of the values of a part of the exemplars, in nats; float32 or float64."""

    shares: str
    """(N, M) float32: responsibilities within the part."""
    mean: str
    """(N, 1): log-kernels of a row, averaged by the responsibilities."""
    log: str
    """(N, 1): log-density of the part."""


class ExemplarNodes:
    """The nodes of `Exemplars.forward`, for rows ``x`` (N, F) with NaN where missing.

    The exponents of all exemplars are one product of matrices, or two where some kernels are too
    narrow for float32 (`SINGLE_RATIO`). Tiles with missing values have further columns in it, which
    are 0 in rows without such values, so that these rows have the same scores in every tile.

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
        self.parts = [ExemplarPart(self, *part) for part in self.split()]
        self.densities = [part.density() for part in self.parts]
        self.averaged = [part.averaged() for part in self.parts]

    def split(self) -> list[tuple[NDArray[np.int64], bool]]:
        """Return the exemplars that do not need float64, and those that do, unless there are none.

        The numbers of each are followed by whether they need it.
        """
        narrow = needs_double(self.member.center, self.member.log_var).numpy()
        parts = (np.flatnonzero(~narrow), False), (np.flatnonzero(narrow), True)
        return [part for part in parts if len(part[0])]

    def pair(self) -> str:
        """Compute the mean log-kernels and the log-density, (N, 2) float64.

        The loss is minus the former. The KL term is the former minus the latter.
        """
        g = self.g
        pairs = [g.as_double(g("Concat", part.mean, part.log, axis=-1)) for part in self.densities]
        return pairs[0] if len(pairs) == 1 else self.mixed(pairs)

    def nats(self) -> str:
        """Compute −Σ_k r_k log K_f(x_f|c_k), (N, F) float64, for explanations."""
        g = self.g
        expected = [
            part.expected(density.shares, averaged)
            for part, density, averaged in zip(
                self.parts, self.densities, self.averaged, strict=True
            )
        ]
        if len(expected) == 1:
            return g("Neg", self.by_column(expected[0]))
        weighted = [
            g("Mul", each, g.slice(self.portions, i, i + 1)) for i, each in enumerate(expected)
        ]
        return g("Neg", self.by_column(g("Add", *weighted)))

    def mixed(self, pairs: Sequence[str]) -> str:
        """Compute the pair of the whole from those of its parts."""
        g = self.g
        means, logs = (
            g("Concat", *(g.slice(pair, i, i + 1) for pair in pairs), axis=-1) for i in (0, 1)
        )
        most = g("ReduceMax", logs, g.axes(-1), keepdims=1)
        weights = g("Exp", g("Sub", logs, most))
        total = g.stable_sum(weights, len(pairs))
        self.portions = g("Div", weights, total)
        mean = g.stable_sum(g("Mul", self.portions, means), len(pairs))
        return g("Concat", mean, g("Add", most, g("Log", total)), axis=-1)

    # ------------------------------------------------------------ rows

    @cached_property
    def rows(self) -> str:
        """The inputs of a row that the exponents are linear in, (N, K).

        These are 1, the numbers, the sum of their squares, and one-hot levels, which are all 0
        where missing. They are float64 if any part is.
        """
        g, n = self.g, self.layout.n_numeric
        kind = np.float64 if self.double else np.float32
        levels = [self.one_hot()] if len(self.columns) else []
        if not n:
            return g.with_ones(self.one_hot(), 2, kind)
        numeric = self.first(self.filled)
        numeric = g.as_double(numeric) if self.double else numeric
        square = g.stable_sum(g("Mul", numeric, numeric), n, kind)
        return g("Concat", g.with_ones(numeric, 2, kind), square, *levels, axis=-1)

    @cached_property
    def double_rows(self) -> str:
        """The same in float64."""
        return self.g.as_double(self.rows)

    @cached_property
    def single_rows(self) -> str:
        """The same in float32."""
        return self.g.cast(self.rows) if self.double else self.rows

    @cached_property
    def double(self) -> bool:
        """Whether any exponents are in float64."""
        return bool(needs_double(self.member.center, self.member.log_var).any())

    def one_hot(self) -> str:
        """Compute which levels a row has, (N, S)."""
        g = self.g
        codes = g("Gather", "x", g.constant(self.columns), axis=1)
        kind = TensorProto.DOUBLE if self.double else TensorProto.FLOAT
        return g.cast(g("Equal", codes, g.constant(self.levels)), kind)

    def first(self, value: str) -> str:
        """Take the numeric columns of rows (N, F)."""
        n = self.layout.n_numeric
        return value if n == self.layout.n_columns else self.g.slice(value, 0, n)

    @cached_property
    def some_gaps(self) -> str:
        """Whether any value of the tile is missing."""
        g = self.g
        return g.cast(g("ReduceMax", g.cast(self.missing), keepdims=0), TensorProto.BOOL)

    # ------------------------------------------------------------ explanations

    def by_column(self, expected: str) -> str:
        """Compute Σ_k r_k log K_f(x_f|c_k), (N, F).

        Args:
            expected: (N, K + n), factors and the constants of the numbers, averaged by the
                responsibilities.
        """
        g, n, levels, rows = self.g, self.layout.n_numeric, len(self.columns), self.double_rows
        first = n + 2 if n else 1
        pieces = []
        if n:
            numeric = g.slice(rows, 1, n + 1)
            linear = g("Mul", numeric, g.slice(expected, 1, n + 1))
            square = g("Mul", g("Mul", numeric, numeric), g.slice(expected, n + 1, n + 2))
            norm = g.slice(expected, first + levels, first + levels + n)
            known = g("Mul", g.as_double(g("Not", self.first(self.missing))), norm)
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
        g = self.g
        exponents, some = self.exponents()
        norm = g.log_sum_exp(exponents, self.double)
        moment = g.stable_sum(g("Mul", norm.shares, norm.below), len(self.index), np.float32)
        log_joint = g("Add", g.as_double(moment), norm.most) if self.double else moment
        log_kernel = g("Sub", log_joint, self.mean_weight(norm.shares))
        return Density(norm.shares, g("Mul", log_kernel, some), norm.log)

    def mean_weight(self, shares: str) -> str:
        """Compute the log-weights averaged by the responsibilities, (N, 1) or (1, 1)."""
        g = self.g
        weights = self.nodes.member.log_weight[self.index]
        if bool((weights == weights[0]).all()):
            return self.own(g.slice(self.row("log_weight"), 0, 1))
        column = g("Unsqueeze", self.weight("log_weight"), g.axes(-1))
        mean = g("MatMul", shares, g.cast(column))
        return g.as_double(mean) if self.double else mean

    def exponents(self) -> tuple[str, str]:
        """Compute log-weights plus log-kernels without the terms of missing numbers, (N, M).

        The second value is 0 for rows without any value, which have no kernels, and otherwise 1:
        (N, 1), or (1, 1) for all rows.
        """
        g, nodes = self.g, self.nodes
        rows = nodes.double_rows if self.double else nodes.single_rows
        factors, matrix = self.own(self.factors), self.matrix

        def complete() -> Sequence[str]:
            return g("MatMul", rows, factors), self.own(g.constant(np.ones((1, 1))))

        def incomplete() -> Sequence[str]:
            gaps = g("Neg", g.cast(nodes.first(nodes.missing), self.kind))
            inputs = g("Concat", rows, gaps, axis=-1) if self.layout.n_numeric else rows
            return g("MatMul", inputs, matrix), self.some()

        kinds = [self.kind, self.kind]
        exponents, some = g.choose(nodes.some_gaps, incomplete, complete, kinds)
        return exponents, some

    def some(self) -> str:
        """Compute whether rows have any value, (N, 1)."""
        g, count = self.g, self.layout.n_columns
        present = g.cast(g("Not", self.nodes.missing), self.kind)
        present = g.stable_sum(present, count, np.float64 if self.double else np.float32)
        return g("Min", present, self.own(g.double(1.0)))

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
