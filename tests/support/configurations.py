"""Make small configurations, and quote why one is refused."""

from pathlib import Path

import pytest
import yaml

from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.errors import ConfigError

LEAST = {"name": "x", "data": {"path": "rows.csv"}}
SCANS = {"kind": "image", "name": "scans", "data": {"path": "scans/"}}
SPLITS = {
    "train": ["2024-01-01", "2024-02-01"],
    "calibration": ["2024-02-01", "2024-03-01"],
    "test": ["2024-03-01", "2024-04-01"],
}


def with_yaml(text: str) -> Config:
    """Return the smallest configuration with these keys in addition."""
    return validate_config(merged(LEAST, yaml.safe_load(text)))


def message(text: str) -> str:
    """Return the one line that says why these keys are refused."""
    with pytest.raises(ConfigError) as caught:
        with_yaml(text)
    assert "\n" not in str(caught.value)
    assert caught.value.key is not None
    return str(caught.value)


def write(folder: Path, text: str | bytes) -> Path:
    """Write a configuration file."""
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
