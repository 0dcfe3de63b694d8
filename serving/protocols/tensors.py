"""Tensors of the Open Inference Protocol ↔ columns of values.

A tensor is JSON, or so many of the bytes behind it (the binary tensor data extension): numbers in
little-endian order, row by row; of ``BYTES``, each element behind its length, in four bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.schema import TabularSchema
from serving.models.store import IMAGE, ServedModel
from serving.problems import INVALID_REQUEST, MALFORMED, BadRecord, ProblemError
from serving.scoring import requests

BINARY_SIZE = "binary_data_size"
BOOL, BYTES, FP64 = "BOOL", "BYTES", "FP64"
LAYOUTS = {
    BOOL: "?", "FP16": "<f2", "FP32": "<f4", FP64: "<f8",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
"""How the bytes of a number are laid out."""
CONTENT_TYPE, BASE64, AS_JSON = "content_type", "base64", "pd_json"
"""What MLServer's codecs say of ``BYTES``: how it was written, and what it is."""
LENGTH = 4
"""Bytes that say how long an element of ``BYTES`` is."""

Parameters = dict[str, Any] | None
_anything = msgspec.json.Decoder()


class Tensor(msgspec.Struct, frozen=True):
    """A column, or all of them; ``data`` is flat or nested, and null where a value is missing."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = None
    data: list[Any] | None = None

    @property
    def count(self) -> int:
        """The number of its elements; none where the shape is impossible."""
        return int(np.prod([max(side, 0) for side in self.shape], dtype=object))

    def says(self, parameter: str) -> Any:
        """The value of a parameter, if there is one."""
        return (self.parameters or {}).get(parameter)


class Tail:
    """The bytes behind the JSON, taken tensor by tensor; None where there are none."""

    def __init__(self, content: bytes | None) -> None:
        self._content, self._start = content or b"", 0
        self.there = content is not None

    def take(self, size: int) -> bytes:
        """The next so many."""
        end = self._start + size
        if not 0 <= self._start <= end <= len(self._content):
            raise ProblemError(MALFORMED, "the body ends before its last tensor")
        taken, self._start = self._content[self._start : end], end
        return taken

    def check(self) -> None:
        """Refuse bytes of no tensor."""
        if more := len(self._content) - self._start:
            raise ProblemError(MALFORMED, f"{more} bytes behind the last tensor; are sizes right?")


def to_bytes(values: NDArray[Any], datatype: str) -> bytes:
    """Values (N,) as they follow the JSON."""
    if datatype != BYTES:
        return np.asarray(values, LAYOUTS[datatype]).tobytes()
    texts = [text.encode() for text in values]
    return b"".join(len(text).to_bytes(LENGTH, "little") + text for text in texts)


def columns_of(served: ServedModel, tensors: Sequence[Tensor], tail: Tail) -> dict[str, list[Any]]:
    """The values of each column."""
    _check_shapes(served, tensors)
    cells = [_cells(served, tensor, tail) for tensor in tensors]
    tail.check()
    if is_matrix(served, tensors):
        names = served.detector.scorer.schema.names
        return {name: cells[0][i :: len(names)] for i, name in enumerate(names)}
    return {tensor.name: column for tensor, column in zip(tensors, cells, strict=True)}


def is_matrix(served: ServedModel, tensors: Sequence[Tensor]) -> bool:
    """Whether all columns come as one tensor [N, F]."""
    schema, first = served.detector.scorer.schema, tensors[0]
    return (
        isinstance(schema, TabularSchema)
        and len(tensors) == 1
        and len(first.shape) == 2
        and first.shape[1] == len(schema.names)
        and first.name not in schema.names
    )


def _check_shapes(served: ServedModel, tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise ProblemError(INVALID_REQUEST, "'inputs' is empty; send a tensor for each column")
    if is_matrix(served, tensors):
        return _check_matrix(served)
    rows = {tuple(tensor.shape[:1]) for tensor in tensors}
    for tensor in tensors:
        if len(tensor.shape) not in {1, 2} or tensor.shape[1:] not in ([], [1]):
            raise _unfit(tensor, f"expected the shape [N] or [N, 1], got {tensor.shape}")
    if len(rows) > 1:
        raise ProblemError(INVALID_REQUEST, "inputs have different numbers of rows; send one each")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ProblemError(INVALID_REQUEST, "two inputs have one name; send each column once")
    return None


def _check_matrix(served: ServedModel) -> None:
    """Refuse one tensor for all columns where some are no numbers."""
    schema = served.detector.scorer.schema
    other = [column.name for column in schema.columns if column.spec.storage != "number"]
    if other:
        detail = f"column '{other[0]}' is no number; send a tensor for each column"
        raise ProblemError(INVALID_REQUEST, detail)


def _cells(served: ServedModel, tensor: Tensor, tail: Tail) -> list[Any]:
    """The values of a tensor, row by row; None where one is missing."""
    if tensor.datatype != BYTES and tensor.datatype not in LAYOUTS:
        raise _unfit(tensor, f"datatype: expected {', '.join([*LAYOUTS, BYTES])}")
    size = tensor.says(BINARY_SIZE)
    if size is None:
        return _from_json(served, tensor)
    if not tail.there:
        raise _unfit(tensor, "its bytes need the header Inference-Header-Content-Length")
    if type(size) is not int or size < 0:
        raise _unfit(tensor, f"'{BINARY_SIZE}': expected a number of bytes")
    content = tail.take(size)
    return (
        _texts(served, tensor, content) if tensor.datatype == BYTES else _numbers(tensor, content)
    )


def _numbers(tensor: Tensor, content: bytes) -> list[Any]:
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


def _texts(served: ServedModel, tensor: Tensor, content: bytes) -> list[Any]:
    elements = list(_elements(tensor, content))
    if len(elements) != tensor.count:
        raise _miscounted(tensor, f"{len(elements)} elements")
    return _decoded(served, tensor, elements)


def _elements(tensor: Tensor, content: bytes) -> Iterable[bytes]:
    start = 0
    while start < len(content):
        first = start + LENGTH
        start = first + int.from_bytes(content[start:first], "little")
        if start > len(content):
            raise _unfit(tensor, "an element is longer than what is left of the tensor")
        yield content[first:start]


def _from_json(served: ServedModel, tensor: Tensor) -> list[Any]:
    if tensor.data is None:
        raise _unfit(tensor, "it has no 'data'")
    cells = _flat(tensor.data, len(tensor.shape))
    if len(cells) != tensor.count:
        raise _miscounted(tensor, f"{len(cells)} values")
    _check_kinds(tensor, cells)
    return _decoded(served, tensor, cells) if tensor.datatype == BYTES else cells


def _flat(data: list[Any], depth: int) -> list[Any]:
    """Nested lists in one row; no deeper than the shape."""
    for _ in range(depth - 1):
        if not any(isinstance(part, list) for part in data):
            break
        data = [cell for part in data for cell in (part if isinstance(part, list) else [part])]
    return data


def _check_kinds(tensor: Tensor, cells: Sequence[Any]) -> None:
    """Refuse values that are not of the tensor's type."""
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
"""What JSON a type of tensor is written in; whole numbers else."""


