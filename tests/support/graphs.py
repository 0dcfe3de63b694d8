"""Keep the graphs of image models in files, where each worker finds those of the others."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx

from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.patch_scores import PatchScore

Key = tuple[str, ...]
Trace = Callable[[ImageScore | PatchScore], onnx.ModelProto]


class SharedGraphs(dict[Key, bytes]):
    """Graphs by configuration, as `onnx_traced` keeps them, also in files of a folder.

    A graph is traced in seconds, and depends on its configuration alone.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _file(self, key: Key) -> Path:
        return self.folder / hashlib.sha256(repr(key).encode()).hexdigest()

    def __contains__(self, key: object) -> bool:
        """Look also for the file of another worker."""
        if not super().__contains__(key) and isinstance(key, tuple) and self._file(key).exists():
            super().__setitem__(key, self._file(key).read_bytes())
        return super().__contains__(key)

    def __setitem__(self, key: Key, graph: bytes) -> None:
        super().__setitem__(key, graph)
        unfinished = self.folder / uuid.uuid4().hex
        unfinished.write_bytes(graph)
        unfinished.rename(self._file(key))


def with_operators_kept(trace: Trace) -> Trace:
    """Return a function that traces and has torch list the operators of ONNX only the first time.

    Torch lists all of them for each graph, which takes half a second.
    """

    def trace_graph(score: ImageScore | PatchScore) -> onnx.ModelProto:
        _keep_operators()
        return trace(score)

    return trace_graph


@cache
def _keep_operators() -> None:
    """Keep the list, which graphs only read; its modules are loaded where something is traced."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]
