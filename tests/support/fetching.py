"""Stand in for the process that fetches models."""

import sys

from anomaly_vae.artifacts.bundle import load_bundle


def stand_in(tmp_path, code):
    """Return a command that runs ``code`` instead of fetching a model from a registry."""
    script = tmp_path / "fetch.py"
    script.write_text("import json, os, sys, time\n" + code)
    return [sys.executable, str(script)]


def answer(folder, **changes):
    """Return the JSON object that a successful fetch prints, with changes."""
    digest = load_bundle(folder).digest
    known = {"path": str(folder), "digest": digest, "name": "fraud", "version": "3", "alias": None}
    return {**known, "something": "later versions may say more", **changes}
