"""Choose the rows of a few that may be among the highest of a whole input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.scoring.detector import Detections
from pipelines.batch.result.layout import Layout
from pipelines.batch.result.ranking import DAY, FEATURES, Ranking

POSITION = ".position"
"""Column of the positions of rows while they are chosen."""


@dataclass(frozen=True)
class Candidates:
    """How rows are chosen that may be among the highest, and which of their columns are kept."""

    ranking: Ranking
    columns: tuple[str, ...]
    """Columns of the input that are kept, beside the keys."""

    @classmethod
    def of_layout(cls, layout: Layout, columns: tuple[str, ...]) -> Candidates | None:
        """Return the choice for a result; None if no rows are ranked in it."""
        return None if layout.ranking is None else cls(layout.ranking, columns)

    def of(
        self,
        columns: Mapping[str, pa.Array],
        detections: Detections,
        days: pa.Array | None,
        features: Callable[[NDArray[np.int64]], pa.Array],
    ) -> pa.Table:
        """Return the rows that may be among the highest.

        Args:
            columns: N cells of each key and of each column of the input.
            detections: scores and flags (N,).
            days: the day of each row (N,); None if rows are not ranked by day.
            features: function that returns what explains the rows at some positions.
        """
        names = dict.fromkeys((*self.ranking.keys, *self.columns))
        table = pa.table(
            {
                **({} if days is None else {DAY: days}),
                **{name: columns[name] for name in names},
                "score": detections.score,
                "p_value": detections.p_value,
                "is_anomaly": detections.is_anomaly,
                POSITION: np.arange(len(detections.score)),
            }
        )
        chosen = self.ranking.highest(table)
        rows = chosen[POSITION].to_numpy()
        return chosen.drop_columns([POSITION]).append_column(FEATURES, features(rows))
