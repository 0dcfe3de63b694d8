"""Build the nodes of the exemplar member in the scoring graph; see `models.exemplars`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.models.exemplars import Exemplars, slots
from anomaly_vae.models.likelihoods import LOG_2PI
from anomaly_vae.models.priors import MIN_EXPONENT
from anomaly_vae.scoring.scorer import EXPLAIN

ONE = numpy_helper.from_array(np.ones(1))
"""The number 1 as a tensor."""


class ExemplarTerms(NamedTuple):
    """Names of the values that the member contributes, all float64 and in nats."""

    score: str
    """(N,): −log p(x)."""
    nats: str
    """(N, F): share of each column."""
    kl: str
    """(N,): share of the KL term; score = Σ nats + kl."""


class ExemplarNodes:
    """The nodes of `Exemplars.forward`, for rows ``x`` (N, F) with NaN where missing.

    The exponents of all exemplars are one product of matrices in float64. What missing values
    change is a second product, which is computed only for tiles that have some and is exactly 0
    for rows that have none. The nodes of ``nats`` are needed for explanations only.

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
        self.g, self.layout, self.count = g, member.layout, len(member.log_var)
        self.stored, self.filled, self.missing = stored, filled, missing
        columns, levels = slots(self.layout)
        self.columns, self.levels = np.array(columns, np.int64), np.array(levels, np.float32)

    def terms(self) -> ExemplarTerms:
        """Compute the member's terms."""
        g = self.g
        norm = self.norm()
        rows, factors = self.inputs(norm)
        exponents = self.exponents(rows, factors, norm)
        most = g("ReduceMax", exponents, g.axes(-1), keepdims=1)
        below = g("Max", g.cast(g("Sub", exponents, most)), MIN_EXPONENT)
        weights = g("Exp", below)
        total, log_density, kl = self.density(most, below, weights)
        score = g("Squeeze", g("Neg", log_density), g.axes(-1))
        every = self.transposed(g("Concat", factors, norm, axis=0) if norm else factors)

        def nats() -> str:
            shares = g("Div", g.as_double(weights), total)
            parts = self.by_column(rows, g("MatMul", shares, every))
            return self.exact(g("Neg", parts), score, kl)

        def nothing() -> str:
            return g.as_double(g("Sub", self.filled, self.filled))

        return ExemplarTerms(score, g.choose(EXPLAIN, nats, nothing), kl)

    def density(self, most: str, below: str, weights: str) -> tuple[str, str, str]:
        """Compute Σ weights (N, 1), log p(x) (N, 1) and the KL term (N,), all in float64.

        Args:
            most: (N, 1), largest exponent.
            below: (N, M), exponents minus the largest one, float32.
            weights: (N, M), exponentials of ``below``.
        """
        g = self.g
        log_weight = g.cast(self.column("log_weight"))
        ones = g("Add", g("Mul", log_weight, 0.0), 1.0)
        sums = g.as_double(g("MatMul", weights, g("Concat", ones, log_weight, axis=-1)))
        total = g.slice(sums, 0, 1)
        mean_weight = g("Div", g.slice(sums, 1, 2), total)
        moment = g.stable_sum(g("Mul", weights, below), self.count, np.float32)
        mean_below = g("Div", g.as_double(moment), total)
        log_density = g("Add", most, g("Log", total))
        log_prob = g("Sub", g("Add", most, mean_below), mean_weight)
        nothing = g("Equal", self.present_count(), g.double(0.0))
        log_prob = g("Where", nothing, g.double(0.0), log_prob)
        return total, log_density, g("Squeeze", g("Sub", log_prob, log_density), g.axes(-1))

    def present_count(self) -> str:
        """Compute the number of values that a row has, (N, 1) float64."""
        return self.g.stable_sum(self.present(self.layout.n_columns), self.layout.n_columns)

    def present(self, count: int) -> str:
        """Compute whether the first columns have values, (N, count) float64."""
        return self.g.as_double(self.g("Not", self.g.slice(self.missing, 0, count)))

    def exact(self, nats: str, score: str, kl: str) -> str:
        """Distribute the rounding of the KL term over the columns, so that the sum is the score."""
        g, count = self.g, self.layout.n_columns
        rest = g("Sub", g("Sub", score, kl), g.sum_double(nats, count))
        each = g(
            "Div", g("Unsqueeze", rest, g.axes(-1)), g("Max", self.present_count(), g.double(1.0))
        )
        return g("Add", nats, g("Mul", self.present(count), each))

    def inputs(self, norm: str) -> tuple[str, str]:
        """Compute rows (N, K) and factors (K, M), whose product are the exponents.

        The rows are 1, the numbers, the sum of their squares, and one-hot levels, which are all 0
        where missing. The factors are folded on loading.

        Args:
            norm: see `norm`.
        """
        g, n = self.g, self.layout.n_numeric
        one = g("ConstantOfShape", g("Shape", self.filled, end=1), value=ONE)
        rows, factors = [g("Unsqueeze", one, g.axes(-1))], [self.row("log_weight")]
        if n:
            numeric = g.as_double(g.slice(self.filled, 0, n))
            rows += [numeric, g.stable_sum(g("Mul", numeric, numeric), n)]
            slope = g("Mul", g("Mul", self.half(), self.centers()), g.double(2.0))
            factors[0] = g("Add", factors[0], g.sum(norm, 0, keepdims=1))
            factors += [slope, g("Neg", self.half())]
        if len(self.columns):
            codes = g("Gather", "x", g.constant(self.columns), axis=1)
            rows.append(g.as_double(g("Equal", codes, g.constant(self.levels))))
            factors.append(self.log_levels())
        return g("Concat", *rows, axis=-1), g("Concat", *factors, axis=0)

    def norm(self) -> str:
        """Compute the constant term of each number in the exponents, (n, M); "" without numbers."""
        g = self.g
        if not self.layout.n_numeric:
            return ""
        scatter = g("Mul", g("Add", self.row("log_var"), g.double(LOG_2PI)), g.double(0.5))
        square = g("Mul", self.half(), g("Mul", self.centers(), self.centers()))
        return g("Neg", g("Add", square, scatter))

    def exponents(self, rows: str, factors: str, norm: str) -> str:
        """Compute (N, M): log-weights plus log-kernels, without the terms of missing numbers."""
        g, n = self.g, self.layout.n_numeric

        def whole() -> str:
            return g("MatMul", rows, factors)

        def rest() -> str:
            return g("Sub", whole(), g("MatMul", g.as_double(gaps), norm))

        if not n:
            return whole()
        gaps = g.slice(self.missing, 0, n)
        some = g("Squeeze", g.cast(g("ReduceMax", g.cast(gaps), keepdims=1), TensorProto.BOOL))
        return g.choose(some, rest, whole)

    def half(self) -> str:
        """Compute half the precision of each exemplar's kernels, (1, M)."""
        return self.g("Mul", self.g("Exp", self.g("Neg", self.row("log_var"))), self.g.double(0.5))

    def centers(self) -> str:
        """Refer to the numbers of the exemplars as (n, M)."""
        return self.transposed(self.weight("center"))

    def transposed(self, matrix: str) -> str:
        """Transpose a matrix."""
        return self.g("Transpose", matrix, perm=[1, 0])

    def log_levels(self) -> str:
        """Compute (S, M), the log-probability of each level at each exemplar."""
        g = self.g
        places = g.constant(self.columns - self.layout.n_numeric)
        codes = g("Gather", self.transposed(self.weight("codes")), places, axis=0)
        levels = g.as_double(g.constant(self.levels[:, None]))
        return g(
            "Where", g("Equal", codes, levels), self.column("log_same"), self.column("log_other")
        )

    def by_column(self, rows: str, expected: str) -> str:
        """Compute Σ_k r_k log K_f(x_f|c_k), (N, F).

        Args:
            rows: (N, K), see `inputs`.
            expected: (N, K + n), factors and `norm`, averaged by the responsibilities.
        """
        g, n, levels = self.g, self.layout.n_numeric, len(self.columns)
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

    def weight(self, name: str) -> str:
        """Refer to a stored tensor in float64."""
        return self.g.as_double(self.stored(name))

    def row(self, name: str) -> str:
        """Refer to a stored tensor (A,) as a matrix (1, A)."""
        return self.g("Unsqueeze", self.weight(name), self.g.axes(0))

    def column(self, name: str) -> str:
        """Refer to a stored tensor (A,) as a matrix (A, 1)."""
        return self.g("Unsqueeze", self.weight(name), self.g.axes(-1))
