"""A bundle's graph against its own weights in torch, on this machine and with these libraries."""

from __future__ import annotations

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import ImageScoreConfig, ScoreConfig
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import ExportError
from anomaly_vae.export.image_scores import ImageScore
from anomaly_vae.export.onnx_tabular import check_graph
from anomaly_vae.export.onnx_traced import check_traced, load_image_tensors
from anomaly_vae.generation.latent_space import load_ensemble, load_weights
from anomaly_vae.images.encoding import ImageEncoding
from anomaly_vae.lifecycle.promotion import Parity

MOST_ROWS = {"tabular": 512, "image": 32}
"""That are enough to compare."""


def parity(bundle: Bundle, batch: RawBatch) -> Parity:
    """These rows, scored by the graph and by torch."""
    scorer = bundle.scorer
    x = scorer.encoding.encode(batch)
    scores, model = scorer.score_encoded(x), load_ensemble(bundle)
    section = bundle.manifest["config"]["score"]
    try:
        if isinstance(scorer.encoding, ImageEncoding):
            config = ImageScoreConfig.model_validate(section)
            score = ImageScore(model, scorer.encoding.layout, config)
            load_image_tensors(score, load_weights(bundle))
            return Parity(len(x), check_traced(score.eval(), x, scores))
        return Parity(len(x), check_graph(model, ScoreConfig.model_validate(section), x, scores))
    except ExportError as error:
        return Parity(len(x), None, str(error))
