"""The sample of a calibration split: which part of scores is compared with held-out rows."""

from __future__ import annotations

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.scoring.scorer import ScoredRows, Terms
from pipelines.training.calibration_sample import _comparable


def test_with_a_backbone_only_the_picture_level_is_compared(bundle: Bundle) -> None:
    """Held-out patches become exemplars, with which their images would score lower than others."""
    terms = Terms(loss=np.array([3.0, 1.0]), rate=np.array([5.0, 4.0]))
    scored = ScoredRows(np.zeros((2, 1), np.float32), np.array([8.0, 5.0]), terms)
    assert _comparable(bundle, scored).tolist() == [1.0, 3.0]
    patches = bundle.with_notes(manifest={**bundle.manifest, "backbone": {"package": "any"}})
    assert _comparable(patches, scored).tolist() == [4.0, 5.0]
