"""Say by which columns a row resembles the anomalies that a model has learned from.

The likeness is the surprise of the trees that learned from them (docs/known.md). Columns are hidden
one after another, always the one whose removal lowers that surprise most, as in `attribution`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.data.encoding import Matrix
from anomaly_vae.messages import plain_number
from anomaly_vae.scoring.scorer import ScoreParts, Scorer

NOT_LIKE = "no resemblance"
"""Expected value of that line."""
TOGETHER = "several columns together"
"""Observed value of that line if no single column accounts for the likeness."""
LIKE = math.log(10)
"""Surprise from which a row counts as like known anomalies: one in ten normal rows has it."""
MAX_COLUMNS = 3
"""Maximum number of columns that the line names."""
MAX_CANDIDATES = 8
"""Maximum number of columns tried per step: those that the trees use most."""
MIN_SHARE = 0.05
"""Minimum share of the likeness that a column accounts for to be named."""
MAX_TEXT = 40
"""Maximum length of a quoted value, in characters."""

Shares = NDArray[np.float64]


def likeness(
    scorer: Scorer, explained: ScoreParts, observed: list[list[Any]]
) -> list[str | None] | None:
    """Say for each row by which columns it resembles known anomalies, largest share first.

    Args:
        scorer: the model.
        explained: the N rows.
        observed: the N raw values of each of the C raw columns.

    Returns:
        N texts such as ``amount 950 (+3.1), hour 02:10 (+0.8)``, with the part of the surprise that
        is due to each column, and None for rows that are not like known anomalies; None for a
        model that knows none.
    """
    if not scorer.has_head:
        return None
    like = np.flatnonzero(explained.known >= LIKE)
    texts: list[str | None] = [None] * len(explained.known)
    shares = column_shares(scorer, explained.observed[like], explained.known[like])
    for row, own in zip(like.tolist(), shares, strict=True):
        named = [c for c in np.argsort(-own, kind="stable") if own[c] > 0][:MAX_COLUMNS]
        values = (
            f"{scorer.encoding.labels[c]} {_text(observed[c][row])} (+{own[c]:.1f})" for c in named
        )
        texts[row] = ", ".join(values) or TOGETHER
    return texts


def column_shares(scorer: Scorer, x: Matrix, known: Shares) -> Shares:
    """Return the part of the surprise of the trees that is due to each raw column, (N, C).

    Args:
        scorer: a model with a head.
        x: (N, F) encoded rows.
        known: (N,) surprise of the trees for these rows.
    """
    step = max(1, scorer.encoding.tile // MAX_CANDIDATES)
    starts = range(0, len(x), step)
    parts = [_shares(scorer, x[i : i + step], known[i : i + step]) for i in starts]
    return np.concatenate([np.zeros((0, len(scorer.encoding.labels))), *parts])


def _shares(scorer: Scorer, x: Matrix, known: Shares) -> Shares:
    cells, rows = scorer.encoding.cells, np.arange(len(x))
    tried = np.array(scorer.known_columns[:MAX_CANDIDATES], np.intp)
    shares, least = np.zeros((len(x), len(cells))), MIN_SHARE * known
    for _ in range(MAX_COLUMNS if len(tried) else 0):
        hidden = np.where(cells[tried], np.float32(np.nan), x[:, None])
        left = scorer.known_surprise(hidden.reshape(-1, x.shape[1])).reshape(len(x), -1)
        best = left.argmin(1)
        share = known - left[rows, best]
        gains = share > least
        shares[rows[gains], tried[best[gains]]] += share[gains]
        x = np.where(gains[:, None], hidden[rows, best], x)
        known = np.where(gains, left[rows, best], known)
    return shares


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, int | float):
        return plain_number(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return f"{text[: MAX_TEXT - 3]}..." if len(text) > MAX_TEXT else text
