"""Score rows: encode them with numpy and run the model's graph with ONNX Runtime.

A row's score depends only on the row and the bundle. The session runs one thread with fixed weights
and frozen random draws. Rows are scored in tiles of constant size, so memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.scoring.modality import Encoding, Schema

BLOCK_ROWS = 4
"""Number of rows that ONNX Runtime's matrix kernels process together.

Tiles are padded to a multiple of this number. Kernels round the rows of an incomplete block
differently, which would make a row's score depend on the number of rows in its batch.
"""
EXPLAIN = "explain"
"""Name of the optional input that decides whether a graph computes ``nats`` or leaves it 0."""
DISTINCT_ROWS = "distinct_rows"
"""Name of the optional input (1,) that says how many rows there are before those that repeat the
last one. It is for speed alone, and only with ``explain`` false."""
OUTPUTS = ("score", "nats", "kl", "expected", "latent")
"""Names of the graph's outputs."""
KNOWN_OUTPUTS = ("known", "detector", "rate")
"""Names of the further outputs of a graph that has learned from known anomalies."""
KNOWN_COLUMNS = "known_columns"
"""Property of such a graph: the indices of the raw columns by which it knows anomalies."""
TILE_ROWS = "tile_rows"
"""Optional property of a graph: number of rows that it takes at a time, for speed alone."""


class Terms(NamedTuple):
    """The terms of the detector's own score, in nats."""

    loss: NDArray[np.float64]
    """Score (N,) without the KL term."""
    rate: NDArray[np.float64]
    """KL term (N,)."""


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """N encoded rows with their scores, as `Scorer.scored` returns them."""

    x: Matrix
    """Encoded rows (N, F)."""
    scores: NDArray[np.float64]
    """Scores (N,)."""
    terms: Terms
    """Terms (N,) of the detector's own score."""

    def take(self, rows: slice) -> ScoredRows:
        """Return some of the rows."""
        terms = Terms(*(term[rows] for term in self.terms))
        return ScoredRows(self.x[rows], self.scores[rows], terms)


