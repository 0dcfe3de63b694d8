"""Keep cases, snoozes and counts of p-values: add them, and read the queue."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from anomaly_vae.errors import StoreError
from anomaly_vae.review.base import PER_SECOND, ReviewStore, batches
from anomaly_vae.review.case_queries import (
    DECISIVE,
    beyond,
    conditions,
    day_number,
    is_status,
    order_keys,
    ordered,
    verdict,
)
from anomaly_vae.review.cases import (
    SECONDS_PER_DAY,
    STATUSES,
    Case,
    CaseFilter,
    CaseReason,
    CaseRecord,
    Order,
    Snooze,
    day_of,
    microseconds,
)
from anomaly_vae.review.labels import CurrentLabel, Label
from anomaly_vae.review.p_values import PValueCounts
from anomaly_vae.review.precision import Share
from anomaly_vae.review.store import FETCHED_ROWS, MAX_IDS, LabelStore, current_labels
from anomaly_vae.review.tables import CASES, COUNTED, P_VALUES, SNOOZES

__all__ = ["CaseStats", "CaseStore", "Pruned"]

EVERY_CASE = CaseFilter()
"""Filter that all cases fit."""
EPOCH = dt.date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class CaseStats:
    """Numbers of cases in a store.

    ``statuses`` counts all cases by status and ``snoozed`` the flagged ones that a snooze keeps
    out of the queue. ``flags`` is the share of anomalies among the reviewed flags (precision), and
    ``sample`` that among the reviewed rows that were drawn at random from those not flagged.
    ``oldest_open`` is the time at which the oldest open flag was scored, in seconds since 1970;
    None if there is none.

    >>> CaseStats({"open": 2, "decided": 1, "snoozed": 0}, Share(1, 1), Share(0, 0), 1.0).cases
    3
    """

    statuses: Mapping[str, int]
    flags: Share
    sample: Share
    oldest_open: float | None

    @property
    def cases(self) -> int:
        """Number of cases."""
        return sum(self.statuses.values())


@dataclass(frozen=True, slots=True)
class Pruned:
    """The number of deleted cases, and the paths of their images.

    >>> Pruned(2, ("scan.png",)).cases
    2
    """

    cases: int
    images: tuple[str, ...]


class CaseStore(ReviewStore):
    """The cases in a database, with the labels that people give to their rows.

    The cases and the labels have the same database, unless ``labels`` names another one; its
    labels are then copied before each look. Several processes may use a store at once.

    Args:
        address: ``sqlite:///cases.db`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.
        labels: address of the label store; empty for the same database.

    Raises:
        ConfigError: it is no such address, or its driver is not installed.

    >>> from tempfile import TemporaryDirectory
    >>> case = Case.of(model="fraud", row=12, score=9.5, p_value=0.001, threshold=5.0, alpha=0.01)
    >>> with TemporaryDirectory() as folder, CaseStore(f"sqlite:///{folder}/cases.db") as store:
    ...     print(store.add([case]), store.add([case]))
    ...     print([(one.case.row_id, one.status) for one in store.queue()])
    [True] [False]
    [('12', 'open')]
    """

    noun = "case store"
    creation = "anomaly-vae cases import"

    def __init__(self, address: str, labels: str = "") -> None:
        super().__init__(address)
        self._labels = LabelStore(address)
        self._others = LabelStore(labels) if labels and labels != address else None
        self._copied = 0

    @property
    def labels(self) -> LabelStore:
        """The store that new labels are written to."""
        return self._others or self._labels

    def close(self) -> None:
        """Close all connections."""
        for store in filter(None, (self._labels, self._others)):
            store.close()
        super().close()

    # ------------------------------------------------------------ cases

    def add(self, cases: Sequence[Case]) -> list[bool]:
        """Add cases, all of them or none.

        A case is not added if the store has one of the same model, version, row and time.

        Args:
            cases: N cases.

        Returns:
            N values: whether each case was added.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        return [record is not None for record in self.record(cases)]

    def record(self, cases: Sequence[Case]) -> list[CaseRecord | None]:
        """Add cases as `add` does, and return each new one with its number and its snooze.

        A case of an entity that was snoozed when the case was recorded gets that snooze.
        """
        with self._writing() as connection:
            known, snoozes = _known_keys(connection, cases), _Snoozes(connection)
            new: dict[int, Case] = {}
            for place, case in enumerate(cases):
                if case.key not in known:
                    known.add(case.key)
                    new[place] = replace(case, snooze=snoozes.of(case))
            numbers = iter(_insert(connection, list(new.values())))
        return [
            CaseRecord(next(numbers), new[place], None) if place in new else None
            for place in range(len(cases))
        ]

    def case(self, number: int) -> CaseRecord | None:
        """Return a case by its number; None if there is none."""
        return next(iter(self._records(select(CASES).where(CASES.c.number == number))), None)

    def queue(
        self,
        chosen: CaseFilter = CaseFilter(status="open"),  # noqa: B008  # it is frozen
        order: Order = "p_value",
        offset: int = 0,
        limit: int = 100,
    ) -> list[CaseRecord]:
        """Return a page of the cases that fit a filter, in an order.

        Args:
            chosen: the filter.
            order: lowest p-value, largest amount, entity by name, or newest time first.
            offset: number of cases to skip.
            limit: maximum number of cases.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        statement = select(CASES).where(*conditions(chosen))
        page = ordered(statement, order_keys(order)).offset(offset).limit(limit)
        return self._records(page)

    def count(self, chosen: CaseFilter = EVERY_CASE) -> int:
        """Count the cases that fit a filter.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        self._copy_labels()
        with self._reading() as connection:
            statement = select(func.count()).select_from(CASES).where(*conditions(chosen))
            return connection.execute(statement).scalar_one()

    def neighbours(
        self, number: int, chosen: CaseFilter = EVERY_CASE, order: Order = "p_value"
    ) -> tuple[int | None, int | None]:
        """Return the numbers of the cases before and after one, among those that fit a filter.

        The case itself need not fit, as its label may just have decided it.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        self._copy_labels()
        keys = order_keys(order)
        with self._reading() as connection:
            own = select(*(key for key, _ in keys)).where(CASES.c.number == number)
            values = connection.execute(own).first()
            if values is None:
                return None, None
            found = []
            for before in (True, False):
                place = beyond(keys, tuple(values), before)
                other = select(CASES.c.number).where(place, *conditions(chosen)).limit(1)
                found.append(connection.execute(ordered(other, keys, before)).scalar())
        return found[0], found[1]

    def history_of(
        self, model: str, entity_column: str, entity: str, limit: int = 50
    ) -> list[CaseRecord]:
        """Return the newest cases of an entity, whatever their status.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        chosen = CaseFilter(model=model, entity_column=entity_column, entity=entity)
        return self.queue(chosen, "day", limit=limit)

    def models(self) -> list[tuple[str, str]]:
        """Return the models with cases or p-values, and their versions.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        cases = select(CASES.c.model, CASES.c.version)
        with self._reading() as connection:
            rows = connection.execute(cases.union(select(P_VALUES.c.model, P_VALUES.c.version)))
            return sorted((row.model, row.version) for row in rows)

    def days(self, chosen: CaseFilter = EVERY_CASE) -> dict[dt.date, int]:
        """Count the cases that fit a filter by the day of the event (UTC), the newest day first.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        self._copy_labels()
        per_day = SECONDS_PER_DAY * PER_SECOND
        clock = (CASES.c.at_us % per_day + per_day) % per_day  # times before 1970 are negative
        found = select(((CASES.c.at_us - clock) // per_day).label("day"))
        part = found.where(*conditions(chosen)).subquery()
        statement = select(part.c.day, func.count().label("cases")).group_by(part.c.day)
        with self._reading() as connection:
            counts = {int(row.day): row.cases for row in connection.execute(statement)}
        return {_date(number): counts[number] for number in sorted(counts, reverse=True)}

    def label_history(self, model: str, row_id: str) -> list[Label]:
        """Return all labels of a row, with their notes, in the order of their arrival.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        self._copy_labels()
        return self._labels.history(model, row_id)

    def _records(self, statement: Select[Any]) -> list[CaseRecord]:
        self._copy_labels()
        with self._reading() as connection:
            rows = connection.execute(statement).all()
            labels = _labels_of(connection, rows)
        return [
            CaseRecord(row.number, _case(row), labels.get((row.model, row.row_id))) for row in rows
        ]

    def all_cases(self, chosen: CaseFilter = EVERY_CASE) -> Iterator[CaseRecord]:
        """Yield all cases that fit a filter, in the order of their arrival.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        last = 0
        while True:
            later = select(CASES).where(CASES.c.number > last, *conditions(chosen))
            found = self._records(later.order_by(CASES.c.number).limit(FETCHED_ROWS))
            if not found:
                return
            yield from found
            last = found[-1].number

    def _copy_labels(self) -> None:
        """Copy new labels of another store, which may be down; the known ones then count."""
        while self._others:
            try:
                labels, last = self._others.since(self._copied)
            except StoreError:
                return
            if not labels:
                return
            self._labels.add(labels)
            self._copied = last

    # ------------------------------------------------------------ snoozes

    def snooze(self, snooze: Snooze) -> Snooze:
        """Keep the flags of an entity out of the queue, and its open cases too.

        Returns:
            The snooze with its number.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        with self._writing() as connection:
            result = connection.execute(insert(SNOOZES).values(_snooze_row(snooze)))
            (number,) = result.inserted_primary_key or (0,)
            own = CASES.c.entity_column == snooze.entity_column, CASES.c.entity == snooze.entity
            connection.execute(update(CASES).where(*own, is_status("open")).values(snooze=number))
        return replace(snooze, number=number)

    def end_snooze(self, number: int, who: str, reason: str = "", at: float | None = None) -> bool:
        """End a snooze now; the cases that it kept out return to the queue.

        The snooze stays stored; its end is a further row.

        Returns:
            Whether the snooze was active.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        at = time.time() if at is None else at
        with self._writing() as connection:
            active = {one.number: one for one in _active_snoozes(connection, at)}
            if (snooze := active.get(number)) is None:
                return False
            end = replace(snooze, until=at, at=at, who=who, reason=reason)
            connection.execute(insert(SNOOZES).values(_snooze_row(end)))
            connection.execute(update(CASES).where(CASES.c.snooze == number).values(snooze=None))
        return True

    def active_snoozes(self, at: float | None = None) -> list[Snooze]:
        """Return the snoozes that are active at a time, the newest first.

        Args:
            at: time in seconds since 1970; None for now.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        with self._reading() as connection:
            return _active_snoozes(connection, time.time() if at is None else at)

    def snoozes(self, entity_column: str | None = None, entity: str | None = None) -> list[Snooze]:
        """Return all snoozes and ends of snoozes that are stored, the newest first.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        wanted = {SNOOZES.c.entity_column: entity_column, SNOOZES.c.entity: entity}
        chosen = [column == value for column, value in wanted.items() if value is not None]
        statement = select(SNOOZES).where(*chosen).order_by(SNOOZES.c.number.desc())
        with self._reading() as connection:
            return list(map(_snooze, connection.execute(statement)))

    # ------------------------------------------------------------ p-values

    def add_p_values(self, counts: Sequence[PValueCounts], source: str = "") -> bool:
        """Add numbers of scored rows to those that are stored.

        Args:
            counts: numbers by model, version and day.
            source: name of this batch, which is counted once; empty: counted each time.

        Returns:
            Whether the batch was counted.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        with self._writing() as connection:
            if source and not _claim(connection, source):
                return False
            rows = [
                {"model": one.model, "version": one.version, "day": day_number(one.day),
                 "upper": upper, "rows": rows}
                for one in counts for upper, rows in one.bins.items()
            ]  # fmt: skip
            if rows:
                connection.execute(_count_statement(connection), rows)
        return True

    def p_values(
        self,
        model: str,
        version: str | None = None,
        first_day: dt.date | None = None,
        last_day: dt.date | None = None,
    ) -> list[PValueCounts]:
        """Return the numbers of scored rows by day and version, the oldest day first.

        Args:
            model: name of the model.
            version: version of the model; None for all versions.
            first_day: first day (UTC); None for all.
            last_day: last day (UTC), included; None for all.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        columns = P_VALUES.c
        chosen = [columns.model == model]
        chosen += [] if version is None else [columns.version == version]
        chosen += [columns.day >= day_number(first_day)] if first_day else []
        chosen += [columns.day <= day_number(last_day)] if last_day else []
        keys = columns.day, columns.version
        with self._reading() as connection:
            rows = connection.execute(
                select(P_VALUES).where(*chosen).order_by(*keys, columns.upper)
            ).all()
        return [
            PValueCounts(model, name, _date(day), {row.upper: row.rows for row in some})
            for (day, name), some in groupby(rows, lambda row: (row.day, row.version))
        ]

    def reviewed(
        self,
        model: str,
        version: str | None = None,
        first_day: dt.date | None = None,
        last_day: dt.date | None = None,
    ) -> list[tuple[float, bool]]:
        """Return the p-value of each decided flag, and whether it is an anomaly; lowest first.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        chosen = CaseFilter(
            model=model, version=version, status="decided", kind="flagged", first_day=first_day,
            last_day=last_day,
        )  # fmt: skip
        self._copy_labels()
        word = verdict().label("verdict")
        statement = select(CASES.c.p_value, word).where(*conditions(chosen))
        with self._reading() as connection:
            rows = connection.execute(statement.order_by(CASES.c.p_value)).all()
        return [(row.p_value, row.verdict == "anomaly") for row in rows]

    # ------------------------------------------------------------ all of it

    def stats(self, model: str | None = None, since: float | None = None) -> CaseStats:
        """Count the cases.

        Args:
            model: name of the model; None for all models.
            since: time of scoring of the oldest case to count, in seconds since 1970; None: all.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        self._copy_labels()
        chosen = [] if model is None else [CASES.c.model == model]
        chosen += [] if since is None else [CASES.c.recorded_us >= microseconds(since)]
        is_snoozed = CASES.c.snooze.is_not(None)
        judged = select(CASES.c.kind, is_snoozed.label("snoozed"), verdict().label("verdict"))
        judged = judged.add_columns(CASES.c.recorded_us).where(*chosen)
        part = judged.subquery()
        keys = part.c.kind, part.c.snoozed, part.c.verdict
        oldest = func.min(part.c.recorded_us).label("oldest")
        grouped = select(*keys, func.count().label("cases"), oldest).group_by(*keys)
        with self._reading() as connection:
            return _stats(connection.execute(grouped).all())

    def prune(self, days: float, now: float | None = None) -> Pruned:
        """Delete cases, counts of p-values and ended snoozes of a certain age; labels are kept.

        Args:
            days: age in days since scoring; for counts, since the day that they belong to.
            now: present time in seconds since 1970; None for now.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        end = (time.time() if now is None else now) - days * SECONDS_PER_DAY
        old = CASES.c.recorded_us < microseconds(end)
        with self._writing() as connection:
            images = select(CASES.c.image).where(old, CASES.c.image.is_not(None))
            kept = select(CASES.c.image).where(~old, CASES.c.image.is_not(None))
            paths = set(connection.execute(images).scalars()) - set(
                connection.execute(kept).scalars()
            )
            deleted = connection.execute(delete(CASES).where(old)).rowcount
            connection.execute(delete(P_VALUES).where(P_VALUES.c.day < day_number(day_of(end))))
            connection.execute(delete(COUNTED).where(COUNTED.c.at_us < microseconds(end)))
            connection.execute(delete(SNOOZES).where(SNOOZES.c.until_us < microseconds(end)))
        return Pruned(deleted, tuple(sorted(paths)))


def _date(number: int) -> dt.date:
    return EPOCH + dt.timedelta(days=number)


def _known_keys(connection: Connection, cases: Sequence[Case]) -> set[str]:
    known: set[str] = set()
    for keys in batches((case.key for case in cases), MAX_IDS):
        known.update(connection.execute(select(CASES.c.key).where(CASES.c.key.in_(keys))).scalars())
    return known


def _insert(connection: Connection, cases: Sequence[Case]) -> list[int]:
    """Insert cases and return their numbers, in the same order."""
    if not cases:
        return []
    statement = insert(CASES).returning(CASES.c.number, sort_by_parameter_order=True)
    return list(connection.execute(statement, list(map(_row, cases))).scalars())


def _row(case: Case) -> dict[str, Any]:
    row = {one.name: getattr(case, one.name) for one in CASES.columns if hasattr(case, one.name)}
    return row | {
        "key": case.key,
        "at_us": microseconds(case.at),
        "recorded_us": microseconds(case.recorded_at),
        "fields": json.dumps(dict(case.fields)),
        "reasons": json.dumps([asdict(reason) for reason in case.reasons]),
    }


def _case(row: Row[Any]) -> Case:
    values = {name: getattr(row, name) for name in Case.__dataclass_fields__ if hasattr(row, name)}
    values |= {
        "at": row.at_us / PER_SECOND,
        "recorded_at": row.recorded_us / PER_SECOND,
        "fields": json.loads(row.fields),
        "reasons": tuple(CaseReason(**reason) for reason in json.loads(row.reasons)),
    }
    return Case(**values)


def _labels_of(
    connection: Connection, rows: Iterable[Row[Any]]
) -> dict[tuple[str, str], CurrentLabel]:
    """Return the labels that count of the rows of cases, by model and id."""
    ids: dict[str, dict[str, None]] = {}
    for row in rows:
        ids.setdefault(row.model, {})[row.row_id] = None
    return {
        (label.model, label.id): label
        for model, names in ids.items()
        for some in batches(names, MAX_IDS)
        for label in current_labels(connection, model, some)
    }


class _Snoozes:
    """The snoozes of a database, by entity, from new to old."""

    def __init__(self, connection: Connection) -> None:
        self._found: dict[tuple[str, str], list[Snooze]] = {}
        for row in connection.execute(select(SNOOZES).order_by(SNOOZES.c.number.desc())):
            snooze = _snooze(row)
            self._found.setdefault((snooze.entity_column, snooze.entity), []).append(snooze)

    def of(self, case: Case) -> int | None:
        """Return the number of the snooze that was active when a case was recorded."""
        if case.entity_column is None or case.entity is None:
            return None
        some = self._found.get((case.entity_column, case.entity), ())
        snooze = next((one for one in some if one.at <= case.recorded_at), None)
        return snooze.number if snooze and case.recorded_at < snooze.until else None


def _snooze_row(snooze: Snooze) -> dict[str, Any]:
    return {
        "entity_column": snooze.entity_column, "entity": snooze.entity, "reason": snooze.reason,
        "who": snooze.who, "at_us": microseconds(snooze.at), "until_us": microseconds(snooze.until),
    }  # fmt: skip


def _snooze(row: Row[Any]) -> Snooze:
    until, at = row.until_us / PER_SECOND, row.at_us / PER_SECOND
    return Snooze(row.entity_column, row.entity, until, row.reason, row.who, at, row.number)


def _active_snoozes(connection: Connection, at: float) -> list[Snooze]:
    """Return the newest snooze of each entity that had begun at a time, if it had not ended."""
    entity = SNOOZES.c.entity_column, SNOOZES.c.entity
    newest = select(func.max(SNOOZES.c.number)).where(SNOOZES.c.at_us <= microseconds(at))
    chosen = SNOOZES.c.number.in_(newest.group_by(*entity).scalar_subquery())
    active = SNOOZES.c.until_us > microseconds(at)
    statement = select(SNOOZES).where(chosen, active).order_by(SNOOZES.c.number.desc())
    return list(map(_snooze, connection.execute(statement)))


def _claim(connection: Connection, source: str) -> bool:
    """Note that a batch of p-values is counted; return False if it was."""
    known = connection.execute(select(COUNTED.c.at_us).where(COUNTED.c.source == source)).first()
    if known is None:
        row = {"source": source, "at_us": microseconds(time.time())}
        connection.execute(insert(COUNTED).values(row))
    return known is None


def _count_statement(connection: Connection) -> Any:
    """Return the statement that adds to a count, or begins one."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(P_VALUES)
    total = P_VALUES.c.rows + statement.excluded.rows
    keys = [column.name for column in P_VALUES.primary_key]
    return statement.on_conflict_do_update(index_elements=keys, set_={"rows": total})


def _stats(rows: Sequence[Row[Any]]) -> CaseStats:
    statuses = Counter[str](dict.fromkeys(STATUSES, 0))
    shares = {"flagged": Counter[str](), "sample": Counter[str]()}
    oldest: list[float] = []
    for row in rows:
        is_decided = row.verdict in DECISIVE
        status = "decided" if is_decided else "snoozed" if row.snoozed else "open"
        statuses[status] += row.cases
        shares[row.kind][str(row.verdict)] += row.cases
        if status == "open" and row.kind == "flagged":
            oldest.append(row.oldest / PER_SECOND)
    flags, sample = (Share(s["anomaly"], s["anomaly"] + s["normal"]) for s in shares.values())
    return CaseStats(dict(statuses), flags, sample, min(oldest, default=None))
