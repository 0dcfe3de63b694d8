"""Read the labels and groups of rows, and merge labels that arrive late."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.config.data import TabularData
from anomaly_vae.data.arrow import levels_from_arrow
from anomaly_vae.data.converters import BOOLEAN, Levels, label_spellings, level_name
from anomaly_vae.data.splitting import Rows
from anomaly_vae.data.vocabulary import ANOMALY, MAX_SHOWN, NORMAL, UNSURE, Vocabulary
from anomaly_vae.errors import DataError
from anomaly_vae.features.definition import WindowDefinition
from anomaly_vae.messages import counted, listed
from pipelines.datasets.label_files import LABEL, LabelSource, read_label_files
from pipelines.datasets.label_store import is_store, read_label_store
from pipelines.datasets.verdicts import NONE, Codes, LateLabels, Verdicts, id_texts, newest

Mask = NDArray[np.bool_]
MAX_LABELS = 50
"""Maximum number of label values that are taken for spellings of normal."""


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
    check: bool = True,
) -> Rows:
    """Read the label, group and time of each row, by which a data set is split.

    Args:
        table: N rows.
        label: the label column; None if there is none, so that every row counts as normal.
        positive: the label that means anomaly.
        group: the column of units whose rows must be in the same split; None if there is none.
        time: (N,) seconds since 1970; None if rows have no time.
        configured: the name of the label column in messages; None for ``label``.
        check: whether some label must be ``positive``, see `check_positive`.

    Raises:
        DataError: see `check_positive`.
    """
    anomaly = unlabelled = np.zeros(len(table), bool)
    if label:
        labels, name = table.column(label), configured or label
        if check:
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


# ---------------------------------------------------------------- late labels


def late_labels(source: LabelSource) -> LateLabels:
    """Read the newest late label of each row.

    Raises:
        ConfigError, StoreError: see `label_store.read_label_store`.
        DataError: see `label_files.read_label_files`.
    """
    files = tuple(place for place in source.places if not is_store(place))
    verdicts, notes = read_label_files(replace(source, places=files))
    stored = [read_label_store(url, source.model) for url in source.places if is_store(url)]
    found = newest(Verdicts.joined([verdicts, *stored]))
    return LateLabels(found.verdicts, (*notes, *found.notes))


def normal_names(table: pa.Table, label: str | None, positive: Any) -> frozenset[str]:
    """Return the label values of a table that mean normal; the first ones of very many."""
    if label is None or label not in table.column_names:
        return frozenset()
    names = _levels(table.column(label), label).without_markers().names
    return frozenset([name for name in names if name not in label_spellings(positive)][:MAX_LABELS])


def window_labels(table: pa.Table, data: TabularData) -> dict[str, list[str]]:
    """Return the values that mean normal in each label column of windows, unless very many."""
    columns = WindowDefinition(data.windows).labels
    found = {name: sorted(normal_names(table, name, data.positive)) for name in columns}
    return {name: values for name, values in found.items() if len(values) < MAX_LABELS}


@dataclass(frozen=True)
class LabelChanges:
    """Numbers of rows whose labels were changed by late ones."""

    changed: int
    to_anomaly: int
    to_normal: int
    to_unsure: int
    anomalies_before: int
    anomalies_after: int

    @classmethod
    def between(cls, before: Codes, after: Codes) -> LabelChanges:
        """Count the changes from one verdict on each of N rows to another."""
        changed = after[before != after]
        kinds = (int((changed == code).sum()) for code in (ANOMALY, NORMAL, UNSURE))
        anomalies = (int((codes == ANOMALY).sum()) for codes in (before, after))
        return cls(len(changed), *kinds, *anomalies)

    def __str__(self) -> str:
        """Describe the changes for people."""
        kinds = {"anomaly": self.to_anomaly, "normal": self.to_normal, "unsure": self.to_unsure}
        listing = ", ".join(f"{count:,} to {kind}" for kind, count in kinds.items() if count)
        return (
            f"{self.changed:,} labels changed{f' ({listing})' if listing else ''}; "
            f"{self.anomalies_before:,} anomalies before, {self.anomalies_after:,} after"
        )


@dataclass(frozen=True, eq=False)
class Relabelled:
    """A table whose label column holds late labels, too."""

    table: pa.Table
    label: str
    codes: Codes
    """Verdicts (N,) that the labels hold."""
    changes: LabelChanges
    unknown: pa.Array
    """Ids of late labels that no row has."""

    def note(self, source: LabelSource, labels: int) -> str:
        """Describe for people what ``labels`` late labels of a source changed."""
        places = listed(source.places, most=3)
        if not labels:
            return f"late labels: none yet in {places}"
        text = f"late labels of {counted(labels, 'ids')} from {places}: {self.changes}"
        if not len(self.unknown):
            return text
        some = listed(self.unknown[:MAX_SHOWN].to_pylist())
        return f"{text}; {len(self.unknown):,} of the ids match no row here, such as {some}"


def relabel(
    table: pa.Table, id_column: str, label: str | None, positive: Any, verdicts: Verdicts
) -> Relabelled:
    """Write verdicts into the label column of a table, in which unsure rows have no label.

    Without a label column, the table gets the column `LABEL`, in which every other row is normal.
    Rows that have the same id get the same label.

    Raises:
        DataError: the new column has the name of another one.
    """
    ids = id_texts(table.column(id_column))
    late, (column, current) = verdicts.on(ids), _current(table, label, positive)
    after = np.where(late == NONE, current, late)
    changes = LabelChanges.between(current, after)
    if changes.changed:
        vocabulary = Vocabulary(positive, normal_names(table, label, positive))
        column = _rewritten(column, np.where(after == current, NONE, after), vocabulary)
    unknown = verdicts.ids.filter(pc.invert(pc.is_in(verdicts.ids, value_set=ids)))
    name = label or LABEL
    return Relabelled(_with_column(table, name, column), name, after, changes, unknown)


def _with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    if name not in table.column_names:
        return table.append_column(name, column)
    return table.set_column(table.column_names.index(name), name, column)


def verdicts_of(table: pa.Table, id_column: str, label: str, positive: Any) -> Verdicts:
    """Return the verdicts that the labels of a table hold; rows without an id are left out."""
    ids, codes = id_texts(table.column(id_column)), _current(table, label, positive)[1]
    verdicts = Verdicts(ids, codes, np.full(len(codes), np.nan))
    return newest(verdicts.take(np.asarray(ids.is_valid()))).verdicts


def _current(table: pa.Table, label: str | None, positive: Any) -> tuple[pa.ChunkedArray, Codes]:
    """Return the label column of a table, and the verdicts (N,) that it holds."""
    if label is None:
        if LABEL in table.column_names:
            raise DataError(
                f"the data have a column '{LABEL}', which data.label does not name, so late labels "
                f"cannot be merged; set data.label: {LABEL}, or rename the column",
                column=LABEL,
            )
        normal = np.full(len(table), Vocabulary(positive).normal_name)
        return pa.chunked_array([pa.array(normal, pa.string())]), np.full(len(table), NORMAL)
    column = table.column(label)
    anomaly, unlabelled = label_masks(column, positive, label)
    return column, np.select([anomaly, unlabelled], [ANOMALY, UNSURE], NORMAL).astype(np.int8)


def _rewritten(column: pa.ChunkedArray, codes: Codes, vocabulary: Vocabulary) -> pa.ChunkedArray:
    """Replace the labels of rows that have a verdict; the type stays if it can hold them."""
    words = {
        NORMAL: vocabulary.normal_name,
        ANOMALY: level_name(vocabulary.positive),
        UNSURE: None,
    }
    levels = _levels(column, LABEL)
    names = np.array([*levels.names, None], object)[levels.codes]
    for code, word in words.items():
        names[codes == code] = word
    text = pa.array(names, pa.string())
    try:
        return pa.chunked_array([text.cast(column.type)])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([text])


def merge_late_labels(
    table: pa.Table, data: TabularData, model: str | None = None
) -> tuple[pa.Table, TabularData, tuple[str, ...]]:
    """Merge the late labels of a configuration into a table.

    Args:
        table: N rows.
        data: the configuration of the data.
        model: name of the model, whose labels a store is asked for; None for those of all models.

    Returns:
        The table, the configuration with the name of its label column, and notes for people.

    Raises:
        ConfigError: see `late_labels`.
        DataError: see `late_labels` and `relabel`.
    """
    if not (data.label_places and data.id):
        return table, data, ()
    vocabulary = Vocabulary(data.positive, normal_names(table, data.label, data.positive))
    source = LabelSource(
        data.label_places, data.id, data.label, vocabulary, data.csv, data.time_format, model
    )
    found = late_labels(source)
    merged = relabel(table, data.id, data.label, data.positive, found.verdicts)
    notes = (*found.notes, merged.note(source, len(found.verdicts)))
    return merged.table, data.model_copy(update={"label": merged.label}), notes
