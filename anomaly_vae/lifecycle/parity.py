"""Compare the scores of a bundle's graph with scores that torch computes from its weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import ExportError
from anomaly_vae.export.graph_check import check_graph
from anomaly_vae.export.onnx_traced import check_traced, image_score, load_image_tensors
from anomaly_vae.generation.latent_space import load_ensemble, load_weights
from anomaly_vae.lifecycle.promotion import Parity
from anomaly_vae.scoring.modality import image_modality

Check = Callable[[Bundle, Matrix, NDArray[np.float64]], float]
"""Comparison of a graph's scores (N,) of encoded rows (N, F) with those of torch."""


def parity(bundle: Bundle, batch: RawBatch) -> Parity:
    """Score a batch with the graph and with torch on this machine, and compare the scores.

    Of a model that has learned from known anomalies, the scores of the detector are compared.
    """
    x = bundle.scorer.encoding.encode(batch)
    scores = bundle.scorer.detector_scores(x)
    try:
        return Parity(len(x), CHECKS[bundle.manifest["kind"]](bundle, x, scores))
    except ExportError as error:
        return Parity(len(x), None, str(error))


def _check_table(bundle: Bundle, x: Matrix, scores: NDArray[np.float64]) -> float:
    score = ScoreConfig.model_validate(bundle.manifest["config"]["score"])
    return check_graph(load_ensemble(bundle), score, x, scores)


def _check_images(bundle: Bundle, x: Matrix, scores: NDArray[np.float64]) -> float:
    config = ImageScoreConfig.model_validate(bundle.manifest["config"]["score"])
    _, encoding = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
    score = image_score(load_ensemble(bundle), encoding, config)
    load_image_tensors(score, load_weights(bundle))
    return check_traced(score.eval(), x, scores)


CHECKS: dict[str, Check] = {"tabular": _check_table, "image": _check_images}
"""Comparison by kind of data; it returns the largest difference or raises an `ExportError`."""
