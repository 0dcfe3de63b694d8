"""Keep labels: add new ones, and read those that count."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from anomaly_vae.review.base import PER_SECOND, ReviewStore
from anomaly_vae.review.labels import VERDICTS, CurrentLabel, Label, LabelStats
from anomaly_vae.review.tables import LABELS

__all__ = ["LabelStore"]

MAX_IDS = 500
"""Maximum number of ids in one query."""
FETCHED_ROWS = 10_000
"""Number of rows that are fetched at a time."""

Key = tuple[str, str, str]
"""Model, id and reviewer."""


class LabelStore(ReviewStore):
    """The labels in a database; threads may share one.

    Rows are only ever added. For each model, id and reviewer the newest label counts, by the time
    of the verdict, and, of equal times, by arrival. If reviewers disagree, the newest of their
    labels counts, and the others are its ``conflicts``. Several processes may use a store at once.

    Args:
        address: ``sqlite:///labels.db`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        ConfigError: it is no such address, or its driver is not installed.

    >>> from tempfile import TemporaryDirectory
    >>> stolen = Label.of("fraud", 12, "anomaly", "alice", note="card stolen")
    >>> with TemporaryDirectory() as folder, LabelStore(f"sqlite:///{folder}/labels.db") as store:
    ...     print(store.add([stolen]), store.add([stolen]))
    ...     print([(one.id, one.label, one.who) for one in store.newest("fraud")])
    [True] [False]
    [('12', 'anomaly', 'alice')]
    """

    noun = "label store"
    creation = "anomaly-vae labels import"

    # ------------------------------------------------------------ writing

    def add(self, labels: Sequence[Label]) -> list[bool]:
        """Add labels, all of them or none.

        A label without a time is not added if it equals the newest of its id and reviewer; one with
        a time is not added if the store has it.

        Args:
            labels: N labels, in the order in which they were given.

        Returns:
            N values: whether each label was added.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        with self._writing() as connection:
            history = _History(round(time.time() * PER_SECOND))
            history.read(connection, labels)
            added = [history.add(label) for label in labels]
            if history.rows:
                connection.execute(insert(LABELS), history.rows)
        return added

    # ------------------------------------------------------------ reading

    def newest(self, model: str | None = None) -> Iterator[CurrentLabel]:
        """Yield the label of each id that counts, sorted by model and id.

        Args:
            model: name of the model; None for all models.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        with self._reading() as connection:
            connection.execution_options(yield_per=FETCHED_ROWS)
            yield from current_labels(connection, model)

    def history(self, model: str, row_id: str) -> list[Label]:
        """Return all labels of an id, with their notes, in the order of their arrival.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        chosen = (LABELS.c.model == model, LABELS.c.row_id == row_id)
        with self._reading() as connection:
            rows = connection.execute(select(LABELS).where(*chosen).order_by(LABELS.c.number))
            return list(map(_label, rows))

    def since(self, number: int) -> tuple[list[Label], int]:
        """Return the labels that arrived after one, and the number of the last of them.

        Args:
            number: number of a label in the order of arrival; 0 for all labels.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        query = select(LABELS).where(LABELS.c.number > number).order_by(LABELS.c.number)
        with self._reading() as connection:
            rows = connection.execute(query.limit(FETCHED_ROWS)).all()
        return list(map(_label, rows)), rows[-1].number if rows else number

    def stats(self, model: str | None = None) -> LabelStats:
        """Count the labels.

        Args:
            model: name of the model; None for all models.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        verdicts, conflicts = Counter[str](dict.fromkeys(VERDICTS, 0)), 0
        for label in self.newest(model):
            verdicts[label.label] += 1
            conflicts += bool(label.conflicts)
        with self._reading() as connection:
            rows = connection.execute(_by_reviewer(model)).all()
        return LabelStats(
            labels=sum(row.labels for row in rows),
            verdicts=dict(verdicts),
            conflicts=conflicts,
            reviewers={row.who: row.labels for row in rows},
            oldest=min((row.oldest / PER_SECOND for row in rows), default=None),
            newest=max((row.newest / PER_SECOND for row in rows), default=None),
        )


