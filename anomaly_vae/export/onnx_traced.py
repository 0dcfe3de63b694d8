"""Trace the scoring graph of an image model with torch, and compare the graph with torch.

Inputs, outputs and weights of the graph are those of `onnx_tabular`. Tracing takes seconds,
little compared with the minutes of an image fit, and it covers every network. A process that fits
the same network repeatedly traces it once. Tables are fitted in seconds, so that `onnx_tabular`
builds their graph directly.
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

from anomaly_vae.config.model import ImageModelConfig
from anomaly_vae.config.scoring import ImageScoreConfig
from anomaly_vae.export.external_weights import external_tensor, read_header
from anomaly_vae.export.graph_check import disagreement
from anomaly_vae.export.image_scores import CHUNK_IMAGES, ImageScore
from anomaly_vae.export.onnx_tabular import IR_VERSION, OPSET
from anomaly_vae.export.patch_scores import PatchScore
from anomaly_vae.export.tiled_scores import TiledScore
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.models.vae import VAE

OUTPUTS = ("score", "nats", "kl", "expected", "latent")
"""Names of the graph's outputs."""
MAX_GRAPHS = 32
"""Maximum number of graphs that a process keeps."""
MODEL_PREFIX = "model."
"""Prefix of the model's tensors inside `ImageScore`; the weights file omits it."""

_graphs: dict[tuple[str, ...], bytes] = {}


def image_score(
    model: VAE, encoding: ImageEncoding, config: ImageScoreConfig
) -> ImageScore | PatchScore:
    """Return the score, without its statistics, of a model of images, tiles or patches."""
    if model.patches is not None:
        return PatchScore(model, encoding.layout, config)
    if encoding.tiling is None:
        return ImageScore(model, encoding.layout, config, encoding.masked)
    return TiledScore(model, encoding.model_layout, config, encoding.tiling, encoding.masked)


def image_tensors(score: ImageScore | PatchScore) -> dict[str, NDArray[Any]]:
    """Return the content of ``weights.safetensors``: parameters, frozen draws and statistics."""
    tensors = score.state_dict().items()
    return {name.removeprefix(MODEL_PREFIX): value.contiguous().numpy() for name, value in tensors}


def load_image_tensors(score: ImageScore | PatchScore, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the content of ``weights.safetensors`` into a score; the inverse of `image_tensors`."""
    for name, value in score.state_dict().items():
        value.copy_(tensors[name.removeprefix(MODEL_PREFIX)])


def shared_graph(
    score: ImageScore | PatchScore,
    encoding: ImageEncoding,
    weights: bytes,
    model: ImageModelConfig,
) -> bytes:
    """Return the graph of `trace_graph`, traced once for all fits of a configuration.

    A graph refers to the weights and holds none, so that it depends only on the configuration of
    the model and of the score, and on the shapes. `check_traced` compares it with each model.

    Args:
        score: the score with its statistics.
        encoding: the shape of the images, and their tiles.
        weights: content of the safetensors file that the graph will read.
        model: configuration of the model in ``score``.
    """
    shapes = (repr(encoding), repr(read_header(weights)))
    key = (model.model_dump_json(), score.config.model_dump_json(), *shapes)
    if key not in _graphs:
        graph = trace_graph(score, weights)
        while len(_graphs) >= MAX_GRAPHS:
            del _graphs[next(iter(_graphs))]
        _graphs[key] = graph
    return _graphs[key]


def trace_graph(score: ImageScore | PatchScore, weights: bytes) -> bytes:
    """Return the serialised scoring graph of a trained image model.

    Args:
        score: the score with its statistics.
        weights: content of the safetensors file that the graph will read.
    """
    traced = _trace(score.eval())
    for part in (*traced.graph.node, *traced.graph.output):  # remove notes about the source code
        del part.metadata_props[:]
        part.doc_string = ""
    header, base = read_header(weights)
    tensors = [_external(tensor, header, base) for tensor in traced.graph.initializer]
    columns = score.n_inputs
    rows = "N" if score.any_batch else 1
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, columns])]
    outputs = list(traced.graph.output)
    proto = helper.make_model(
        helper.make_graph(list(traced.graph.node), "scoring", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return bytes(proto.SerializeToString(deterministic=True))


def check_traced(
    score: ImageScore | PatchScore, x: NDArray[np.float32], scores: NDArray[np.float64]
) -> float:
    """Compare the scores of a graph with torch.

    The difference is relative to the sum of the absolute parts, since standardised parts have both
    signs and may nearly cancel.

    Args:
        score: the score in torch.
        x: (N, F), encoded images.
        scores: (N,), scores of the graph.

    Returns:
        The largest relative disagreement.

    Raises:
        ExportError: it is above `graph_check.TOLERANCE`.
    """
    with torch.no_grad():
        parts = [score(part)[:3] for part in torch.from_numpy(x).split(CHUNK_IMAGES)]
    truth, nats, kl = (torch.cat(part).double() for part in zip(*parts, strict=True))
    size = nats.abs().sum(-1) + kl.abs()
    return disagreement(truth.numpy(), scores, size.numpy())


def _trace(score: ImageScore | PatchScore) -> onnx.ModelProto:
    with warnings.catch_warnings(), _without_warnings():
        warnings.simplefilter("ignore")  # the exporter calls deprecated functions of torch
        program = torch.onnx.export(
            score,
            (torch.zeros(2 if score.any_batch else 1, score.n_inputs),),
            dynamo=True,
            optimize=False,  # keep parameters as they are in the weights file
            verbose=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("N")},) if score.any_batch else None,
        )
    assert program is not None, "without a file, the exporter returns the program"
    return program.model_proto


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the exporter's messages about libraries that are not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _external(tensor: onnx.TensorProto, header: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """Refer to a tensor of the weights file; keep others, such as kernels, in the graph."""
    name = tensor.name.removeprefix(MODEL_PREFIX)
    return (
        external_tensor(tensor.name, tensor.data_type, header[name], base)
        if name in header
        else tensor
    )
