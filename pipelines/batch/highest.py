"""Show the rows or images with the highest scores, with reasons in words."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
import pyarrow as pa

from anomaly_vae.messages import plain_number
from anomaly_vae.scoring.detector import Detections, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines import console

MAX_SHOWN = 10
"""Maximum number of rows or images that are shown."""


class Highest:
    """The rows or images with the highest scores so far, for a run that explains them."""

    def __init__(self, wording: Wording) -> None:
        self._wording = wording
        self._name = ""
        self.rows: list[tuple[float, str, float, str]] = []
        """Score, id, p-value and reasons; highest score first."""

    def add(
        self,
        keys: Mapping[str, pa.Array],
        detections: Detections,
        explanations: Sequence[Explanation],
    ) -> None:
        """Consider N rows: their ids in the first of the keys, decisions and explanations."""
        if not explanations:
            return
        self._name, ids = next(iter(keys.items()))
        score, p_value = detections.score.tolist(), detections.p_value.tolist()
        found = [
            (score[i], str(ids[i].as_py()), p_value[i], self._reasons(explanations[i]))
            for i in np.argsort(-detections.score, kind="stable")[:MAX_SHOWN].tolist()
        ]
        self.rows = heapq.nlargest(MAX_SHOWN, [*self.rows, *found], key=itemgetter(0))

    def _reasons(self, explanation: Explanation) -> str:
        return "; ".join(self._wording.reasons(explanation)) or "no region stands out"

    def show(self) -> None:
        """Print the rows, if there are any."""
        if self.rows:
            rows = [(row, plain_number(p), reasons) for _, row, p, reasons in self.rows]
            title = f"The {len(rows)} highest scores, and why"
            console.table(title, (self._name, "p-value", "reasons"), rows)
