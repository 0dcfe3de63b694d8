"""Define the builder of ONNX graphs, which names nodes and constants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class LogSumExp(NamedTuple):
    """Names of the values of a log-sum-exp over exponents (..., N, M), float32."""

    log: str
    """(..., N, 1)"""
    shares: str
    """(..., N, M): each exponential divided by their sum."""


class GraphBuilder:
    """The nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inner_nodes = 0
        """Number of nodes in branches, which `nodes` does not hold."""

    @classmethod
    def of_graph(cls, graph: onnx.GraphProto) -> Self:
        """Return a builder that continues a graph, whose names it does not use again."""
        builder = cls()
        builder.nodes = list(graph.node)
        builder.constants = {tensor.name: tensor for tensor in graph.initializer}
        builder.inner_nodes = _count_inner(graph.node)
        return builder

    def __call__(self, op: str, *inputs: str | float, **attributes: Any) -> str:
        """Add a node and return the name of its output; plain numbers become float32 constants."""
        return self.add_split(op, 1, *inputs, **attributes)[0]

    def add_split(
        self, op: str, outputs: int, *inputs: str | float, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs and return their names."""
        number = len(self.nodes) + self.inner_nodes
        names = [f"{op}_{number}_{i}" for i in range(outputs)]
        edges = [self.constant(np.float32(i)) if isinstance(i, int | float) else i for i in inputs]
        self.nodes.append(helper.make_node(op, edges, names, **attributes))
        return names

    def choose(
        self,
        condition: str,
        then: Callable[[], Sequence[str]],
        other: Callable[[], Sequence[str]],
        kinds: Sequence[int],
        names: Sequence[str] = (),
    ) -> list[str]:
        """Compute only one of two lists of values, each built by a function that adds its nodes.

        Args:
            condition: name of a boolean.
            then: function that returns the values if it is true.
            other: function that returns the values if it is false.
            kinds: element types of the values.
            names: names of the values, if they shall have certain ones.
        """
        branches = [self._branch(build, kinds) for build in (then, other)]
        edges = {"then_branch": branches[0], "else_branch": branches[1]}
        chosen = self.add_split("If", len(kinds), condition, **edges)
        if names:
            self.nodes[-1].output[:] = names
        return list(names) or chosen

    def _branch(self, build: Callable[[], Sequence[str]], kinds: Sequence[int]) -> onnx.GraphProto:
        outer, self.nodes = self.nodes, []
        self.inner_nodes += len(outer)
        values = [self._own(value) for value in build()]
        inner, self.nodes = self.nodes, outer
        self.inner_nodes += len(inner) - len(outer)
        pairs = zip(values, kinds, strict=True)
        outputs = [helper.make_tensor_value_info(value, kind, None) for value, kind in pairs]
        return helper.make_graph(inner, values[0], [], outputs)

    def _own(self, value: str) -> str:
        """Return a value as one that a node of this graph computes."""
        computed = {name for node in self.nodes for name in node.output}
        return value if value in computed else self("Identity", value)

    def constant(self, value: Any) -> str:
        """Add a constant, unless an equal one exists, and return its name."""
        array = np.asarray(value)
        name = f"c_{array.dtype}_{array.shape}_{content_hash(array)}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def axes(self, *axes: int) -> str:
        """Add a constant that lists axes, and return its name."""
        return self.constant(np.array(axes, np.int64))

    def named(self, name: str, op: str, *inputs: str, **attributes: Any) -> None:
        """Add a node whose output has a given name."""
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))

    def sum(self, value: str, axis: int, keepdims: int = 0) -> str:
        """Sum over one axis."""
        return self("ReduceSum", value, self.axes(axis), keepdims=keepdims)

    def stable_sum(self, value: str, count: int, to: type[np.floating[Any]] = np.float64) -> str:
        """Sum over the last axis, (..., N, count) to (..., N, 1), in one order for all rows.

        The sum is a matrix product, which adds the numbers of every row in the same order. The
        order of ReduceSum depends on the alignment of the row in memory.
        """
        fill = numpy_helper.from_array(np.ones(1, to))
        ones = self("ConstantOfShape", self.constant(np.array([count, 1])), value=fill)
        return self("MatMul", value, ones)

    def with_ones(self, rows: str, rank: int, to: type[np.floating[Any]]) -> str:
        """Put a column of ones before the last axis of rows with a number of axes."""
        before = [0] * (rank - 1) + [1]
        return self("Pad", rows, self.axes(*before, *[0] * rank), self.constant(to(1.0)))

    def log_sum_exp(self, exponents: str) -> LogSumExp:
        """Compute the log-sum-exp over the last axis of float32 exponents (..., N, M).

        Softmax adds the numbers of every row in the same order, unlike ReduceSum.
        """
        shares = self("Softmax", exponents, axis=-1)
        most, largest = (
            self("ReduceMax", value, self.axes(-1), keepdims=1) for value in (exponents, shares)
        )
        return LogSumExp(self("Sub", most, self("Log", largest)), shares)

    def log_total(self, exponents: str) -> str:
        """Compute the logarithm of `log_sum_exp` alone."""
        logs = self("LogSoftmax", exponents, axis=-1)
        most, largest = (
            self("ReduceMax", value, self.axes(-1), keepdims=1) for value in (exponents, logs)
        )
        return self("Sub", most, largest)

    def cast(self, value: str, to: int = TensorProto.FLOAT) -> str:
        """Change the element type."""
        return self("Cast", value, to=to)

    def row(self, matrix: str, index: int) -> str:
        """Take a row of a matrix, (1, n)."""
        return self("Gather", matrix, self.axes(index), axis=0)

    def slice(self, value: str, start: int, stop: int) -> str:
        """Take the columns [start, stop) of the last axis."""
        bounds = (self.axes(start), self.axes(stop), self.axes(-1))
        return self("Slice", value, *bounds)

    def double(self, value: float) -> str:
        """Add a float64 constant."""
        return self.constant(np.float64(value))

    def as_double(self, value: str) -> str:
        """Convert a value to float64."""
        return self.cast(value, TensorProto.DOUBLE)

    def sum_double(self, value: str, count: int) -> str:
        """Sum over the last axis in float64, (..., N, count) to (..., N)."""
        return self("Squeeze", self.stable_sum(self.as_double(value), count), self.axes(-1))


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node."""
    return [part.g for part in node.attribute if part.HasField("g")]


def _count_inner(nodes: Iterable[onnx.NodeProto]) -> int:
    """Count the nodes in the branches of nodes."""
    inner = [branch.node for node in nodes for branch in branches(node)]
    return sum(len(branch) + _count_inner(branch) for branch in inner)


def content_hash(array: NDArray[Any]) -> str:
    """Return a short name for the content of a constant."""
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
