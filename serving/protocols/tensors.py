"""Convert tensors of the Open Inference Protocol into columns of values, and back.

The data of a tensor are in the JSON, or in bytes that follow the JSON (the binary tensor data
extension). Numbers are little-endian, row by row. Each element of ``BYTES`` is preceded by its
length, an integer of four bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.client.types import BadRecord
from serving.models.store import ServedModel
from serving.problems import INVALID_REQUEST, MALFORMED, ProblemError
from serving.scoring import requests

BINARY_SIZE = "binary_data_size"
"""Parameter with the size of a binary tensor, in bytes."""
BOOL, BYTES, FP64 = "BOOL", "BYTES", "FP64"
LAYOUTS = {
    BOOL: "?", "FP16": "<f2", "FP32": "<f4", FP64: "<f8",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
"""numpy dtype of each numeric datatype."""
CONTENT_TYPE, BASE64, AS_JSON = "content_type", "base64", "pd_json"
"""Name and values of MLServer's parameter for the encoding of ``BYTES``."""
LENGTH = 4
"""Size of the length that precedes an element of ``BYTES``, in bytes."""

Parameters = dict[str, Any] | None
_anything = msgspec.json.Decoder()


class Tensor(msgspec.Struct, frozen=True):
    """One column or all columns; ``data`` is flat or nested, with null for missing values."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = None
    data: list[Any] | None = None

    @property
    def count(self) -> int:
        """Number of elements; 0 for an impossible shape."""
        return int(np.prod([max(side, 0) for side in self.shape], dtype=object))

    def parameter(self, name: str) -> Any:
        """Return the value of a parameter; None if it is absent."""
        return (self.parameters or {}).get(name)


class Tail:
    """The bytes that follow the JSON, which are read tensor by tensor."""

    def __init__(self, content: bytes | None) -> None:
        self._content, self._start = content or b"", 0
        self.exists = content is not None

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        end = self._start + size
        if not 0 <= self._start <= end <= len(self._content):
            raise ProblemError(MALFORMED, "the body ends before its last tensor")
        content, self._start = self._content[self._start : end], end
        return content

    def check(self) -> None:
        """Refuse bytes that belong to no tensor."""
        if more := len(self._content) - self._start:
            raise ProblemError(MALFORMED, f"{more} bytes after the last tensor; check the sizes")


def to_bytes(values: NDArray[Any], datatype: str) -> bytes:
    """Encode values (N,) as a binary tensor."""
    if datatype != BYTES:
        return np.asarray(values, LAYOUTS[datatype]).tobytes()
    texts = [text.encode() for text in values]
    return b"".join(len(text).to_bytes(LENGTH, "little") + text for text in texts)


def columns_of(model: ServedModel, tensors: Sequence[Tensor], tail: Tail) -> dict[str, list[Any]]:
    """Return the values of each column (N,), by name."""
    _check_shapes(model, tensors)
    columns = [_values(model, tensor, tail) for tensor in tensors]
    tail.check()
    if is_matrix(model, tensors):
        names = model.detector.scorer.schema.names
        return {name: columns[0][i :: len(names)] for i, name in enumerate(names)}
    return {tensor.name: column for tensor, column in zip(tensors, columns, strict=True)}


def is_matrix(model: ServedModel, tensors: Sequence[Tensor]) -> bool:
    """Return whether all columns of a table are sent as one tensor [N, F]."""
    schema, first = model.schema, tensors[0]
    return (
        not model.reads_files
        and len(tensors) == 1
        and len(first.shape) == 2
        and first.shape[1] == len(schema.names)
        and first.name not in schema.names
    )


def _check_shapes(model: ServedModel, tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise ProblemError(INVALID_REQUEST, "'inputs' is empty; send a tensor for each column")
    if is_matrix(model, tensors):
        return _check_matrix(model)
    rows = {tuple(tensor.shape[:1]) for tensor in tensors}
    for tensor in tensors:
        if len(tensor.shape) not in {1, 2} or tensor.shape[1:] not in ([], [1]):
            raise _unfit(tensor, f"expected the shape [N] or [N, 1], got {tensor.shape}")
    if len(rows) > 1:
        raise ProblemError(INVALID_REQUEST, "inputs have different numbers of rows; send one each")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ProblemError(INVALID_REQUEST, "two inputs have one name; send each column once")
    return None


def _check_matrix(model: ServedModel) -> None:
    """Refuse one tensor for all columns if some of them are not numbers."""
    other = [column.name for column in model.schema.columns if column.spec.storage != "number"]
    if other:
        detail = f"column '{other[0]}' is not numeric; send a tensor for each column"
        raise ProblemError(INVALID_REQUEST, detail)


def _values(model: ServedModel, tensor: Tensor, tail: Tail) -> list[Any]:
    """Return the values of a tensor, row by row; None where one is missing."""
    if tensor.datatype != BYTES and tensor.datatype not in LAYOUTS:
        raise _unfit(tensor, f"datatype: expected {', '.join([*LAYOUTS, BYTES])}")
    size = tensor.parameter(BINARY_SIZE)
    if size is None:
        return _from_json(model, tensor)
    if not tail.exists:
        raise _unfit(tensor, "its bytes need the header Inference-Header-Content-Length")
    if type(size) is not int or size < 0:
        raise _unfit(tensor, f"'{BINARY_SIZE}': expected a number of bytes")
    content = tail.read(size)
    if tensor.datatype == BYTES:
        return _decode_texts(model, tensor, content)
    return _decode_numbers(tensor, content)


def _decode_numbers(tensor: Tensor, content: bytes) -> list[Any]:
    layout = np.dtype(LAYOUTS[tensor.datatype])
    if len(content) != tensor.count * layout.itemsize:
        raise _miscounted(tensor, f"{len(content)} bytes")
    return _without_nan(np.frombuffer(content, layout))


def _without_nan(values: NDArray[Any]) -> list[Any]:
    cells: list[Any] = values.tolist()
    if values.dtype.kind == "f":
        for row in np.flatnonzero(np.isnan(values)):
            cells[row] = None
    return cells


def _decode_texts(model: ServedModel, tensor: Tensor, content: bytes) -> list[Any]:
    elements = list(_split_elements(tensor, content))
    if len(elements) != tensor.count:
        raise _miscounted(tensor, f"{len(elements)} elements")
    # without null, an empty text is how clients send a missing value
    return [None if value == "" else value for value in _decode(model, tensor, elements)]


def _split_elements(tensor: Tensor, content: bytes) -> Iterable[bytes]:
    start = 0
    while start < len(content):
        first = start + LENGTH
        start = first + int.from_bytes(content[start:first], "little")
        if start > len(content):
            raise _unfit(tensor, "an element is longer than what is left of the tensor")
        yield content[first:start]


def _from_json(model: ServedModel, tensor: Tensor) -> list[Any]:
    if tensor.data is None:
        raise _unfit(tensor, "it has no 'data'")
    cells = _flatten(tensor.data, len(tensor.shape))
    if len(cells) != tensor.count:
        raise _miscounted(tensor, f"{len(cells)} values")
    _check_kinds(tensor, cells)
    return _decode(model, tensor, cells) if tensor.datatype == BYTES else cells


def _flatten(data: list[Any], depth: int) -> list[Any]:
    """Flatten lists that are nested at most ``depth`` levels deep."""
    for _ in range(depth - 1):
        if not any(isinstance(part, list) for part in data):
            break
        data = [cell for part in data for cell in (part if isinstance(part, list) else [part])]
    return data


def _check_kinds(tensor: Tensor, cells: Sequence[Any]) -> None:
    """Refuse values whose type does not match the tensor's datatype."""
    kinds = KINDS.get(tensor.datatype.rstrip("0123456789"), {int})
    if set(map(type, cells)) <= kinds | {type(None)}:
        return
    raise requests.unfit_records(
        [
            BadRecord(row, tensor.name, f"expected {tensor.datatype}, got {type(cell).__name__}")
            for row, cell in enumerate(cells)
            if cell is not None and type(cell) not in kinds
        ]
    )


