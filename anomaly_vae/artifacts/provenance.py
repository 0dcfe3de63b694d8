"""Identify the code version that produced a model."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from anomaly_vae._version import __version__


@cache
def code_version() -> str:
    """Return the release and a digest of this package's sources, such as 0.1.0+3f9c0a12be77."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
