"""Read labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.arrow import levels_from_arrow
from anomaly_vae.data.converters import Levels, level_name
from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed

BOOLEAN = {"0": "false", "1": "true", "false": "0", "true": "1"}


def anomaly_mask(labels: pa.ChunkedArray, positive: Any, column: str) -> NDArray[np.bool_]:
    """Which rows carry the label that means anomaly, (N,); it may be none."""
    levels = _levels(labels, column)
    meant = _names(positive)
    return np.isin(levels.codes, [c for c, name in enumerate(levels.names) if name in meant])


def check_positive(labels: pa.ChunkedArray, positive: Any, column: str) -> None:
    """Labels without a single anomaly are fine where they are 0 and 1; else a slip of the pen.

    Raises:
        DataError: there are no labels, or none of them is ``positive``, which is no 0 or 1.
    """
    names = set(_levels(labels, column).names)
    meant = _names(positive)
    if not names:
        raise DataError(f"column '{column}' has no label in any row; leave it out", column=column)
    if not names & meant and not names | meant <= set(BOOLEAN):
        raise DataError(
            f"column '{column}' never has the value {level_name(positive)!r} that data.positive "
            f"names (quote words such as 'yes' in YAML); found {listed(sorted(names))}",
            column=column,
        )


def _names(positive: Any) -> set[str]:
    """A label value and its boolean twin."""
    wanted = level_name(positive) or ""
    return {wanted, BOOLEAN.get(wanted, wanted)}


def unlabelled_mask(labels: pa.ChunkedArray, column: str) -> NDArray[np.bool_]:
    """Which rows carry no label at all, (N,)."""
    return _levels(labels, column).codes < 0


def _levels(cells: pa.ChunkedArray, column: str) -> Levels:
    try:
        return levels_from_arrow(cells)[0]
    except DataError as error:
        raise DataError(f"column '{column}': {error}", column=column) from None


def group_codes(table: pa.Table, name: str | None) -> NDArray[np.int32] | None:
    """Codes of the groups; a row without one is a group of its own."""
    if not name:
        return None
    levels = _levels(table.column(name), name)
    alone = levels.codes < 0
    return np.where(alone, len(levels.names) + np.cumsum(alone) - 1, levels.codes).astype(np.int32)
