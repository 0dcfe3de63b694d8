"""Configurations are read from YAML files and ``--set`` overrides."""

from pathlib import Path

import pytest

from anomaly_vae.config import Feature, load_config
from anomaly_vae.config.detector import KINDS
from anomaly_vae.config.loading import fields
from anomaly_vae.errors import ConfigError
from tests.support.configurations import write


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: str) -> None:
    described = [*fields(KINDS[kind]), *fields(Feature, "data.features.<column>.")]
    assert [key for key, text in described if not text.strip()] == []
    keys = [key for key, _ in described]
    assert len(keys) == len(set(keys))
    assert {"name", "data.splits.gap_days", "training.epochs", "mlflow.tracking_uri"} <= set(keys)


def test_overrides_win_over_the_file_and_leave_their_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path, "{name: x, data: {path: a.csv, label: y}, training: {epochs: 3}}")
    overrides = ["data.path=b.csv", "training.epochs=7", "training.learning_rate=1e-3", "name=z"]
    config = load_config(path, [*overrides, "training.epochs=8", "data.ignore=[p, q]"])
    assert (config.data.path, config.data.label, config.data.ignore) == ("b.csv", "y", ("p", "q"))
    assert (config.training.epochs, config.training.learning_rate, config.name) == (8, 1e-3, "z")


def test_an_override_may_hold_an_equals_sign_or_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "{name: x, data: {path: a.csv, label: y}}")
    config = load_config(path, ["data.path=year=2024/a.csv", "data.label="])
    assert (config.data.path, config.data.label) == ("year=2024/a.csv", None)


@pytest.mark.parametrize("override", ["training.epochs", "=3", ""])
def test_an_override_without_key_or_value_is_refused_with_an_example(
    tmp_path: Path, override: str
) -> None:
    path = write(tmp_path, "{name: x, data: {path: a.csv}}")
    with pytest.raises(ConfigError, match=r"expected key=value, such as training\.epochs=20"):
        load_config(path, [override])


def test_an_override_goes_through_the_same_validation(tmp_path: Path) -> None:
    path = write(tmp_path, "{name: x, data: {path: a.csv}}")
    with pytest.raises(ConfigError, match=r"unknown key model\.dept, did you mean depth"):
        load_config(path, ["model.dept=3"])
    with pytest.raises(ConfigError, match=r"name: expected text, got \{'a': 3\}"):
        load_config(path, ["name.a=3"])


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\tx", "a: 2024-13-45", "&a [*b]", "{1: {}, ? [a]: b}", "a: \x00"]
)
def test_a_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1", "b: c: d", "2024-13-45", "*b", "{? [a]: b}", "\x00"])
def test_an_override_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "{name: x, data: {path: a.csv}}")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"data.label={text}"])
    assert str(caught.value).startswith(f"--set 'data.label={text}': ")
    assert "\n" not in str(caught.value)
    assert caught.value.key == "data.label"


@pytest.mark.parametrize("text", ["", "- a", "just text", "# nothing"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must hold keys such as name, data, model"):
        load_config(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, write(tmp_path, b"name: \xff")):
        with pytest.raises(ConfigError, match=f"cannot read the configuration '{path}': "):
            load_config(path)
