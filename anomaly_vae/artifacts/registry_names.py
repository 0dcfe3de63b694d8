"""Define names, tags, URIs and exit codes for registered bundles, independently of MLflow.

`anomaly_vae.lifecycle.registry` writes these names with MLflow; the service reads them without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from anomaly_vae.artifacts.bundle import Bundle, load_bundle

DEFAULT_URI = "sqlite:///mlflow.db"
"""Tracking URI if neither ``MLFLOW_TRACKING_URI`` nor the configuration gives one."""
DIGEST_TAG = "anomaly_vae.bundle_digest"
"""Tag that holds the bundle digest of a registered version."""
ALIAS_URI = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
"""Pattern of the URI of an alias, whose version may change: ``models:/NAME@ALIAS``."""
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
"""Pattern of a registered version's URI: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""

FAULT, MISSING, UNFIT, UNWRITABLE = 1, 3, 4, 5
"""Exit codes of ``fetch``: registry error, unknown model, bad bundle, unwritable cache."""


@dataclass(frozen=True)
class BundleRef:
    """A local bundle folder and the registered version that it holds, if any."""

    path: str
    digest: str | None = None
    """SHA-256 of the bundle, checked by `load`; None for a folder without a registered version."""
    name: str | None = None
    version: str | None = None
    alias: str | None = None
    registered_at: float | None = None
    """Registration time, in seconds since 1970."""

    def load(self) -> Bundle:
        """Read the bundle and check its digest if one is given.

        Raises:
            BundleError: see `load_bundle`.
        """
        return load_bundle(self.path, self.digest)


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite tracking URI, None for any other URI."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return Path(match[1]) if match and match[1] != ":memory:" else None
