"""Tensors of a graph that are stored in the weights file."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from safetensors.numpy import save

from anomaly_vae.export.external_weights import WEIGHTS_FILE, external_tensors, read_header

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def test_a_tensor_is_where_the_graph_looks_for_it() -> None:
    weights = save(TENSORS)
    for tensor, (name, value) in zip(
        external_tensors(weights, {"b", "a"}), TENSORS.items(), strict=True
    ):
        place = {entry.key: entry.value for entry in tensor.external_data}
        start, length = int(place["offset"]), int(place["length"])
        assert (tensor.name, place["location"]) == (name, WEIGHTS_FILE)
        assert (tensor.data_type, tuple(tensor.dims)) == (TensorProto.FLOAT, value.shape)
        assert weights[start : start + length] == value.tobytes()


def test_tensors_begin_after_the_header() -> None:
    header, base = read_header(save(TENSORS))
    assert header.keys() == TENSORS.keys()
    assert base + header["b"]["data_offsets"][1] == len(save(TENSORS))
