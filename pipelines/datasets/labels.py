"""Read the labels and groups of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import levels_from_arrow
from anomaly_vae.data.converters import BOOLEAN, Levels, label_spellings, level_name
from anomaly_vae.data.splitting import Rows
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed

Mask = NDArray[np.bool_]


def label_masks(labels: pa.ChunkedArray, positive: Any, column: str) -> tuple[Mask, Mask]:
    """Return which of the N rows are anomalies, and which have no label, each (N,).

    Args:
        labels: (N,) the labels, null for a row without one.
        positive: the label that means anomaly.
        column: the name of the label column in messages.
    """
    levels = _levels(labels, column).without_markers()
    wanted = label_spellings(positive)
    anomalous = [code for code, name in enumerate(levels.names) if name in wanted]
    return np.isin(levels.codes, anomalous), levels.codes < 0


def labelled_rows(
    table: pa.Table,
    label: str | None,
    positive: Any,
    group: str | None,
    time: NDArray[np.float64] | None = None,
    configured: str | None = None,
) -> Rows:
    """Read the label, group and time of each row, by which a data set is split.

    Args:
        table: N rows.
        label: the label column; None if there is none, so that every row counts as normal.
        positive: the label that means anomaly.
        group: the column of units whose rows must be in the same split; None if there is none.
        time: (N,) seconds since 1970; None if rows have no time.
        configured: the name of the label column in messages; None for ``label``.

    Raises:
        DataError: see `check_positive`.
    """
    anomaly = unlabelled = np.zeros(len(table), bool)
    if label:
        labels, name = table.column(label), configured or label
        check_positive(labels, positive, name)
        anomaly, unlabelled = label_masks(labels, positive, name)
    return Rows(anomaly, unlabelled, time, group_codes(table, group))


def check_positive(labels: pa.ChunkedArray, positive: Any, column: str) -> None:
    """Refuse labels none of which means anomaly, unless they are all boolean.

    Raises:
        DataError: there are no labels, or none of them is ``positive``, probably a misspelling.
    """
    names = set(_levels(labels, column).without_markers().names)
    wanted = label_spellings(positive)
    if not names:
        raise DataError(f"column '{column}' has no label in any row; leave it out", column=column)
    if not names & wanted and not names | wanted <= set(BOOLEAN):
        raise DataError(
            f"column '{column}' never has the value {level_name(positive)!r} that data.positive "
            f"names (quote words such as 'yes' in YAML); found {listed(sorted(names))}",
            column=column,
        )


def _levels(cells: pa.ChunkedArray, column: str) -> Levels:
    try:
        levels, problems = levels_from_arrow(cells)
    except DataError as error:
        raise DataError(f"column '{column}': {error}", column=column) from None
    if problems:
        where = f"column '{column}', row {problems[0].row}"
        raise DataError(f"{where}: {problems[0].reason}", column=column)
    return levels


def group_codes(table: pa.Table, name: str | None) -> NDArray[np.int32] | None:
    """Return the group of each row as a code (N,); None without a group column."""
    return column_codes(table, name) if name else None


def column_codes(table: pa.Table, name: str) -> NDArray[np.int32]:
    """Return the level of each row as a code (N,); each row without a value has its own code."""
    levels = _levels(table.column(name), name)
    missing = levels.codes < 0
    own_codes = len(levels.names) + np.cumsum(missing) - 1
    return np.where(missing, own_codes, levels.codes).astype(np.int32)
