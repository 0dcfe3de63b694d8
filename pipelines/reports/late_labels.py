"""Find and read the late labels of a registered model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.data import CsvConfig
from anomaly_vae.data.vocabulary import Vocabulary
from anomaly_vae.errors import ConfigError
from pipelines import console
from pipelines.datasets.label_files import LabelSource
from pipelines.datasets.labels import late_labels, normal_names, relabel
from pipelines.datasets.verdicts import Verdicts
from pipelines.registry.frozen_test import LATE_LABELS, policy_of

if TYPE_CHECKING:
    from anomaly_vae.lifecycle.registry import Version

OPTION = "--labels"
"""Option that replaces ``data.labels``."""
NO_LABELS = "none"
"""Place that means no late labels."""


def label_source(
    bundle: Bundle, version: Version | None, places: Sequence[str] | None = None
) -> LabelSource | None:
    """Return the source of late labels of a model of tables; None if it has none.

    Args:
        bundle: the model.
        version: its registered version; None if there is none.
        places: files, folders, globs or addresses of stores in place of those of its configuration;
            `NO_LABELS` for none.
    """
    data = bundle.manifest["config"]["data"]
    recorded = policy_of(version).get(LATE_LABELS, {}) if version else {}
    named_by = "data.labels" if places is None else OPTION
    places = recorded.get("places", ()) if places is None else places
    if not places or list(places) == [NO_LABELS] or not data.get("id"):
        return None
    return LabelSource(
        tuple(places),
        data["id"],
        data.get("label"),
        Vocabulary(data["positive"], frozenset(recorded.get("normal", ()))),
        CsvConfig(**data.get("csv", {})),
        data.get("time_format"),
        version.name if version else bundle.manifest["name"],
        named_by,
    )


def read_late_labels(source: LabelSource | None) -> Verdicts:
    """Read late labels and print notes on them; none without a source."""
    if source is None:
        return Verdicts.empty()
    found = late_labels(source)
    for note in found.notes:
        console.info(note)
    return found.verdicts


def with_late_labels(
    table: pa.Table,
    label: str,
    positive: Any,
    bundle: Bundle,
    version: Version | None,
    places: Sequence[str] | None,
) -> pa.Table:
    """Merge late labels into labelled rows that a model is evaluated on.

    Args:
        table: N rows.
        label: their label column.
        positive: the label that means anomaly.
        bundle: the model.
        version: its registered version; None if there is none.
        places: see `label_source`.

    Raises:
        ConfigError: places are given, but the model has no ids.
        DataError: late labels cannot be read.
    """
    source = label_source(bundle, version, places)
    if source is None or source.id not in table.column_names:
        if places and list(places) != [NO_LABELS]:
            raise ConfigError(
                f"{OPTION} needs a model of tables that was trained with data.id, and rows with "
                "that column; leave it out"
            )
        return table
    vocabulary = source.vocabulary
    if source.label is None:
        vocabulary = replace(vocabulary, positive=positive, named_by="--positive")
    normal = vocabulary.normal | normal_names(table, label, positive)
    source = replace(source, vocabulary=replace(vocabulary, normal=normal))
    verdicts = read_late_labels(source)
    merged = relabel(table, source.id, label, positive, verdicts)
    console.info(merged.note(source, len(verdicts)))
    return merged.table
