"""Score images as a stream into a folder, and draw heatmaps of flagged ones.

Every image is scored, or rejected with a reason.
"""

from pipelines.batch.images.score import score_images

__all__ = ["score_images"]
