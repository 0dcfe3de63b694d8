"""Name the folders that tests read or share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of this run that parallel workers have in common."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
