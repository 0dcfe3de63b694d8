"""Why a row of a table scores as it does: what its score loses when columns are hidden.

The columns' own −log p(x_f|z) can mislead: z follows an odd value part of the way, and then the
rate pays for it, which names no column, and so do columns that had nothing to do with it. So the
columns that the score hangs on are hidden one after the other, as if they were missing, each time
the one whose loss costs the score most: sequential dropout (Siddiqui et al. 2019, sec. 4.2).
What the score falls by is that column's share, −log p(x_f | columns not hidden yet) as the bound
has it; the rest of the score is that of an ordinary row and is shared out as it comes. Nothing is
lost: the shares, the other columns and the KL term add up to the score.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.scoring.scorer import ScoreParts, Scorer

HIDDEN = 3
"""Columns of a row that are hidden at the most."""
CANDIDATES = 8
"""Columns that are tried each time: those of the largest −log p(x_f|z)."""


def sequential_dropout(scorer: Scorer, explained: ScoreParts) -> ScoreParts:
    """The same scores, with the shares of the columns and the values expected without them.

    Images are given back as they are: no pixel stands for an image's score.
    """
    encoding = scorer.encoding
    if not isinstance(encoding, TabularEncoding) or not len(explained.score):
        return explained
    step = max(1, encoding.tile // CANDIDATES)
    rows = range(0, len(explained.score), step)
    parts = [_drop_out(scorer, encoding, explained.part(slice(i, i + step))) for i in rows]
    return ScoreParts.concatenate(parts)


def _drop_out(scorer: Scorer, encoding: TabularEncoding, explained: ScoreParts) -> ScoreParts:
    shares, now = np.zeros_like(explained.nats), explained
    for _ in range(HIDDEN):
        column, share, hidden = _hide_one(scorer, encoding, now)
        shares[np.arange(len(shares)), column] += share
        now = now.updated(share > 0, hidden)
    return replace(explained, nats=shares + now.nats, kl=now.kl, expected=now.expected)


def _hide_one(
    scorer: Scorer, encoding: TabularEncoding, now: ScoreParts
) -> tuple[NDArray[np.intp], NDArray[np.float64], ScoreParts]:
    """Of each row the column that costs most, (N,), what it costs, (N,), and the row without it.

    Nothing is hidden, at no cost, where the score would not fall.
    """
    present = ~np.isnan(now.observed[:, encoding.starts])
    order = np.argsort(np.where(present, -now.nats, np.inf), axis=1, kind="stable")
    tried = order[:, :CANDIDATES]
    n, width = tried.shape
    x = np.where(encoding.cells[tried], np.float32(np.nan), now.observed[:, None])
    without = scorer.explain_encoded(x.reshape(n * width, -1))
    falls = now.score[:, None] - without.score.reshape(n, width)
    falls = np.where(np.take_along_axis(present, tried, 1), falls, 0.0)
    rows, best = np.arange(n), falls.argmax(1)
    share = np.maximum(falls[rows, best], 0.0)
    return tried[rows, best], share, without.part(rows * width + best)
