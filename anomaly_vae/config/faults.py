"""Explain what is wrong with a configuration and how to mend it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

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
    "too_short": "at least one",
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
        near = difflib.get_close_matches(
            str(fault["loc"][-1]), _siblings(root, fault["loc"][:-1]), n=1
        )
        return f"unknown key {key}" + (f", did you mean {near[0]}" if near else "")
    remedy = _example(root, key)
    if fault["type"] == "missing":
        return f"{key} is missing{remedy}"
    if fault["type"] == "value_error":
        message = str(fault["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = " or ".join(dict.fromkeys(map(_expected, alternatives)))
    got = "nothing" if fault["input"] is None else shown(fault["input"])
    near = difflib.get_close_matches(str(fault["input"]), re.findall(r"'(\w+)'", expected), n=1)
    return f"{key or 'the configuration'}: expected {expected}, got {got}" + (
        f", did you mean {near[0]}" if near else remedy
    )


def _expected(fault: Any) -> str:
    for start, text in EXPECTED.items():
        if fault["type"].startswith(start):
            return text.format_map(fault.get("ctx", {}))
    return str(fault["msg"])


def _has_key(root: type[Section], key: str) -> bool:
    *sections, last = key.split(".")
    return last in _siblings(root, sections)


def _example(root: type[Section], key: str) -> str:
    """Return the line that mends a key, after a semicolon; empty if the key has no example."""
    *sections, last = key.split(".")
    info = _fields(root, sections).get(last)
    return f"; write {last}: {info.examples[0]}" if info and info.examples else ""


def _siblings(root: type[Section], sections: Sequence[int | str]) -> list[str]:
    return list(_fields(root, sections))


def _fields(root: type[Section], sections: Sequence[int | str]) -> Mapping[str, FieldInfo]:
    """Return the fields of a section; those of a feature if the section is unknown."""
    kinds: list[Any] = [root]
    for part in sections:
        kinds = [inner for kind in kinds for inner in _inside(kind, str(part))]
    return next((kind.model_fields for kind in kinds if _is_section(kind)), Feature.model_fields)


def _inside(kind: Any, part: str) -> list[Any]:
    """Return the types that a part of a value of this type may have."""
    if _is_section(kind):
        info = kind.model_fields.get(part)
        return _alternatives(info.annotation) if info else []
    return [one for inner in get_args(kind)[-1:] for one in _alternatives(inner)]


def _alternatives(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def yaml_reason(error: Exception) -> str:
    """Return the reason of a YAML error on one line."""
    return " ".join(str(error).split())
