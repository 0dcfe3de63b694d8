"""Build the nodes of the exemplar member in the scoring graph; see `models.exemplars`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor

from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.models.exemplars import Exemplars, slots
from anomaly_vae.models.likelihoods import LOG_2PI
from anomaly_vae.scoring.scorer import BLOCK_ROWS, DISTINCT_ROWS

SINGLE_RATIO = 1_000.0
"""Largest |c|²/v of an exemplar whose exponents are computed in float32.

A squared distance is a difference of squares, so float32 rounds an exponent by about 10⁻⁷ |c|²/v
nats, which is 10⁻⁴ at this limit. Exemplars with narrower kernels are computed in float64.
"""
MIN_SINGLE_SHARE = 0.3
"""Least fraction of the exemplars in float32, if there are any; joining both kinds takes time."""


def needs_double(center: Tensor, log_var: Tensor) -> Tensor:
    """Return which kernels or components (..., M) are too narrow for float32; see `SINGLE_RATIO`.

    Args:
        center: (..., M, n), their centers.
        log_var: (..., M), their log-variances.
    """
    return center.double().square().sum(-1) > SINGLE_RATIO * log_var.double().exp()


class ExemplarNodes:
    """The nodes of `Exemplars.forward`, for rows ``x`` (N, F) with NaN where missing.

    The exponents of all exemplars are one product of matrices, or two where some kernels are too
    narrow for float32 (`SINGLE_RATIO`). Tiles with missing values have further columns in it, which
    are 0 in rows without such values, so that these rows have the same scores in every tile.

    Args:
        g: the graph.
        member: the exemplars.
        stored: function that refers to a stored tensor by the name of the member's attribute.
        numbers: (N, n), numbers with 0 where missing, "" without any.
        missing: (N, F), whether a value is missing.
        some_gaps: whether any value of the tile is missing.
    """

    def __init__(
        self,
        g: GraphBuilder,
        member: Exemplars,
        stored: Callable[[str], str],
        numbers: str,
        missing: str,
        some_gaps: str,
    ) -> None:
        self.g, self.member, self.layout = g, member, member.layout
        self.stored, self.numbers, self.missing = stored, numbers, missing
        self.some_gaps = some_gaps
        columns, levels = slots(self.layout)
        self.columns, self.levels = np.array(columns, np.int64), np.array(levels, np.float32)
        self.parts = [ExemplarPart(self, *part) for part in self.split()]
        self.averaged = [part.averaged() for part in self.parts]

    def split(self) -> list[tuple[NDArray[np.int64], bool]]:
        """Return the exemplars that do not need float64, and those that do, unless there are none.

        The numbers of each are followed by whether they need it.
        """
        narrow = needs_double(self.member.center, self.member.log_var).numpy()
        if (~narrow).mean() < MIN_SINGLE_SHARE:
            narrow = np.ones_like(narrow)
        parts = (np.flatnonzero(~narrow), False), (np.flatnonzero(narrow), True)
        return [part for part in parts if len(part[0])]

    def pair(self) -> str:
        """Compute the mean log-kernels in `chunks` and the log-density, (N, chunks + 1) float32.

        The loss is minus the former. The KL term is the former minus the latter. Only the products
        need float64, whose terms cancel. Of a lone row, which its tile repeats, there is one row.
        """
        for part in self.parts:
            part.fold()
        self.folded = self.ones(), self.log_weights()
        kinds = [TensorProto.FLOAT, TensorProto.FLOAT]
        pair, self.shares = self.g.choose(self.some_gaps, self.incomplete, self.complete, kinds)
        return pair

    def complete(self) -> Sequence[str]:
        """Compute the result of `pair` and the responsibilities (N, M) of rows without gaps."""
        return self.averaged_pair(self.joined([part.complete() for part in self.parts]))

    def incomplete(self) -> Sequence[str]:
        """Compute the same of any rows. Rows without any value have no kernels."""
        g = self.g
        present = g.cast(g("Not", self.distinct(self.missing)))
        some = g("Min", g.stable_sum(present, self.layout.n_columns, np.float32), 1.0)
        exponents = self.joined([part.incomplete() for part in self.parts])
        return self.averaged_pair(exponents, some)

    def averaged_pair(self, exponents: str, some: str = "") -> Sequence[str]:
        """Compute the result of `pair` and the responsibilities from exponents (N, M).

        Args:
            exponents: log-weights plus log-kernels without the terms of missing numbers.
            some: (N, 1), 0 for rows without any value and 1 for the others; "" if all have values.
        """
        g = self.g
        shares = g("Softmax", exponents, axis=-1)
        ones, log_weights = self.folded
        log_kernels = exponents if self.has_equal_weights else g("Sub", exponents, log_weights)
        parts = g("Reshape", g("Mul", shares, log_kernels), g.axes(-1, self.chunk))
        log_kernel = g("Reshape", g("MatMul", parts, ones), g.axes(-1, self.chunks))
        if self.has_equal_weights:
            log_kernel = g("Sub", log_kernel, g("Div", log_weights, float(self.chunks)))
        log_kernel = g("Mul", log_kernel, some) if some else log_kernel
        return g("Concat", log_kernel, self.log_density(exponents, shares), axis=-1), shares

    def log_density(self, exponents: str, shares: str) -> str:
        """Compute the log-sum-exp of exponents (N, M), (N, 1); see `GraphBuilder.log_sum_exp`.

        ONNX Runtime computes the logarithms of four numbers at a time, and rounds those that are
        left over differently. Each is therefore computed four times.
        """
        g = self.g
        most, largest = (
            g("ReduceMax", value, g.axes(-1), keepdims=1) for value in (exponents, shares)
        )
        logs = g("Log", g("Concat", *[largest] * BLOCK_ROWS, axis=-1))
        return g("Sub", most, g.slice(logs, 0, 1))

    @cached_property
    def chunks(self) -> int:
        """Number of summands of the mean log-kernels, so that a lone row has several, if it can.

        ONNX Runtime adds the numbers of a single row in an order of its own.
        """
        return BLOCK_ROWS if len(self.member.log_weight) % BLOCK_ROWS == 0 else 1

    @property
    def chunk(self) -> int:
        """Number of exemplars in each summand."""
        return len(self.member.log_weight) // self.chunks

    def distinct(self, rows: str) -> str:
        """Leave out the rows of a tile that repeat a lone row."""
        g = self.g
        if self.chunks == 1:
            return rows
        return g("Slice", rows, g.axes(0), DISTINCT_ROWS, g.axes(0))

    def ones(self) -> str:
        """Return ones (1, M / chunks, 1), with which a product is a sum.

        ONNX Runtime would pack a constant with two axes for a product with 16 columns, which takes
        five times as long.
        """
        g, fill = self.g, numpy_helper.from_array(np.ones(1, np.float32))
        return g("ConstantOfShape", g.axes(1, self.chunk, 1), value=fill)

    @property
    def has_equal_weights(self) -> bool:
        """Whether all exemplars have the same weight."""
        weights = self.member.log_weight
        return bool((weights == weights[0]).all())

    def log_weights(self) -> str:
        """Return the log-weights (M,), or the only one (1,) of all exemplars."""
        g = self.g
        weights = self.joined([g.cast(part.weight("log_weight")) for part in self.parts])
        return g("Slice", weights, g.axes(0), g.axes(1)) if self.has_equal_weights else weights

    def joined(self, pieces: Sequence[str]) -> str:
        """Join values along the last axis."""
        return pieces[0] if len(pieces) == 1 else self.g("Concat", *pieces, axis=-1)

    def nats(self) -> str:
        """Compute −Σ_k r_k log K_f(x_f|c_k), (N, F) float64, for explanations."""
        g, counts = self.g, [len(part.index) for part in self.parts]
        shares = [self.shares]
        if len(counts) > 1:
            shares = g.add_split("Split", len(counts), self.shares, g.axes(*counts), axis=-1)
        triples = zip(self.parts, shares, self.averaged, strict=True)
        expected = [part.expected(own, averaged) for part, own, averaged in triples]
        return g("Neg", self.by_column(g("Sum", *expected)))

    # ------------------------------------------------------------ rows

    @cached_property
    def rows(self) -> str:
        """The inputs of a row that the exponents are linear in, (N, K).

        These are the numbers, the sum of their squares, 1, and one-hot levels, which are all 0
        where missing. They are float64 if any part is.
        """
        g, n = self.g, self.layout.n_numeric
        kind = np.float64 if self.double else np.float32
        levels = [self.one_hot()] if len(self.columns) else []
        if not n:
            return self.distinct(g.with_ones(self.one_hot(), 2, kind))
        numeric = g.as_double(self.numbers) if self.double else self.numbers
        parts = numeric, self.square_and_one(numeric, kind), *levels
        return self.distinct(g("Concat", *parts, axis=-1))

    def square_and_one(self, numeric: str, kind: type[np.floating[Any]]) -> str:
        """Compute the sums of squares, and 1 beside each, (N, 2) from (N, n)."""
        g, n = self.g, self.layout.n_numeric
        ones, shift = (g.constant(np.array(pair, kind)) for pair in ([1, 0], [0, 1]))
        ones = g("Expand", ones, g.axes(n, 2))
        return g("Gemm", g("Mul", numeric, numeric), ones, shift)

    @cached_property
    def double_rows(self) -> str:
        """The inputs of a row in float64."""
        return self.g.as_double(self.rows)

    @cached_property
    def single_rows(self) -> str:
        """The inputs of a row in float32."""
        return self.g.cast(self.rows) if self.double else self.rows

    @cached_property
    def double(self) -> bool:
        """Whether any exponents are in float64."""
        return any(part.double for part in self.parts)

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
            numeric = g.slice(rows, 0, n)
            linear = g("Mul", numeric, g.slice(expected, 0, n))
            square = g("Mul", g("Mul", numeric, numeric), g.slice(expected, n, n + 1))
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

    def fold(self) -> None:
        """Add the nodes of the factors outside of branches, so that they are folded."""
        self.folded = self.own(self.factors), self.matrix
        self.rows = self.nodes.double_rows if self.double else self.nodes.single_rows

    def complete(self) -> str:
        """Compute exponents (N, M) float32 of rows without missing numbers."""
        return self.product(self.rows, self.folded[0])

    def incomplete(self) -> str:
        """Compute exponents (N, M) float32 of any rows."""
        g = self.g
        if not self.layout.n_numeric:
            return self.complete()
        missing = self.nodes.distinct(self.nodes.first(self.nodes.missing))
        gaps = g("Neg", g.cast(missing, self.kind))
        return self.product(g("Concat", self.rows, gaps, axis=-1), self.folded[1])

    def product(self, rows: str, factors: str) -> str:
        """Multiply rows and factors, and convert the exponents to float32."""
        exponents = self.g("MatMul", rows, factors)
        return self.g.cast(exponents) if self.double else exponents

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
            constant = g("Add", factors[0], g.sum(self.norm, 0, keepdims=1))
            factors = [slope, g("Neg", self.half()), constant]
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