@dataclass(frozen=True)
class ScoreParts:
    """Scores and their parts, in the unit of the score: score = Σ nats + kl + known.

    score (N,); nats (N, C), one entry per column of the encoding; kl (N,); observed and expected
    (N, F), both encoded; latent (N, L), the latent means; known (N,), the likeness to known
    anomalies, 0 in models that know none; loss and rate (N,), the `Terms` of the detector.
    """

    score: NDArray[np.float64]
    nats: NDArray[np.float64]
    kl: NDArray[np.float64]
    observed: Matrix
    expected: Matrix
    latent: Matrix
    known: NDArray[np.float64]
    loss: NDArray[np.float64]
    rate: NDArray[np.float64]

    @property
    def terms(self) -> Terms:
        """The terms of the detector's own score."""
        return Terms(self.loss, self.rate)

    @property
    def unknown(self) -> NDArray[np.float64]:
        """Scores (N,) without the likeness to known anomalies."""
        return self.score - self.known

    def part(self, rows: Any) -> ScoreParts:
        """Return the rows that a numpy index selects."""
        return ScoreParts(*(value[rows] for value in vars(self).values()))

    def replaced(self, mask: NDArray[np.bool_], other: ScoreParts) -> ScoreParts:
        """Return a copy with the rows where the mask (N,) is true taken from ``other``."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        chosen = (np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs)
        return ScoreParts(*chosen)

    @classmethod
    def concatenate(cls, parts: Sequence[ScoreParts]) -> ScoreParts:
        """Concatenate the rows of several parts."""
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


class Scorer:
    """The schema, the encoding and the scoring graph of a trained model.

    >>> import numpy as np
    >>> import pandas as pd
    >>> from anomaly_vae import TabularVAEDetector
    >>> rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    >>> scorer = TabularVAEDetector(epochs=1, random_state=0).fit(rows).bundle_.scorer
    >>> batch = scorer.schema.from_records([{"a": 0.1, "b": 0.2}, {"a": 9, "b": 9}])
    >>> usual, odd = scorer.score(batch)
    >>> bool(odd > usual)
    True
    >>> parts = scorer.explain(batch)
    >>> parts.nats.shape, bool(np.allclose(parts.score, parts.nats.sum(1) + parts.kl))
    ((2, 2), True)
    """

    def __init__(self, schema: Schema, encoding: Encoding, graph: bytes, weights: bytes) -> None:
        self.schema, self.encoding = schema, encoding
        self._session = open_session(graph, weights)
        optional = {entry.name for entry in self._session.get_overridable_initializers()}
        self._brief = {EXPLAIN: np.array(False)} if EXPLAIN in optional else {}
        alone = {DISTINCT_ROWS: np.array([1])} if DISTINCT_ROWS in optional else {}
        self._brief_alone = {**self._brief, **alone}
        self.has_head = "known" in {output.name for output in self._session.get_outputs()}
        """Whether the model has learned from known anomalies."""
        self._properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._tile_rows = int(self._properties.get(TILE_ROWS, encoding.tile))
        self._block = min(encoding.tile, BLOCK_ROWS)
        self._alone: dict[tuple[str, ...], BoundRun] = {}

    @cached_property
    def known_columns(self) -> tuple[int, ...]:
        """Raw columns by which the model knows anomalies, the most useful first; often none."""
        return tuple(map(int, self._properties.get(KNOWN_COLUMNS, "").split()))

    def score(self, batch: RawBatch) -> NDArray[np.float64]:
        """Return anomaly scores (N,); higher is more anomalous."""
        return self.score_encoded(self.encoding.encode(batch))

    def score_encoded(self, x: Matrix) -> NDArray[np.float64]:
        """Return the scores (N,) of encoded rows (N, F)."""
        return self._output("score", x)

    def detector_scores(self, x: Matrix) -> NDArray[np.float64]:
        """Return the scores (N,) of encoded rows (N, F) without what is known of anomalies."""
        return self._output("detector" if self.has_head else "score", x)

    def scores_and_terms(self, x: Matrix) -> tuple[NDArray[np.float64], Terms]:
        """Return the scores (N,) of encoded rows (N, F) and the detector's terms, in one pass."""
        names = ("score", "detector", "rate") if self.has_head else ("score", "kl")
        score, *own, rate = self._outputs(names, x)
        return score, Terms((own[0] if own else score) - rate, rate)

    def score_alone(self, x: Matrix) -> tuple[float, float, float]:
        """Return score, loss and rate of one encoded row (1, F); see `scores_and_terms`."""
        if self._block == 1:
            score, terms = self.scores_and_terms(x)
            return score.item(), terms.loss.item(), terms.rate.item()
        names = ("score", "detector", "rate") if self.has_head else ("score", "kl")
        values = self._bound(names, x).values(x)
        own = values[-2]
        return values[0], own - values[-1], values[-1]

    def scored(self, batch: RawBatch) -> ScoredRows:
        """Encode and score rows, in one pass."""
        x = self.encoding.encode(batch)
        return ScoredRows(x, *self.scores_and_terms(x))

    def known_surprise(self, x: Matrix) -> NDArray[np.float64]:
        """Return how much encoded rows (N, F) resemble known anomalies, (N,); needs such a head."""
        return self._output("known", x)

    def explain(self, batch: RawBatch) -> ScoreParts:
        """Return scores and their parts."""
        return self.explain_encoded(self.encoding.encode(batch))

    def explain_encoded(self, x: Matrix) -> ScoreParts:
        """Return scores and their parts for encoded rows (N, F)."""
        names = OUTPUTS + KNOWN_OUTPUTS if self.has_head else OUTPUTS
        score, nats, kl, expected, latent, *head = self._outputs(names, x)
        known, detector, rate = head or (np.zeros_like(score), score, kl)
        by_column = self.encoding.per_column(nats.astype(np.float64)) + 0.0  # turns −0.0 into 0.0
        parts = score, by_column, kl, x, expected, latent
        return ScoreParts(*parts, known, detector - rate, rate)

    def _output(self, name: str, x: Matrix) -> NDArray[np.float64]:
        """Return one output (N,) of the graph for encoded rows (N, F)."""
        return self._outputs((name,), x)[0]

    def _outputs(self, names: tuple[str, ...], x: Matrix) -> list[NDArray[Any]]:
        """Return outputs of the graph for encoded rows (N, F)."""
        tiles = [self._run(names, tile) for tile in self._tiles(x)]
        if len(tiles) == 1:
            return tiles[0]
        return [np.concatenate(part) for part in zip(*tiles, strict=True)]

    def _tiles(self, x: Matrix) -> Iterator[Matrix]:
        """Yield tiles of a matrix (N, F); an empty matrix yields one empty tile."""
        step = self._tile_rows
        return (x[i : i + step] for i in range(0, max(len(x), 1), step))

    def _run(self, outputs: tuple[str, ...], x: Matrix) -> list[NDArray[Any]]:
        """Run the graph on one tile, padded to a multiple of `BLOCK_ROWS`."""
        rows = len(x)
        if rows == 1 < self._block and "nats" not in outputs:
            return self._bound(outputs, x)(x)
        x = padded(x, self._block)
        given = {"x": x} if "nats" in outputs else {"x": x, **self._brief}
        parts: list[NDArray[Any]] = self._session.run(outputs, given)
        return [part[:rows] for part in parts]

    def _bound(self, outputs: tuple[str, ...], x: Matrix) -> BoundRun:
        """Return the runs on lone rows, in memory that the first such row (1, F) allocates."""
        run = self._alone.get(outputs)
        if run is None:
            block = x.repeat(self._block, axis=0)
            run = self._alone[outputs] = BoundRun(self._session, outputs, block, self._brief_alone)
        return run


