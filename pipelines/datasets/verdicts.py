"""Define verdicts on rows, which rows they are about, and which verdict on a row counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.data.arrow import is_text, text_from_arrow
from anomaly_vae.data.vocabulary import WORDS
from anomaly_vae.messages import counted, listed

NONE = -1
"""Code of a row without a verdict."""
DECIMALS = r"^([+-]?[0-9]+)\.0*$"
"""Pattern of a whole number with decimals, as in `converters.WHOLE`."""
ID_TYPE = pa.large_string()
"""Type of ids."""
MAX_SHOWN = 5
"""Maximum number of ids that a message lists."""

Codes = NDArray[np.int8]
Seconds = NDArray[np.float64]


def id_texts(ids: pa.Array) -> pa.Array:
    """Return ids (N,) as text in one spelling: 5, 5.0, "5" and "5.0" are the same id.

    Ids that are missing, or bytes that are not UTF-8, are null.
    """
    plain, _ = text_from_arrow(ids)
    if pa.types.is_floating(plain.type):
        plain = _whole_as_integers(pc.if_else(pc.is_nan(plain), None, plain))
    text = plain if is_text(plain.type) else plain.cast(pa.string())
    trimmed = pc.utf8_trim_whitespace(text.cast(ID_TYPE))
    return pc.replace_substring_regex(trimmed, DECIMALS, r"\1")


def _whole_as_integers(numbers: pa.Array) -> pa.Array:
    try:
        return numbers.cast(pa.int64())
    except pa.ArrowInvalid:  # some are not whole
        return numbers


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Verdicts on N rows, which are identified by their ids."""

    ids: pa.Array
    """Ids (N,) as text, see `id_texts`."""
    codes: Codes
    """Verdicts (N,), see `WORDS`."""
    at: Seconds
    """Times (N,) of the verdicts in seconds since 1970, NaN where unknown."""

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def empty(cls) -> Verdicts:
        """Return no verdicts."""
        return cls(pa.array([], ID_TYPE), np.zeros(0, np.int8), np.zeros(0))

    @classmethod
    def joined(cls, parts: Collection[Verdicts]) -> Verdicts:
        """Return the verdicts of several parts, in their order."""
        if not parts:
            return cls.empty()
        ids = pa.chunked_array([part.ids for part in parts], ID_TYPE).combine_chunks()
        codes = np.concatenate([part.codes for part in parts])
        return cls(ids, codes, np.concatenate([part.at for part in parts]))

    @classmethod
    def from_table(cls, table: pa.Table) -> Verdicts:
        """Restore verdicts from `table`."""
        words = table.column("label").to_pylist()
        at = table.column("at").to_numpy().astype(float)
        codes = np.array([WORDS.index(word) for word in words], np.int8)
        return cls(table.column("id").combine_chunks().cast(ID_TYPE), codes, at)

    @property
    def table(self) -> pa.Table:
        """The verdicts as a table with the columns ``id``, ``label`` and ``at``."""
        words = pa.array([WORDS[code] for code in self.codes], pa.string())
        at = pa.array(self.at, pa.float64(), from_pandas=True)
        return pa.table({"id": self.ids, "label": words, "at": at})

    def take(self, rows: NDArray[Any]) -> Verdicts:
        """Return the verdicts at these positions, or where a mask (N,) is true."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(self, ids=self.ids.take(pa.array(rows)), codes=self.codes[rows],
                       at=self.at[rows])  # fmt: skip

    def on(self, ids: pa.Array) -> Codes:
        """Return the verdict on each of M rows by its id (M,), `NONE` without one."""
        return np.append(self.codes, NONE).astype(np.int8)[self.positions(ids)]

    def over(self, others: Verdicts) -> Verdicts:
        """Return these verdicts, and others on rows that these are not about."""
        return self.joined([others.take(self.positions(others.ids) < 0), self])

    def positions(self, ids: pa.Array) -> NDArray[np.int64]:
        """Return the position of the verdict on each of M rows, −1 without one."""
        found = pc.index_in(ids, value_set=self.ids, skip_nulls=True)
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


@dataclass(frozen=True, eq=False)
class LateLabels:
    """The newest verdict on each row, and notes for people on how it was found."""

    verdicts: Verdicts
    notes: tuple[str, ...] = ()


def newest(verdicts: Verdicts) -> LateLabels:
    """Keep the newest verdict on each row: by time, else the last in order.

    A verdict without a time counts as older than all others. Different verdicts on a row are a
    conflict if their times do not show that the one kept is the newest; a note names such rows.
    """
    _, row = np.unique(_as_codes(verdicts.ids), return_inverse=True)
    time = np.nan_to_num(verdicts.at, nan=-np.inf)
    order = np.lexsort((np.arange(len(row)), time, row))
    last = order[np.append(np.diff(row[order]) > 0, True)] if len(order) else order
    winner = last[row] if len(last) else row
    differing = verdicts.codes != verdicts.codes[winner]
    conflict = differing & ~(verdicts.at < verdicts.at[winner])
    kept = verdicts.take(np.sort(last))
    return LateLabels(kept, tuple(_notes(verdicts, len(kept), verdicts.take(conflict))))


def _as_codes(ids: pa.Array) -> NDArray[np.int64]:
    return np.asarray(ids.dictionary_encode().indices.to_numpy(zero_copy_only=False), np.int64)


def _notes(verdicts: Verdicts, rows: int, conflicts: Verdicts) -> Iterator[str]:
    if len(verdicts) > rows:
        about = counted(rows, "ids")
        yield f"{len(verdicts):,} late labels are about {about}; the newest of each counts"
    if len(conflicts):
        ids = list(dict.fromkeys(conflicts.ids.to_pylist()))
        yield (
            "Warning: late labels of the same id contradict each other "
            f"({counted(len(ids), 'ids')}: {listed(ids, most=MAX_SHOWN)}), and no time 'at' says "
            "which is newer; the last one counts"
        )
