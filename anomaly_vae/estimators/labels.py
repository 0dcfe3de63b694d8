"""Read the labels that mark known anomalies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed

Mask = NDArray[np.bool_]
EXPECTED = (
    "mark known anomalies by -1 beside 1 for normal rows, as predict does, or by 1 (true) beside 0 "
    "(false)"
)


def known_anomalies(y: Any, rows: int) -> Mask:
    """Return which of N rows are known anomalies, (N,).

    Two conventions are understood: −1 for anomalies beside 1 for normal rows, as estimators of
    outliers predict them, and 1 (true) for anomalies beside 0 (false). A row whose label is missing
    counts as normal.

    Args:
        y: (N,) labels.
        rows: N, the number of rows.

    Raises:
        DataError: there are more or fewer labels than rows, or they follow neither convention.

    >>> known_anomalies([1, -1, 1], 3).tolist(), known_anomalies([0, 1, None], 3).tolist()
    ([False, True, False], [False, True, False])
    """
    labels = pd.Series(np.asarray(y, object).ravel())
    if np.shape(y)[:1] != (rows,) or len(labels) != rows:
        raise DataError(f"y has shape {np.shape(y)}, and X has {rows} rows")
    given = labels.notna()
    values = set(labels[given])
    if values == {1}:
        raise DataError(f"y is 1 in every row that has a label, which may mean either: {EXPECTED}")
    for positive, allowed in ((1, {0, 1}), (-1, {-1, 1})):
        if values <= allowed:
            return np.array([value == positive for value in labels.where(given, None)], bool)
    raise DataError(f"y has the values {listed(sorted(map(str, values)))}: {EXPECTED}")