class BoundRun:
    """Runs of a graph on lone rows, with inputs and outputs in the same memory every time.

    Args:
        session: the graph.
        outputs: names of the outputs.
        block: a block (B, F) of rows, which is overwritten.
        others: further inputs.
    """

    def __init__(
        self,
        session: Any,
        outputs: Sequence[str],
        block: Matrix,
        others: Mapping[str, NDArray[Any]],
    ) -> None:
        self._session, self._rows, self._lock = session, block, Lock()
        self._inputs = {"x": block, **others}  # the session does not keep this memory alive
        self._outputs: list[NDArray[Any]] = session.run(outputs, self._inputs)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        for name, value in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(value))

    def __call__(self, x: Matrix) -> list[NDArray[Any]]:
        """Return the outputs for one row (1, F), each with one element."""
        with self._lock:
            self._run(x)
            return [part[:1].copy() for part in self._outputs]

    def values(self, x: Matrix) -> list[float]:
        """Return the outputs for one row (1, F) as numbers."""
        with self._lock:
            self._run(x)
            return [part.item(0) for part in self._outputs]

    def _run(self, x: Matrix) -> None:
        self._rows[:] = x
        self._session.run_with_iobinding(self._binding)


def padded(x: Matrix, block: int) -> Matrix:
    """Repeat the last row until the number of rows is a multiple of ``block``, and not 0.

    Without rows, all values are 0.
    """
    rows = len(x)
    if rows and rows % block == 0:
        return x
    last = x[-1:] if rows else np.zeros((1, x.shape[1]), x.dtype)
    return np.concatenate([x, last.repeat(block - rows % block, axis=0)])


def open_session(graph: bytes, weights: bytes) -> Any:
    """Open a single-threaded session for a graph and its weights."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_external_initializers_from_files_in_memory(
        ["weights.safetensors"], [weights], [len(weights)]
    )
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
