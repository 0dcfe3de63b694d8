"""Define how registered bundles are named, tagged and fetched, with MLflow or without it.

`anomaly_vae.lifecycle.registry` writes these names with MLflow; the service reads them without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from anomaly_vae.artifacts.bundle import Bundle, load_bundle

DEFAULT_URI = "sqlite:///mlflow.db"
"""Tracking URI used where ``MLFLOW_TRACKING_URI`` and the configuration name none."""
DIGEST_TAG = "anomaly_vae.bundle_digest"
"""Tag of a registered version that holds the digest of its bundle."""
ALIAS_URI = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
"""Pattern of a URI whose version may change: ``models:/NAME@ALIAS``."""
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
"""Pattern of a registered model's URI: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""

FAULT, MISSING, UNFIT, UNWRITABLE = 1, 3, 4, 5
"""Exit codes of the fetch command: no registry, no such model, a bad bundle, no room on disk."""


@dataclass(frozen=True)
class BundleRef:
    """A bundle folder on this machine and the registered version it holds, if any."""

    path: str
    digest: str | None = None
    """SHA-256 of the bundle, checked by `load`; None for a folder that no registry knows."""
    name: str | None = None
    version: str | None = None
    alias: str | None = None
    registered_at: float | None = None
    """Registration time, in seconds since 1970."""

    def load(self) -> Bundle:
        """Read the bundle and check its digest, where that is known.

        Raises:
            BundleError: see `load_bundle`.
        """
        return load_bundle(self.path, self.digest)


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite tracking URI, None for any other URI."""
    found = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None
