"""Translate configuration keys that were renamed, in everything that was stored under old names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    "calibration.beta": "calibration.f_beta",
    "calibration.precision": "calibration.min_precision",
    "calibration.group": "calibration.group_by",
    "calibration.trim": "calibration.trim_scores",
    "data.window": "data.intensity_window",
    "model.contamination": "model.localization_head",
}
"""New name of each renamed configuration key, both dotted."""

READING = "reading"
"""Key of the rules by which an image model reads files, in its schema and its frozen policy."""


def rename_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration under today's names.

    >>> rename_config({"name": "fraud", "calibration": {"alpha": 0.01, "group": None}})
    {'name': 'fraud', 'calibration': {'alpha': 0.01, 'group_by': None}}
    """
    return {name: _rename_section(name, section) for name, section in config.items()}


def rename_reading(owner: Mapping[str, Any]) -> dict[str, Any]:
    """Return an image schema or a frozen policy with its reading rules under today's names.

    >>> rename_reading({"label": "lesion", "reading": {"window": "auto", "axis": 2}})
    {'label': 'lesion', 'reading': {'intensity_window': 'auto', 'axis': 2}}
    >>> rename_reading({"label": "fraud"})
    {'label': 'fraud'}
    """
    rules = {READING: _rename_section("data", owner[READING])} if READING in owner else {}
    return {**owner, **rules}


def _rename_section(name: str, section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    renamed = {key: RENAMED_KEYS.get(f"{name}.{key}") for key in section}
    names = {key: new.rpartition(".")[2] if new else key for key, new in renamed.items()}
    return {names[key]: value for key, value in section.items()}
