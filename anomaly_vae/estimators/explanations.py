"""Show the explanations of many rows as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from anomaly_vae.scoring.detector import Explanation
from anomaly_vae.types import KNOWN_ANOMALIES, REGION

COLUMNS = ("row", "part", "feature", "nats", "observed", "expected")
"""Columns of `Explanations.to_frame`."""


class Explanations(list[Explanation]):
    """A list with the explanation of each row; a notebook shows it as a table.

    >>> from anomaly_vae.scoring.detector import Contribution
    >>> listed = (Contribution("amount", 6.0, observed=950.0, expected=40.0),)
    >>> Explanations([Explanation(listed, rest=1.5, kl=0.5)]).to_frame()[["row", "part", "nats"]]
       row    part  nats
    0    0  column   6.0
    1    0    rest   1.5
    2    0      kl   0.5
    """

    def to_frame(self) -> pd.DataFrame:
        """Return one line per row and part of its score; the nats of a row add up to its score.

        ``part`` is ``column`` for a contribution, ``known`` for the likeness to known anomalies,
        ``region`` for a region of an image, whose box is the ``feature``, ``rest`` for everything
        else together, and ``kl`` for the KL term.
        """
        return pd.DataFrame(self._lines(), columns=COLUMNS)

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for row, one in enumerate(self):
            for c in one.contributions:
                part = "known" if c.feature == KNOWN_ANOMALIES else "column"
                yield row, part, c.feature, c.nats, c.observed, c.expected
            for region in one.regions or ():
                yield row, REGION, str(tuple(region.box)), region.nats, None, None
            yield row, "rest", None, one.rest, None, None
            yield row, "kl", None, one.kl, None, None

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return str(self.to_frame().to_html(max_rows=60))
