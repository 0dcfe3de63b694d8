"""Refresh the labels of a frozen test split, whose rows stay.

Labels have three sources. Those of the frozen rows themselves are replaced by those that newer data
have for the same ids, and these by late labels. A revision holds the second and the third, so that
a label that was once seen counts until a newer one replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.times import parse_time
from anomaly_vae.data.vocabulary import NORMAL, UNSURE
from anomaly_vae.files import strict_json
from anomaly_vae.lifecycle.registry import NEWER_LABELS_TAG, Registry, Version
from pipelines import console
from pipelines.datasets.labels import LabelChanges, relabel, verdicts_of
from pipelines.datasets.verdicts import Verdicts, id_texts
from pipelines.registry.frozen_test import (
    FrozenTest,
    altered,
    policy_of,
    read_artifact,
    write_artifact,
)
from pipelines.reports.labelled import Labelled

FOLDER, FILE = "labels", "{digest}.parquet"
"""Folder and name of revisions among the artifacts of a history."""
DATA, LATE = "data", "late"
"""Sources of the labels of a revision, in its column ``source``."""


@dataclass(frozen=True, eq=False)
class Revision:
    """Labels that were learned after a test split was frozen."""

    data: Verdicts
    """Labels of newer data, where they differ from those of the frozen rows."""
    late: Verdicts
    """Late labels."""

    @classmethod
    def from_table(cls, table: pa.Table | None) -> Self:
        """Restore a revision from `table`; None for the first labels."""
        if table is None:
            return cls(Verdicts.empty(), Verdicts.empty())
        sources = (pc.equal(table.column("source"), source) for source in (DATA, LATE))
        return cls(*(Verdicts.from_table(table.filter(mask)) for mask in sources))

    @property
    def table(self) -> pa.Table:
        """The revision as a table."""
        parts = []
        for source, verdicts in ((DATA, self.data), (LATE, self.late)):
            column = pa.array([source] * len(verdicts), pa.string())
            parts.append(verdicts.table.append_column("source", column))
        return pa.concat_tables(parts).sort_by([("source", "ascending"), ("id", "ascending")])

    @property
    def verdicts(self) -> Verdicts:
        """The verdict on each row that counts."""
        return self.late.over(self.data)

    def updated(self, first: Verdicts, data: Verdicts, late: Verdicts) -> Revision:
        """Return the next revision.

        Args:
            first: the labels of the frozen rows.
            data: the labels of newer data for the same ids; unsure ones say nothing.
            late: late labels; of two labels with a time, the newer one counts.
        """
        data = data.take((data.codes != UNSURE) & (first.positions(data.ids) >= 0)).over(self.data)
        late = late.take(first.positions(late.ids) >= 0)
        known = np.append(self.late.at, np.nan)[self.late.positions(late.ids)]
        late = late.take(~(known > late.at)).over(self.late)
        return Revision(data.take(data.codes != first.on(data.ids)), late)


@dataclass(frozen=True, eq=False)
class RefreshedTest:
    """A frozen test split with its current labels."""

    frozen: FrozenTest
    labelled: Labelled
    changes: LabelChanges | None = None
    """Changes since the last revision; None if the rows have no ids."""

    def to_json(self) -> dict[str, Any] | None:
        """Return what the history records about the labels; None if they cannot change."""
        if self.changes is None:
            return None
        digest = self.frozen.labels_digest or self.frozen.digest
        return {**asdict(self.changes), "digest": digest, "revision": self.frozen.labels}


def refresh(
    registry: Registry,
    frozen: FrozenTest,
    challenger: Version,
    bundle: Bundle,
    late: Verdicts,
) -> RefreshedTest:
    """Read a frozen test split with its newest labels, and store labels that changed.

    Args:
        registry: the registry.
        frozen: the test split.
        challenger: the version whose data have newer labels.
        bundle: its bundle.
        late: late labels.

    Raises:
        RegistryError: an artifact is gone or was altered.
    """
    table, policy = frozen.read(registry), frozen.policy
    column = policy.get("id") or bundle.manifest["config"]["data"].get("id")
    if column is None or column not in table.column_names:
        if len(late):
            console.info(f"late labels cannot be merged: the test rows have no column '{column}'")
        return RefreshedTest(frozen, Labelled.of(table, policy))
    label, positive = policy.get("label"), policy.get("positive")
    first = _first(table, column, label, positive)
    stored, newer = (
        Revision.from_table(frozen.read_labels(registry)),
        _newer_labels(registry, challenger),
    )
    if len(late) or len(newer):
        policy = _aged(policy, policy_of(challenger))
    revision = stored.updated(first, newer, late)
    frozen = _store(registry, frozen, revision, stored, challenger.name)
    if label is None and not len(revision.verdicts):
        return RefreshedTest(
            frozen, Labelled.of(table, policy), LabelChanges.between(*[first.codes] * 2)
        )
    before = relabel(table, column, label, positive, stored.verdicts)
    after = relabel(table, column, label, positive, revision.verdicts)
    changes = LabelChanges.between(before.codes, after.codes)
    return RefreshedTest(
        frozen, Labelled.of(after.table, {**policy, "label": after.label}), changes
    )


def _aged(policy: Mapping[str, Any], newer: Mapping[str, Any]) -> dict[str, Any]:
    """Count the ages of labels from the newest row of the data that refreshed them."""
    moments = [each["newest"] for each in (policy, newer) if "newest" in each]
    return {**policy, **({"newest": max(moments, key=parse_time)} if moments else {})}


def _first(table: pa.Table, column: str, label: str | None, positive: Any) -> Verdicts:
    """Return the labels of the frozen rows; every row is normal without a label column."""
    if label is not None:
        return verdicts_of(table, column, label, positive)
    ids = pc.unique(id_texts(table.column(column)).drop_null())
    return Verdicts(ids, np.full(len(ids), NORMAL, np.int8), np.full(len(ids), np.nan))


def _newer_labels(registry: Registry, challenger: Version) -> Verdicts:
    """Read the labels that a version's data had for the frozen test split when it was made."""
    tag = challenger.tags.get(NEWER_LABELS_TAG)
    if tag is None:
        return Verdicts.empty()
    try:
        place = strict_json(tag)
        uri, digest = place["uri"], place["digest"]
    except (ValueError, TypeError, LookupError):
        raise altered(challenger, NEWER_LABELS_TAG) from None
    return Verdicts.from_table(read_artifact(registry, uri, digest, "the newer labels"))


def _store(
    registry: Registry, frozen: FrozenTest, revision: Revision, stored: Revision, name: str
) -> FrozenTest:
    """Store a revision beside the history, and return the test split that refers to it."""
    table = revision.table
    if table.equals(stored.table):
        return frozen
    run = registry.open_history(name)
    digest = write_artifact(run, table, FILE, FOLDER)
    uri = f"runs:/{run.id}/{FOLDER}/{FILE.format(digest=digest[:16])}"
    return replace(frozen, labels=uri, labels_digest=digest)
