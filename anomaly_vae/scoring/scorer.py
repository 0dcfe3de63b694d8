"""The one scoring kernel: encode with numpy, run the graph with ONNX Runtime.

A row's score depends on that row and the bundle alone. The session runs one thread on fixed
weights and frozen draws; rows are scored so many at a time, and memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.modality import Encoding, Schema

BLOCK = 4
"""Rows that the kernels multiply together. They round the last rows of an odd number otherwise, so
that the score of a row would hang on the rows beside it."""
OUTPUTS = ("score", "nats", "kl", "expected", "latent")


@dataclass(frozen=True)
class ScoreParts:
    """Scores with what they are made of: score = Σ nats + kl, in nats.

    score (N,), nats (N, C) per column of the encoding, kl (N,); observed and expected (N, F) as
    encoded; latent (N, L).
    """

    score: NDArray[np.float64]
    nats: NDArray[np.float64]
    kl: NDArray[np.float64]
    observed: Matrix
    expected: Matrix
    latent: Matrix

    def part(self, rows: Any) -> ScoreParts:
        """Some of the rows, by whatever numpy takes for an index."""
        return ScoreParts(*(value[rows] for value in vars(self).values()))

    def updated(self, which: NDArray[np.bool_], other: ScoreParts) -> ScoreParts:
        """These rows, but those of ``other`` where ``which`` (N,) says so."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        chosen = (np.where(which.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs)
        return ScoreParts(*chosen)

    @classmethod
    def concatenate(cls, parts: Sequence[ScoreParts]) -> ScoreParts:
        """All rows of some parts."""
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


class Scorer:
    """Schema, encoding and graph of one trained model."""

    def __init__(self, schema: Schema, encoding: Encoding, graph: bytes, weights: bytes) -> None:
        self.schema, self.encoding = schema, encoding
        self._session = open_session(graph, weights)

    def score(self, batch: RawBatch) -> NDArray[np.float64]:
        """(N,) anomaly scores, higher is more anomalous."""
        return self.score_encoded(self.encoding.encode(batch))

    def score_encoded(self, x: Matrix) -> NDArray[np.float64]:
        """(N, F) as the encoding gives it → (N,)"""
        return np.concatenate([self._run(("score",), tile)[0] for tile in self._tiles(x)])

    def losses(self, batch: RawBatch) -> NDArray[np.float64]:
        """(N,) the columns' share of the scores: without the rate, and so without the prior."""
        return self.scores_and_losses(batch)[1]

    def scores_and_losses(self, batch: RawBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What `score` and `losses` say, in one pass."""
        tiles = [self._run(("score", "kl"), t) for t in self._tiles(self.encoding.encode(batch))]
        score, kl = (np.concatenate(part) for part in zip(*tiles, strict=True))
        return score, score - kl

    def explain(self, batch: RawBatch) -> ScoreParts:
        """Scores and their parts."""
        return self.explain_encoded(self.encoding.encode(batch))

    def explain_encoded(self, x: Matrix) -> ScoreParts:
        """(N, F) as the encoding gives it → scores and their parts."""
        tiles = [self._run(OUTPUTS, tile) for tile in self._tiles(x)]
        score, nats, kl, expected, latent = (
            np.concatenate(part) for part in zip(*tiles, strict=True)
        )
        by_column = self.encoding.per_column(nats.astype(np.float64)) + 0.0  # no −0 in answers
        return ScoreParts(score, by_column, kl, x, expected, latent)

    def _tiles(self, x: Matrix) -> Iterator[Matrix]:
        """Parts of a matrix, one even where it is empty."""
        step = self.encoding.tile
        return (x[i : i + step] for i in range(0, max(len(x), 1), step))

    def _run(self, outputs: tuple[str, ...], x: Matrix) -> list[NDArray[Any]]:
        """The graph over one tile, filled up to whole blocks; no rows are none of one block."""
        rows, block = len(x), min(self.encoding.tile, BLOCK)
        if not rows or rows % block:
            last = x[-1:] if rows else np.zeros((1, x.shape[1]), x.dtype)
            x = np.concatenate([x, np.repeat(last, block - rows % block, axis=0)])
        parts: list[NDArray[Any]] = self._session.run(outputs, {"x": x})
        return [part[:rows] for part in parts]


def open_session(graph: bytes, weights: bytes) -> Any:
    """A single-threaded session over a graph whose weights are in these bytes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory(
        ["weights.safetensors"], [weights], [len(weights)]
    )
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
