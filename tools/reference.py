"""Write docs/reference.md: every public name of the library with its signature and docstring.

    python -m tools.reference

A name is public if the `__all__` of an `anomaly_vae` package or module lists it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anomaly_vae

TARGET = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Reference

Every public name of the library; `make reference` writes this page from the docstrings.
"""


def public_modules() -> Iterator[ModuleType]:
    """Yield the modules that list public names, in alphabetical order."""
    yield anomaly_vae
    for found in sorted(
        m.name for m in pkgutil.walk_packages(anomaly_vae.__path__, "anomaly_vae.")
    ):
        module = importlib.import_module(found)
        if getattr(module, "__all__", ()):
            yield module


def public_names() -> dict[str, Any]:
    """Return every public class, function and constant by its shortest dotted name."""
    found: dict[str, Any] = {}
    known: set[int] = set()
    for module in public_modules():
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) not in known:
                found[f"{module.__name__}.{name}"] = value
                known.add(id(value))
    return found


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class documents itself."""
    for name, value in vars(kind).items():
        inner = getattr(value, "__func__", value)
        callable_or_property = inspect.isfunction(inner) or isinstance(value, property)
        if callable_or_property and not name.startswith("_") and inspect.getdoc(inner):
            yield name, inner


FUNCTION = re.compile(r"<function (\w+) at 0x\w+>")
"""Pattern of a function that is the default of a parameter."""


def signature(name: str, value: Any) -> str:
    """Return a name with its parameters, without annotations; the bare name of a property."""
    if isinstance(value, property) or not callable(value):
        return name
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return name
    shown = [p.replace(annotation=p.empty) for p in parameters if p.name not in {"self", "cls"}]
    return FUNCTION.sub(r"\1", f"{name}{inspect.Signature(shown)}")


def entry(level: int, title: str, doc: str) -> str:
    """Return one heading with its docstring, verbatim."""
    return f"\n{'#' * level} `{title}`\n\n```text\n{doc}\n```\n"


def describe(name: str, value: Any) -> Iterator[str]:
    """Yield the entry of a public name and, for a class, those of its members."""
    yield entry(3, signature(name, value), inspect.getdoc(value) or "")
    if inspect.isclass(value):
        for member, inner in members(value):
            title = signature(f"{value.__name__}.{member}", inner)
            yield entry(4, title, inspect.getdoc(inner) or "")


def reference() -> str:
    """Return the whole page."""
    parts, section = [HEAD], ""
    for name, value in public_names().items():
        module = name.rpartition(".")[0]
        if module != section:
            section = module
            parts.append(f"\n## {module}\n\n{inspect.getdoc(importlib.import_module(module))}\n")
        if callable(value):
            parts.extend(describe(name.rpartition(".")[2], value))
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
