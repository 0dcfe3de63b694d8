"""Stand in for the process that fetches models."""

import sys

from anomaly_vae.artifacts.bundle import load_bundle


def stand_in(tmp_path, code):
    """A command in place of `python -m anomaly_vae.lifecycle.registry fetch`."""
    script = tmp_path / "fetch.py"
    script.write_text("import json, os, sys, time\n" + code)
    return [sys.executable, str(script)]


def answer(folder, **changes):
    digest = load_bundle(folder).digest
    known = {"path": str(folder), "digest": digest, "name": "fraud", "version": "3", "alias": None}
    return {**known, "something": "later versions may say more", **changes}
