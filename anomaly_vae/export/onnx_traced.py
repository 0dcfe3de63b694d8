"""Trained image model → the scoring graph, traced by torch and checked against it.

The graph's inputs, outputs and weights are those of `export`. Networks of images are many, and
minutes are spent on fitting them, so that a second or two of tracing is nothing; tables are
fitted in seconds, and theirs is built directly.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from anomaly_vae.export.image_scores import CHUNK, ImageScore
from anomaly_vae.export.onnx_tabular import IR_VERSION, OPSET, disagreement, header_of, reference

OUTPUTS = ("score", "nats", "kl", "expected", "latent")
MODEL = "model."
"""What the score calls the tensors of the model inside it; the weights file does not."""


def image_tensors(score: ImageScore) -> dict[str, NDArray[Any]]:
    """Everything ``weights.safetensors`` holds: parameters, frozen draws, statistics."""
    tensors = score.state_dict().items()
    return {name.removeprefix(MODEL): value.contiguous().numpy() for name, value in tensors}


def load_image_tensors(score: ImageScore, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse: put everything that the file holds in its place."""
    for name, value in score.state_dict().items():
        value.copy_(tensors[name.removeprefix(MODEL)])


def trace_graph(score: ImageScore, weights: bytes) -> bytes:
    """The scoring graph; ``weights`` is the safetensors file it will read."""
    traced = _trace(score.eval())
    for part in (*traced.graph.node, *traced.graph.output):  # of the source, nobody's business
        del part.metadata_props[:]
        part.doc_string = ""
    header, base = header_of(weights)
    tensors = [_stored(tensor, header, base) for tensor in traced.graph.initializer]
    columns = score.layout.n_columns
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", columns])]
    outputs = list(traced.graph.output)
    proto = helper.make_model(
        helper.make_graph(list(traced.graph.node), "scoring", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return bytes(proto.SerializeToString(deterministic=True))


def check_traced(score: ImageScore, x: NDArray[np.float32], scores: NDArray[np.float64]) -> float:
    """Largest disagreement of the graph's ``scores`` (N,) with torch on ``x`` (N, F).

    It is relative to the sum of the parts' sizes: standardised ones are of either sign, and what
    is left of thousands of them may be next to nothing.

    Raises:
        ExportError: it is above `export.TOLERANCE`.
    """
    with torch.no_grad():
        parts = [score(part)[:3] for part in torch.from_numpy(x).split(CHUNK)]
    truth, nats, kl = (torch.cat(part).double() for part in zip(*parts, strict=True))
    size = nats.abs().sum(-1) + kl.abs()
    return disagreement(truth.numpy(), scores, size.numpy())


def _trace(score: ImageScore) -> onnx.ModelProto:
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # torch deprecates what its own exporter calls
        program = torch.onnx.export(
            score,
            (torch.zeros(2, score.layout.n_columns),),
            dynamo=True,
            optimize=False,  # parameters stay what they are in the weights file
            verbose=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None, "without a file, the exporter returns the program"
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's lines about libraries that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _stored(tensor: onnx.TensorProto, header: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """What lies in the weights file is read from there; kernels and shapes stay inside."""
    name = tensor.name.removeprefix(MODEL)
    return (
        reference(tensor.name, tensor.data_type, header[name], base) if name in header else tensor
    )
