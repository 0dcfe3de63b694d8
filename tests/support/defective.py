"""Make a scoring graph that fails on some records."""

from __future__ import annotations

import pytest

TOO_FAR = 1000.0
"""Value, in standard deviations, above which a record fails; no simulated row reaches it."""


def defective(graph: bytes) -> bytes:
    """Return a graph whose execution fails for rows with a value above `TOO_FAR`.

    Such rows look up index 1 in a table of one entry.
    """
    onnx = pytest.importorskip("onnx", reason="needs the extra 'train'")
    make, kinds = onnx.helper.make_node, onnx.TensorProto
    model = onnx.load_from_string(graph)
    (last,) = (node for node in model.graph.node if "score" in node.output)
    last.output[0] = "sound"
    for name, kind, shape, value in (
        ("most", kinds.FLOAT, [], TOO_FAR), ("columns", kinds.INT64, [1], 1),
        ("table", kinds.DOUBLE, [1], 0.0),
    ):  # fmt: skip
        model.graph.initializer.append(onnx.helper.make_tensor(name, kind, shape, [value]))
    model.graph.node.extend([
        make("ReduceMax", ["x", "columns"], ["largest"], keepdims=0),
        make("Greater", ["largest", "most"], ["is_far"]),
        make("Cast", ["is_far"], ["place"], to=kinds.INT64),
        make("Gather", ["table", "place"], ["found"]),
        make("Add", ["sound", "found"], ["score"]),
    ])  # fmt: skip
    return bytes(model.SerializeToString())
