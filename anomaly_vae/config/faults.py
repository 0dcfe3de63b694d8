"""Explain what is wrong with a configuration and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_vae.config.base import Section
from anomaly_vae.config.data import Feature
from anomaly_vae.messages import shown
from anomaly_vae.renames import RENAMED_KEYS

EXPECTED = {
    "float_": "a number",
    "finite_": "a finite number",
    "int_": "a whole number",
    "string_type": "text",
    "bool_": "true or false",
    "tuple_": "a list",
    "dict_": "keys and values",
    "model_": "keys and values",
    "datetime_": "a date or time",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "enum": "{expected}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', 100 at most",
    "invalid_key": "text as a key, in quotes if need be",
}
"""Expected value by the beginning of pydantic's name of the fault."""


MISMATCHES = ("_type", "_parsing", "_from_float")
"""Endings of pydantic's fault names that mean another alternative of a union was intended."""


def group_faults(content: Any, faults: Sequence[Any]) -> dict[str, list[Any]]:
    """Group faults by the key that the user wrote.

    Pydantic reports faults for each alternative of a union; only those of the closest alternative
    are kept. A fault of a section is dropped in favour of faults of its keys.
    """
    by_key: dict[str, list[Any]] = {}
    for fault in faults:
        by_key.setdefault(_written_key(content, fault), []).append(fault)
    for key, alternatives in list(by_key.items()):
        if key and any(other.startswith(f"{key}.") for other in by_key):
            del by_key[key]
            continue
        close = [fault for fault in alternatives if not fault["type"].endswith(MISMATCHES)]
        by_key[key] = close[:1] or alternatives
    return by_key


def _written_key(content: Any, fault: Any) -> str:
    """Return a fault's location without the names of alternatives: the key as the user wrote it."""
    parts = []
    for part in fault["loc"]:
        inside = isinstance(content, Mapping) and part in content
        if inside or (isinstance(content, list | tuple) and part in range(len(content))):
            content = content[part]
            parts.append(str(part))
    if fault["type"] == "missing":
        parts.append(str(fault["loc"][-1]))
    return ".".join(parts)


def explain_fault(root: type[Section], key: str, alternatives: Sequence[Any]) -> str:
    """Describe what is wrong with a key and what it should be."""
    fault = alternatives[0]
    if fault["type"] == "extra_forbidden":
        if (new := RENAMED_KEYS.get(key)) and _has_key(root, new):
            return f"{key} is now {new}"
        near = difflib.get_close_matches(str(fault["loc"][-1]), _siblings(root, fault["loc"]), n=1)
        return f"unknown key {key}" + (f", did you mean {near[0]}" if near else "")
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "value_error":
        message = str(fault["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = " or ".join(dict.fromkeys(map(_expected, alternatives)))
    got = "nothing" if fault["input"] is None else shown(fault["input"])
    near = difflib.get_close_matches(str(fault["input"]), re.findall(r"'(\w+)'", expected), n=1)
    return f"{key or 'the configuration'}: expected {expected}, got {got}" + (
        f", did you mean {near[0]}" if near else ""
    )


def _expected(fault: Any) -> str:
    for start, text in EXPECTED.items():
        if fault["type"].startswith(start):
            return text.format_map(fault.get("ctx", {}))
    return str(fault["msg"])


def _has_key(root: type[Section], key: str) -> bool:
    *sections, last = key.split(".")
    return last in _siblings(root, (*sections, last))


def _siblings(root: type[Section], loc: tuple[int | str, ...]) -> list[str]:
    section = root
    for part in loc[:-1]:
        info = section.model_fields.get(str(part))
        if info is None or not isinstance(info.annotation, type):
            return list(Feature.model_fields)
        section = info.annotation
    return list(section.model_fields)


def yaml_reason(error: Exception) -> str:
    """Return the reason of a YAML error on one line."""
    return " ".join(str(error).split())
