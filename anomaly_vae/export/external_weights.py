"""Refer to the weights file from a graph, which then holds none of the weights itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import TensorProto

WEIGHTS_FILE = "weights.safetensors"
"""Name of the file with the weights."""


def external_tensors(weights: bytes, used: Iterable[str]) -> list[onnx.TensorProto]:
    """Refer to tensors of a safetensors file: an 8-byte header length, the header, raw tensors."""
    header, base = read_header(weights)
    return [external_tensor(name, TensorProto.FLOAT, header[name], base) for name in sorted(used)]


def read_header(weights: bytes) -> tuple[Mapping[str, Any], int]:
    """Return the header of a safetensors file, and the offset at which its tensors begin."""
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), 8 + length


def external_tensor(name: str, kind: int, entry: Mapping[str, Any], base: int) -> onnx.TensorProto:
    """Return a tensor of a graph that is stored in the weights file."""
    start, end = entry["data_offsets"]
    tensor = onnx.TensorProto(name=name, data_type=kind, dims=entry["shape"])
    tensor.data_location = TensorProto.EXTERNAL
    where = {"location": WEIGHTS_FILE, "offset": str(base + start), "length": str(end - start)}
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
