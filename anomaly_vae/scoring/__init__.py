"""Score rows and images with the exported graph, and explain the scores."""

from anomaly_vae.scoring.detector import Detections, Detector, Explanation
from anomaly_vae.scoring.scorer import Scorer

__all__ = ["Detections", "Detector", "Explanation", "Scorer"]
