"""The graph builder: unique names, shared constants, and branches of which one is computed."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from anomaly_vae.export.graph_builder import GraphBuilder

KINDS = [TensorProto.DOUBLE]


def run(g: GraphBuilder, value: str, **inputs: object) -> np.ndarray:
    """Compute a value of a graph with the inputs ``x`` (N,) and ``which`` ()."""
    g.named("result", "Identity", value)
    kinds = {"x": (TensorProto.DOUBLE, ["N"]), "which": (TensorProto.BOOL, [])}
    given = [helper.make_tensor_value_info(name, *kinds[name]) for name in kinds]
    result = [helper.make_tensor_value_info("result", TensorProto.DOUBLE, None)]
    graph = helper.make_graph(g.nodes, "g", given, result, list(g.constants.values()))
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["result"], inputs)[0])


@pytest.mark.parametrize("which", [True, False])
def test_one_of_two_branches_is_the_value(which: bool) -> None:
    """Branches use values from outside, also as they are, and may be nested."""
    g = GraphBuilder()
    doubled = g("Mul", "x", g.double(2.0))

    def inner() -> list[str]:
        return g.choose("which", lambda: [doubled], lambda: ["x"], KINDS)

    (chosen,) = g.choose("which", lambda: [g("Neg", *inner())], lambda: ["x"], KINDS)
    value = g("Add", chosen, g.double(1.0))
    x = np.array([1.0, 3.0])
    truth = 1 - 2 * x if which else 1 + x
    np.testing.assert_array_equal(run(g, value, x=x, which=np.array(which)), truth)


def test_a_branch_may_have_several_values() -> None:
    g = GraphBuilder()
    kinds = [TensorProto.DOUBLE, TensorProto.FLOAT]
    sign, size = g.choose(
        "which", lambda: [g("Sign", "x"), g.cast("x")], lambda: ["x", g.cast(g("Abs", "x"))], kinds
    )
    value = g("Mul", sign, g.as_double(size))
    x = np.array([-2.0, 3.0])
    for which, truth in ((True, np.abs(x)), (False, x * np.abs(x))):
        np.testing.assert_array_equal(run(g, value, x=x, which=np.array(which)), truth)
        g.nodes.pop()  # the node that names the result


def test_the_values_of_branches_may_have_given_names() -> None:
    g = GraphBuilder()
    names = g.choose("which", lambda: [g("Neg", "x")], lambda: ["x"], KINDS, ["chosen"])
    assert names == ["chosen"]
    x = np.array([1.0, 3.0])
    np.testing.assert_array_equal(run(g, "chosen", x=x, which=np.array(True)), -x)


def test_the_total_of_exponentials_is_found_on_a_logarithmic_scale() -> None:
    g = GraphBuilder()
    total = g.as_double(g.log_total(g("Unsqueeze", g.cast("x"), g.axes(0))))
    x = np.array([-900.0, -901.0, -1e9])
    found = run(g, total, x=x, which=np.array(True))
    np.testing.assert_allclose(found, np.logaddexp(*x[:2])[None, None], rtol=1e-6)


def test_no_two_values_have_one_name() -> None:
    g = GraphBuilder()
    for _ in range(2):
        g.choose("which", lambda: [g("Neg", "x")], lambda: [g("Abs", g("Neg", "x"))], KINDS)
    g("Neg", "x")
    inner = [a.g for node in g.nodes for a in node.attribute]
    nodes = [*g.nodes, *(node for graph in inner for node in graph.node)]
    names = [name for node in nodes for name in node.output]
    assert len(names) == len(set(names)) == 9


def test_a_graph_with_branches_is_continued_with_new_names() -> None:
    """Nodes in branches count, too: a head comes to the graph of a detector with branches."""
    g = GraphBuilder()
    (chosen,) = g.choose("which", lambda: [g("Neg", g("Abs", "x"))], lambda: [g("Neg", "x")], KINDS)
    known = {g("Neg", chosen)}
    graph = helper.make_graph(g.nodes, "g", [], [], list(g.constants.values()))
    further = GraphBuilder.of_graph(graph)
    known |= {further("Neg", chosen) for _ in range(10)}
    assert len(known) == 11
    value = further("Neg", chosen)
    x = np.array([-1.0, 3.0])
    np.testing.assert_array_equal(run(further, value, x=x, which=np.array(True)), np.abs(x))


def test_equal_constants_are_one() -> None:
    g = GraphBuilder()
    assert g.double(2.0) == g.double(2.0) != g.constant(np.float32(2.0))
    assert len(g.constants) == 2


def test_a_sum_is_in_float64() -> None:
    g = GraphBuilder()
    value = g.sum_double(g("Unsqueeze", "x", g.axes(0)), 2)
    assert run(g, value, x=np.array([1.0, 1e-12]), which=np.array(True)) == 1.0 + 1e-12
