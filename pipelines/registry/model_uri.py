"""Open the bundle that a model's URI refers to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.errors import ConfigError

if TYPE_CHECKING:
    from anomaly_vae.lifecycle.registry import Registry


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and the registered version it belongs to; None for a bundle folder."""

    bundle: Bundle
    name: str | None = None
    version: str | None = None
    alias: str | None = None
    uri: str | None = None
    """URI by which the user named the model, if batch scoring records it."""

    @property
    def kind(self) -> str:
        """Kind of data that the model reads: ``tabular`` or ``image``."""
        return str(self.bundle.manifest["kind"])

    @property
    def data(self) -> Mapping[str, Any]:
        """Section ``data`` of the configuration that the manifest records."""
        data: Mapping[str, Any] = self.bundle.manifest["config"]["data"]
        return data

    def to_json(self) -> dict[str, Any]:
        """Return the name, version, alias and digest, as commands print them."""
        name = self.name or self.bundle.manifest["name"]
        version = {"name": name, "version": self.version, "alias": self.alias}
        return {**version, "digest": self.bundle.digest}


def open_model(uri: str, tracking_uri: str | None = None) -> LoadedModel:
    """Open a bundle folder, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``runs:/…``.

    Only a registry URI needs MLflow.

    Raises:
        BundleError: see `load_bundle`.
        RegistryError: see `Registry.fetch`.
        ConfigError: the URI is in a registry, and mlflow is not installed.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return LoadedModel(load_bundle(uri))
    fetched = open_registry(tracking_uri).fetch(uri)
    return LoadedModel(fetched.load(), fetched.name, fetched.version, fetched.alias)


def open_registry(tracking_uri: str | None = None) -> Registry:
    """Open the registry of ``MLFLOW_TRACKING_URI``, of ``tracking_uri``, or of ``./mlflow.db``.

    Raises:
        ConfigError: mlflow is not installed.
    """
    try:
        from anomaly_vae.lifecycle.registry import Registry
    except ImportError as error:
        raise ConfigError(
            f"{error}; the registry needs: pip install 'anomaly-vae[train]' "
            "(a bundle folder can be used without it)"
        ) from None
    return Registry(tracking_uri)
