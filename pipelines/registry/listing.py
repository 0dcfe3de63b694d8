"""List registered models and the history of their champions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anomaly_vae.errors import RegistryError
from anomaly_vae.lifecycle.champion_history import Entry, history
from anomaly_vae.lifecycle.registry import Registry, named_registry
from pipelines import console


def list_models(registry: Registry, name: str | None = None) -> list[dict[str, Any]]:
    """Return all models with their versions and aliases, or one model and its history.

    Raises:
        RegistryError: no model has this name.
    """
    models = [model for model in registry.models() if name in (None, model["name"])]
    if name and not models:
        where = named_registry(registry.uri)
        raise RegistryError(f"there is no registered model '{name}' in {where}", missing=True)
    _show(models)
    if name is None:
        return models
    entries = history(registry, name)
    _show_history(name, entries)
    return [{**models[0], "history": [asdict(entry) for entry in entries]}]


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
    header = ("when", "decision", "version", "champion before", "by", "reason")
    console.table(f"History of {name}", header, rows)
