"""What the registry holds, and how each model's champions came and went."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.champion_history import Entry, history
from anomaly_vae.lifecycle.registry import Registry
from pipelines import console


def registered(registry: Registry, name: str | None = None) -> list[dict[str, Any]]:
    """Every model with its versions and aliases; of one that is named, its history, too.

    Raises:
        RegistryError: no model of that name.
    """
    found = [model for model in registry.models() if name in (None, model["name"])]
    if name and not found:
        raise RegistryError(f"there is no registered model '{name}'", missing=True)
    _show(found)
    if name is None:
        return found
    entries = history(registry, name)
    _show_history(name, entries)
    return [{**found[0], "history": [asdict(entry) for entry in entries]}]


def _show(models: list[dict[str, Any]]) -> None:
    rows = [
        (m["name"], len(m["versions"]), ", ".join(f"{a} → {v}" for a, v in m["aliases"].items()))
        for m in models
    ]
    console.table("Registered models", ("name", "versions", "aliases"), rows)


def _show_history(name: str, entries: list[Entry]) -> None:
    rows = [
        (e.at, e.action + (" (forced)" if e.forced else ""), e.version, e.champion, e.by, e.reason)
        for e in entries
    ]
    header = ("when", "what", "version", "champion before", "by", "why")
    console.table(f"History of {name}", header, rows)