def current_labels(
    connection: Connection, model: str | None, ids: Sequence[str] | None = None
) -> Iterator[CurrentLabel]:
    """Yield the label of each id that counts, sorted by model and id; ``ids`` None for all ids."""
    rows = connection.execute(_newest(model, ids))
    for (name, row_id), group in groupby(rows, lambda row: (row.model, row.row_id)):
        yield _current(name, row_id, list(group))


def _newest(model: str | None, ids: Sequence[str] | None) -> Any:
    """Select the newest label of each id and reviewer; those of an id follow from new to old."""
    columns = LABELS.c
    newest_first = (columns.at_us.desc(), columns.number.desc())
    of_reviewer = (columns.model, columns.row_id, columns.who)
    place = func.row_number().over(partition_by=of_reviewer, order_by=newest_first)
    chosen = _of_model(select(LABELS, place.label("place")), model)
    ranked = (chosen if ids is None else chosen.where(columns.row_id.in_(ids))).subquery()
    kept = select(ranked).where(ranked.c.place == 1)
    return kept.order_by(
        ranked.c.model, ranked.c.row_id, ranked.c.at_us.desc(), ranked.c.number.desc()
    )


def _by_reviewer(model: str | None) -> Any:
    times = func.min(LABELS.c.at_us).label("oldest"), func.max(LABELS.c.at_us).label("newest")
    counted = select(LABELS.c.who, func.count().label("labels"), *times)
    return _of_model(counted, model).group_by(LABELS.c.who).order_by(LABELS.c.who)


def _of_model(statement: Any, model: str | None) -> Any:
    return statement if model is None else statement.where(LABELS.c.model == model)


def _label(row: Row[Any]) -> Label:
    return Label(row.model, row.row_id, row.label, row.who, row.at_us / PER_SECOND, row.note)


def _current(model: str, row_id: str, rows: Sequence[Row[Any]]) -> CurrentLabel:
    """Return the label that counts of the newest ones of all reviewers, the newest first."""
    first = rows[0]
    conflicts = {row.who: row.label for row in rows if row.label != first.label}
    at = first.at_us / PER_SECOND
    return CurrentLabel(model, row_id, first.label, first.who, at, first.note, conflicts)


@dataclass
class _History:
    """Stored labels on the ids of new ones, and the rows to add."""

    received: int
    """Time of arrival of the new labels, in microseconds since 1970."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    newest: dict[Key, tuple[int, str]] = field(default_factory=dict)
    """Time and verdict of the newest label."""
    known: set[tuple[Key, int, str, str]] = field(default_factory=set)
    """Labels by key, time, verdict and note."""

    def read(self, connection: Connection, labels: Iterable[Label]) -> None:
        """Read the labels of the same ids and reviewers in the order of their arrival."""
        for (model, who), ids in _ids_by_reviewer(labels).items():
            for start in range(0, len(ids), MAX_IDS):
                some = LABELS.c.row_id.in_(ids[start : start + MAX_IDS])
                chosen = (LABELS.c.model == model, LABELS.c.who == who, some)
                query = select(LABELS).where(*chosen).order_by(LABELS.c.number)
                for row in connection.execute(query):
                    self._note((model, row.row_id, who), row.at_us, row.label, row.note)

    def _note(self, key: Key, at: int, label: str, note: str) -> None:
        self.known.add((key, at, label, note))
        if key not in self.newest or at >= self.newest[key][0]:
            self.newest[key] = at, label

    def add(self, label: Label) -> bool:
        """Add a label unless it says nothing new; return whether it was added."""
        key = label.model, label.id, label.who
        newest_at, newest = self.newest.get(key, (0, None))
        if label.at is None:
            at = max(self.received, newest_at)  # clocks may differ, but the last word counts
            repeated = newest == label.label
        else:
            at = round(label.at * PER_SECOND)
            repeated = (key, at, label.label, label.note) in self.known
        if repeated:
            return False
        self._note(key, at, label.label, label.note)
        self.rows.append(
            {"model": label.model, "row_id": label.id, "label": label.label, "who": label.who,
             "at_us": at, "received_us": self.received, "note": label.note}
        )  # fmt: skip
        return True


def _ids_by_reviewer(labels: Iterable[Label]) -> Mapping[tuple[str, str], Sequence[str]]:
    """Return the ids of labels without repetition, by model and reviewer."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for label in labels:
        found.setdefault((label.model, label.who), {})[label.id] = None
    return {reviewer: list(ids) for reviewer, ids in found.items()}