def _decoded(served: ServedModel, tensor: Tensor, cells: Sequence[str | bytes | None]) -> list[Any]:
    """What the elements say: text, the content of files, or whatever JSON they hold."""
    how = tensor.says(CONTENT_TYPE)
    image = served.kind == IMAGE
    out: list[Any] = []
    for row, cell in enumerate(cells):
        try:
            out.append(None if cell is None else _one(cell, how, image))
        except ValueError as error:
            raise requests.unfit_records([BadRecord(row, tensor.name, str(error))]) from None
    return out


def _one(cell: str | bytes, how: Any, image: bool) -> Any:
    """One element; in JSON an image is always base64."""
    if how == BASE64 or (image and isinstance(cell, str)):
        cell = from_base64(cell)
    if image:
        return cell
    text = cell if isinstance(cell, str) else cell.decode()
    return requests.parse(_anything, text.encode()) if how == AS_JSON else text


def from_base64(cell: str | bytes) -> bytes:
    """The bytes that are written in base64, in one line or in many.

    Raises:
        ValueError: it is no base64.
    """
    joined = b"".join(cell.split()) if isinstance(cell, bytes) else "".join(cell.split())
    try:
        return base64.b64decode(joined, validate=True)
    except ValueError:
        raise ValueError("expected base64") from None


def _unfit(tensor: Tensor, reason: str) -> ProblemError:
    return ProblemError(INVALID_REQUEST, f"input '{tensor.name[:100]}': {reason}")


def _miscounted(tensor: Tensor, found: str) -> ProblemError:
    return _unfit(tensor, f"{found} do not make the shape {tensor.shape}")
