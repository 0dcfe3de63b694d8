"""Add the trees that learned from known anomalies to the scoring graph of a table.

The graph of `onnx_tabular` is the detector, whose score is in nats. To it come the trees, and the
surprise of both scores (`calibration.surprise`). The outputs then are

    score     (N,)    float64, surprise of the detector plus surprise of the trees
    nats      (N, F)  float32 or float64 as before, share of each column in the detector's surprise
    kl        (N,)    float64, the rest of that surprise; score = Σ nats + kl + known
    expected  (N, F)  float32, unchanged
    latent    (N, L)  float32, unchanged
    known     (N,)    float64, surprise of the trees
    detector  (N,)    float64, the detector's score, nats
    rate      (N,)    float64, the KL term in it, nats

A surprise is no sum over columns. The shares are therefore those of the detector's score, times one
factor for each row: the mean slope of its curve between the median normal row and this row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from anomaly_vae.calibration.surprise import SurpriseCurve
from anomaly_vae.export.graph_builder import GraphBuilder, branches
from anomaly_vae.scoring.scorer import KNOWN_COLUMNS, KNOWN_OUTPUTS

ML_OPSET = 3
"""Version of the operator set ai.onnx.ml."""
DETECTOR = "detector_"
"""Prefix of the names that the detector's outputs get inside the graph."""
RESCALED = ("score", "nats", "kl")
"""Outputs of the detector that get another unit."""
LEAST_GAP = 1e-6
"""Distance from the median, in units of the curve's width, below which the slope is that at the
median."""


@dataclass(frozen=True, eq=False)
class Trees:
    """Boosted trees as nodes in one table: the sum of a leaf of each tree is the margin (N,).

    A row goes to the ``left`` node if its value is at most the ``threshold``, or is missing and
    ``missing_left`` says so.
    """

    tree: NDArray[np.int64]
    node: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.int64]
    leaf: NDArray[np.bool_]
    value: NDArray[np.float32]
    baseline: float


@dataclass(frozen=True, eq=False)
class KnownHead:
    """The trees, the curves of both scores, and the raw columns by the gain of the trees."""

    trees: Trees
    detector_curve: SurpriseCurve
    trees_curve: SurpriseCurve
    columns: Sequence[int] = ()
    """Indices of the raw columns that the trees use, the most useful first."""


def add_known_head(graph: bytes, head: KnownHead) -> bytes:
    """Return a scoring graph with the head; the weights file stays as it is.

    Args:
        graph: serialised scoring graph of a tabular model without a head.
        head: the trees and the curves.
    """
    proto = onnx.load_from_string(graph)
    _rename(proto.graph, {name: DETECTOR + name for name in RESCALED})
    builder = _HeadBuilder(proto, head)
    builder.outputs()
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    proto.metadata_props.add(key=KNOWN_COLUMNS, value=" ".join(map(str, head.columns)))
    return bytes(proto.SerializeToString(deterministic=True))


def tree_margins(trees: Trees, width: int) -> onnx.ModelProto:
    """Return a graph of the trees alone, from x (N, width) to margin (N,) float64."""
    g = GraphBuilder()
    g.named("margin", "Identity", _margin(g, trees))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])]
    outputs = [helper.make_tensor_value_info("margin", TensorProto.DOUBLE, ["N"])]
    graph = helper.make_graph(g.nodes, "trees", inputs, outputs, list(g.constants.values()))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values inside a graph and its branches."""
    for node in graph.node:
        for edges in (node.input, node.output):
            edges[:] = [names.get(edge, edge) for edge in edges]
        for branch in branches(node):
            _rename(branch, names)


def _margin(g: GraphBuilder, trees: Trees) -> str:
    """Compute the margin (N,) in float64."""
    margin = g("TreeEnsembleRegressor", "x", domain="ai.onnx.ml", **dict(_attributes(trees)))
    return g("Squeeze", g.cast(margin, TensorProto.DOUBLE), g.axes(-1))


def _attributes(trees: Trees) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of TreeEnsembleRegressor."""
    modes = np.where(trees.leaf, "LEAF", "BRANCH_LEQ")
    leaves = trees.leaf
    yield from {
        "nodes_treeids": trees.tree.tolist(),
        "nodes_nodeids": trees.node.tolist(),
        "nodes_featureids": trees.feature.tolist(),
        "nodes_modes": modes.tolist(),
        "nodes_values": trees.threshold.tolist(),
        "nodes_truenodeids": trees.left.tolist(),
        "nodes_falsenodeids": trees.right.tolist(),
        "nodes_missing_value_tracks_true": trees.missing_left.tolist(),
        "target_treeids": trees.tree[leaves].tolist(),
        "target_nodeids": trees.node[leaves].tolist(),
        "target_ids": [0] * int(leaves.sum()),
        "target_weights": trees.value[leaves].tolist(),
        "base_values": [trees.baseline],
        "n_targets": 1,
        "post_transform": "NONE",
    }.items()


