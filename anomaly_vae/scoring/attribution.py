"""Attribute the score of a table row to columns by hiding columns one at a time.

The per-column terms −log p(x_f|z) can mislead: an unusual value shifts z, so part of its cost
appears in the KL term, which belongs to no column, and in the terms of unrelated columns.
Sequential dropout (Siddiqui et al. 2019, sec. 4.2) instead marks columns as missing one at a time,
always the column whose removal lowers the score most. The decrease is that column's share of the
score, an estimate of −log p(x_f | columns not hidden yet). What remains is the score of an ordinary
row, which is attributed by the per-column terms. The shares of all columns and the KL term add up
to the score; in a model that has learned from known anomalies, to the score without the likeness to
these, which `known` explains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.scoring.scorer import ScoreParts, Scorer

MAX_HIDDEN_COLUMNS = 3
"""Maximum number of columns hidden per row."""
MAX_CANDIDATES = 8
"""Maximum number of columns tried per step: those with the largest −log p(x_f|z)."""


def sequential_dropout(scorer: Scorer, explained: ScoreParts) -> ScoreParts:
    """Return the parts with shares by sequential dropout in place of per-column terms.

    Expected values are those given the columns left. The parts of an image model are returned
    unchanged: no single pixel explains a score.
    """
    encoding = scorer.encoding
    if not len(encoding.cells) or not len(explained.score):
        return explained
    step = max(1, encoding.tile // MAX_CANDIDATES)
    rows = range(0, len(explained.score), step)
    parts = [_drop_out(scorer, explained.part(slice(i, i + step))) for i in rows]
    return ScoreParts.concatenate(parts)


def _drop_out(scorer: Scorer, explained: ScoreParts) -> ScoreParts:
    """Hide up to `MAX_HIDDEN_COLUMNS` columns of each row and credit them with the decrease."""
    shares, current = np.zeros_like(explained.nats), explained
    for _ in range(MAX_HIDDEN_COLUMNS):
        column, share, hidden = _hide_one(scorer, current)
        shares[np.arange(len(shares)), column] += share
        current = current.replaced(share > 0, hidden)
    return replace(explained, nats=shares + current.nats, kl=current.kl, expected=current.expected)


def _hide_one(
    scorer: Scorer, current: ScoreParts
) -> tuple[NDArray[np.intp], NDArray[np.float64], ScoreParts]:
    """Hide, in each row, the column whose removal lowers the score most.

    In a row where no removal lowers the score, the decrease is 0.

    Returns:
        The hidden column (N,), the decrease of the score (N,), and the parts without that column.
    """
    cells = scorer.encoding.cells
    present = ~np.isnan(current.observed[:, cells.argmax(1)])
    order = np.argsort(np.where(present, -current.nats, np.inf), axis=1, kind="stable")
    tried = order[:, :MAX_CANDIDATES]
    n, width = tried.shape
    x = np.where(cells[tried], np.float32(np.nan), current.observed[:, None])
    without = scorer.explain_encoded(x.reshape(n * width, -1))
    decrease = current.unknown[:, None] - without.unknown.reshape(n, width)
    decrease = np.where(np.take_along_axis(present, tried, 1), decrease, 0.0)
    rows, best = np.arange(n), decrease.argmax(1)
    share = np.maximum(decrease[rows, best], 0.0)
    return tried[rows, best], share, without.part(rows * width + best)
