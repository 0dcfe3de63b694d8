"""Configuration keys that were renamed are refused with their new name."""

import re
from pathlib import Path

import pytest
import yaml

from anomaly_vae.config import load_config, validate_config
from anomaly_vae.config.detector import KINDS, merged
from anomaly_vae.config.loading import fields
from anomaly_vae.errors import ConfigError
from anomaly_vae.renames import RENAMED_KEYS, rename_config, rename_reading
from tests.support.configurations import SCANS, write


def test_every_new_name_is_a_key_of_some_kind_and_no_old_one_is() -> None:
    keys = {key for kind in KINDS for key, _ in fields(KINDS[kind])}
    assert set(RENAMED_KEYS.values()) <= keys
    assert keys.isdisjoint(RENAMED_KEYS)


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_an_old_key_is_refused_with_its_new_name(old: str, new: str, tmp_path: Path) -> None:
    """In a file, dotted or nested, and in ``--set``, whatever its value."""
    content = {**SCANS, "data": {"path": "scans/"}}
    section, _, key = old.partition(".")
    path = write(tmp_path, yaml.safe_dump(content))
    for value in (1, None, {"a": 1}):
        for written in ({old: value}, {section: {key: value}}):
            with pytest.raises(ConfigError) as caught:
                validate_config(merged(content, written))
            assert str(caught.value) == f"{old} is now {new}"
            assert caught.value.key == old
        text = yaml.safe_dump(value, default_flow_style=True).partition("\n")[0]
        for override in (f"{old}={text}", f"{section}={{{key}: {text}}}"):
            with pytest.raises(ConfigError, match=f"^{re.escape(f'{old} is now {new}')}$"):
                load_config(path, [override])


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_a_recorded_configuration_reads_under_the_new_names(old: str, new: str) -> None:
    section, _, key = old.partition(".")
    recorded = {"name": "x", section: {"kept": 2, key: 1}}
    renamed = rename_config(recorded)
    assert renamed == {"name": "x", section: {"kept": 2, new.rpartition(".")[2]: 1}}
    assert rename_config(renamed) == renamed
    assert key in recorded[section], "the record itself is not changed"


def test_only_the_reading_rules_of_an_owner_are_renamed() -> None:
    owner = {"window": 1, "reading": {"window": "auto", "axis": 2}}
    renamed = rename_reading(owner)
    assert renamed == {"window": 1, "reading": {"intensity_window": "auto", "axis": 2}}
    assert rename_reading(renamed) == renamed
    assert rename_reading({"window": 1}) == {"window": 1}