KINDS: dict[str, set[type]] = {BOOL: {bool}, "FP": {int, float}, BYTES: {str}}
"""Allowed types of JSON values by datatype, without its size; integers for all others."""


def _decode(model: ServedModel, tensor: Tensor, cells: Sequence[str | bytes | None]) -> list[Any]:
    """Decode elements: text, the content of files, or any JSON."""
    content_type, is_file = tensor.parameter(CONTENT_TYPE), model.reads_files
    values: list[Any] = []
    for row, cell in enumerate(cells):
        try:
            values.append(None if cell is None else _decode_element(cell, content_type, is_file))
        except ValueError as error:
            raise requests.unfit_records([BadRecord(row, tensor.name, str(error))]) from None
    return values


def _decode_element(cell: str | bytes, content_type: Any, is_file: bool) -> Any:
    """Decode one element; files in JSON are always base64."""
    if content_type == BASE64 or (is_file and isinstance(cell, str)):
        cell = from_base64(cell)
    if is_file:
        return cell
    text = cell if isinstance(cell, str) else cell.decode()
    return requests.parse(_anything, text.encode()) if content_type == AS_JSON else text


def from_base64(cell: str | bytes) -> bytes:
    """Decode base64 on one or more lines.

    Raises:
        ValueError: the text is not base64.
    """
    joined = b"".join(cell.split()) if isinstance(cell, bytes) else "".join(cell.split())
    try:
        return base64.b64decode(joined, validate=True)
    except ValueError:
        raise ValueError("expected base64") from None


def _unfit(tensor: Tensor, reason: str) -> ProblemError:
    return ProblemError(INVALID_REQUEST, f"input '{tensor.name[:100]}': {reason}")


def _miscounted(tensor: Tensor, content: str) -> ProblemError:
    return _unfit(tensor, f"{content} do not make the shape {tensor.shape}")
