"""Show the rows or images with the highest scores, with reasons in words."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from anomaly_vae.messages import plain_number
from anomaly_vae.scoring.detector import Contribution, Explanation, RegionContribution
from anomaly_vae.scoring.wording import Wording
from pipelines import console
from pipelines.datasets.reading.plain_text import source_of

MAX_SHOWN = 10
"""Maximum number of rows or images that are shown."""

Place = tuple[float, str, int]
"""Score, part and position of a row in the part."""


def show_highest(folder: Path, parts: Sequence[str], wording: Wording) -> None:
    """Print the explained rows with the highest scores in the parts of a result, if there are any.

    Args:
        folder: the folder of the result.
        parts: names of the parts.
        wording: words for the columns of the model.
    """
    if (
        not parts
        or parts[0].endswith(".csv")
        or "rest" not in pq.read_schema(source_of(folder / parts[0])).names
    ):
        return
    places = (place for name in parts for place in _highest(folder, name))
    found = _rows(folder, heapq.nlargest(MAX_SHOWN, places))
    rows = [
        (str(next(iter(row.values()))), plain_number(row["p_value"]), _reasons(row, wording))
        for row in found
    ]
    if rows:
        title = f"The {len(rows)} highest scores, and why"
        console.table(title, (next(iter(found[0])), "p-value", "reasons"), rows)


def _highest(folder: Path, name: str) -> Iterator[Place]:
    """Yield the explained rows of a part with the highest scores; only two columns are read."""
    table = pq.read_table(source_of(folder / name), columns=["score", "rest"])
    score = table.column("score").to_numpy()
    rows = np.flatnonzero(table.column("rest").is_valid().to_numpy())
    for row in rows[np.argsort(-score[rows], kind="stable")[:MAX_SHOWN]].tolist():
        yield float(score[row]), name, row


def _rows(folder: Path, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Read rows at these places, in their order; each part is read once."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for _, name, row in places:
        wanted[name].append(row)
    read: dict[tuple[str, int], dict[str, Any]] = {}
    for name, rows in wanted.items():
        table = pq.read_table(source_of(folder / name)).take(rows)
        read.update(zip(((name, row) for row in rows), table.to_pylist(), strict=True))
    return [read[name, row] for _, name, row in places]


def _reasons(row: Mapping[str, Any], wording: Wording) -> str:
    explanation = Explanation(
        tuple(Contribution(**entry) for entry in row.get("contributions") or ()),
        row["rest"],
        row["kl"],
        tuple(_region(entry) for entry in row.get("regions") or ()),
    )
    return "; ".join(wording.reasons(explanation)) or "no region stands out"


def _region(entry: Mapping[str, Any]) -> RegionContribution:
    x0, y0, x1, y1 = entry["box"]
    return RegionContribution((x0, y0, x1, y1), entry["nats"], entry["share"])