class _HeadBuilder:
    """The nodes that turn the detector's outputs and the trees' margin into surprises."""

    def __init__(self, proto: onnx.ModelProto, head: KnownHead) -> None:
        self.graph, self.head = proto.graph, head
        self.g = GraphBuilder.of_graph(proto.graph)

    def outputs(self) -> None:
        """Build all nodes and the outputs, and put them into the graph."""
        g = self.g
        detector, rate, parts = (DETECTOR + name for name in ("score", "kl", "nats"))
        surprise = self.curve(detector, self.head.detector_curve)
        known = self.curve(_margin(g, self.head.trees), self.head.trees_curve)
        factor = self.factor(detector, surprise)
        kind = next(o for o in self.graph.output if o.name == "nats").type.tensor_type
        shares = g("Mul", parts, g("Unsqueeze", g.cast(factor, kind.elem_type), g.axes(-1)))
        count = kind.shape.dim[1].dim_value
        total = g.stable_sum(g.cast(shares, TensorProto.DOUBLE), count)
        g.named("nats", "Identity", shares)
        g.named("kl", "Sub", surprise, g("Squeeze", total, g.axes(-1)))
        g.named("score", "Add", surprise, known)
        for name, value in zip(KNOWN_OUTPUTS, (known, detector, rate), strict=True):
            g.named(name, "Identity", value)
        self._replace_content()

    def _replace_content(self) -> None:
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(self.g.nodes)
        self.graph.initializer.extend(self.g.constants.values())
        self.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["N"]) for name in KNOWN_OUTPUTS
        )

    def double(self, value: Any) -> str:
        """Add a float64 constant."""
        return self.g.constant(np.asarray(value, np.float64))

    def curve(self, x: str, curve: SurpriseCurve) -> str:
        """Compute the surprises (N,) of scores (N,); see `SurpriseCurve`."""
        g, first, last = self.g, self.double(curve.scores[0]), self.double(curve.scores[-1])
        under = g("Max", g("Sub", first, x), self.double(0.0))
        over = g("Max", g("Sub", x, last), self.double(0.0))
        falling = g("Add", g("Mul", under, self.double(curve.decay)), self.double(1.0))
        below = g("Div", self.double(curve.surprises[0]), falling)
        grown = g("Add", g("Mul", over, self.double(curve.shape / curve.scale)), self.double(1.0))
        tail = g("Mul", g("Log", grown), self.double(1 / curve.shape))
        above = g("Add", tail, self.double(curve.surprises[-1]))
        beyond = g("Where", g("Less", x, last), self.between(x, curve), above)
        return g("Where", g("Less", x, first), below, beyond)

    def between(self, x: str, curve: SurpriseCurve) -> str:
        """Interpolate between the knots, and never beyond the next one."""
        g, row = self.g, self.g("Unsqueeze", x, self.g.axes(-1))
        reached = g("Not", g("Less", row, self.double(curve.scores)))
        count = g("ReduceSum", g.cast(reached, TensorProto.INT64), g.axes(-1), keepdims=0)
        start, base, slope, most = (
            g("Gather", self.double(padded), count, axis=0) for padded in _segments(curve)
        )
        inside = g("Add", base, g("Mul", g("Sub", x, start), slope))
        return g("Min", inside, most)

    def factor(self, detector: str, surprise: str) -> str:
        """Compute the factor (N,) from nats to surprise."""
        g, curve = self.g, self.head.detector_curve
        middle = float(np.interp(np.log(2), curve.surprises, curve.scores))
        width = float(curve.scores[-1] - curve.scores[0]) or curve.scale
        near = LEAST_GAP * width
        slope = float(np.diff(curve([middle, middle + near]))[0]) / near
        gap = g("Sub", detector, self.double(middle))
        rise = g("Sub", surprise, self.double(float(curve(middle))))
        close = g("Less", g("Abs", gap), self.double(near))
        safe = g("Where", close, self.double(1.0), gap)
        return g("Where", close, self.double(slope), g("Div", rise, safe))


def _segments(curve: SurpriseCurve) -> Iterator[NDArray[np.float64]]:
    """Yield start, surprise, slope and largest surprise of each segment, by the knots reached."""
    x, y = curve.scores, curve.surprises
    yield np.append(x[:1], x)
    yield np.append(y[:1], y)
    yield np.concatenate([[0.0], curve.slopes, [0.0]])
    yield np.array([y[0], *(b for _, b in pairwise(y)), y[-1]])
