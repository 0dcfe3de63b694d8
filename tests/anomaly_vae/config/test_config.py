"""One validation for YAML, ``--set`` and Python; each fault is one clause on the user's key."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from anomaly_vae.config import Config, Feature, ImageConfig, load_config, validate_config
from anomaly_vae.config.base import Section
from anomaly_vae.config.data import Splits
from anomaly_vae.config.detector import KINDS, PRESETS, merged
from anomaly_vae.config.loading import fields
from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.config.training import ImageTrainingConfig, TrainingConfig
from anomaly_vae.errors import ConfigError
from anomaly_vae.renames import RENAMED_KEYS
from anomaly_vae.types import ColumnType

LEAST = {"name": "x", "data": {"path": "rows.csv"}}
SPLITS = {
    "train": ["2024-01-01", "2024-02-01"],
    "calibration": ["2024-02-01", "2024-03-01"],
    "test": ["2024-03-01", "2024-04-01"],
}


def with_yaml(text: str) -> Config:
    return validate_config(merged(LEAST, yaml.safe_load(text)))


def message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        with_yaml(text)
    assert "\n" not in str(caught.value)
    assert caught.value.key is not None
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described(kind: str) -> None:
    described = [*fields(KINDS[kind]), *fields(Feature, "data.features.<column>.")]
    assert [key for key, text in described if not text.strip()] == []
    keys = [key for key, _ in described]
    assert len(keys) == len(set(keys))
    assert {"name", "data.splits.gap_days", "training.epochs", "mlflow.tracking_uri"} <= set(keys)


def test_everything_but_the_name_and_the_path_has_a_default() -> None:
    config = validate_config(LEAST)
    assert config.data.paths == ("rows.csv",)
    assert (config.kind, config.preset, config.calibration.alpha) == ("tabular", "default", 0.01)


def test_several_paths_are_kept_in_order() -> None:
    assert with_yaml("data: {path: [b.csv, a.csv]}").data.paths == ("b.csv", "a.csv")


def test_a_configuration_cannot_be_changed() -> None:
    config = validate_config(LEAST)
    sections: tuple[tuple[Section, str], ...] = ((config, "name"), (config.model, "depth"))
    for section, key in sections:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nme: x", "unknown key nme, did you mean name"),
        ("model: {latent_dims: 8}", "unknown key model.latent_dims, did you mean latent_dim"),
        ("data: {lable: y}", "unknown key data.lable, did you mean label"),
        ("data: {splits: {tests: 0.1}}", "unknown key data.splits.tests, did you mean test"),
        (
            "data: {features: {a: {type: numeric, max_level: 3}}}",
            "unknown key data.features.a.max_level, did you mean max_levels",
        ),
        ("model: {zzz: 8}", "unknown key model.zzz"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {splits: {test: 1.2}}", "data.splits.test: expected less than 1, got 1.2"),
        ("data: {splits: {test: 0}}", "data.splits.test: expected more than 0, got 0"),
        ("data: {splits: {test: abc}}", "data.splits.test: expected a number or a list, got 'abc'"),
        ("data: {splits: {test: [a, 2024-01-01]}}",
         "data.splits.test.0: expected a date or time, got 'a'"),
        ("data: {splits: {test: [2024-01-01]}}", "data.splits.test.1 is missing"),
        ("data: {features: {a: {type: numerc}}}",
         "data.features.a.type: expected 'numeric', 'binary', 'categorical' or 'datetime', "
         "got 'numerc', did you mean numeric"),
        ("data: {features: {a: {max_levels: 8}}}", "data.features.a.type is missing"),
        ("data: {features: {a: numeric}}",
         "data.features.a: expected keys and values, got 'numeric'"),
        ("data: {features: 5}", "data.features: expected a list or keys and values, got 5"),
        ("data: {features: [a, 5]}", "data.features.1: expected text, got 5"),
        ("data: {features: {1: {type: numeric}}}", "data.features.1: expected text, got 1"),
        ("data: {ignore: a}", "data.ignore: expected a list, got 'a'"),
        ("data: {path: 5}", "data.path: expected text or a list, got 5"),
        ("data: {path: }", "data.path: expected text or a list, got nothing"),
        ("data: {id: [a]}", "data.id: expected text, got ['a']"),
        ("data: 5", "data: expected keys and values, got 5"),
        ("model: ", "model: expected keys and values, got nothing"),
        ("model: [1]", "model: expected keys and values, got [1]"),
        ("training: fast", "training: expected keys and values, got 'fast'"),
        ("model: {latent_dim: 0}", "model.latent_dim: expected at least 1, got 0"),
        ("model: {depth: 99}", "model.depth: expected at most 16, got 99"),
        ("model: {latent_dim: 1.5}", "model.latent_dim: expected a whole number, got 1.5"),
        ("model: {latent_dim: x}", "model.latent_dim: expected a whole number, got 'x'"),
        ("training: {seed: -1}", "training.seed: expected at least 0, got -1"),
        ("training: {learning_rate: .inf}",
         "training.learning_rate: expected a finite number, got inf"),
        ("training: {learning_rate: .nan}",
         "training.learning_rate: expected a finite number, got nan"),
        ("training: {resume: maybe}", "training.resume: expected true or false, got 'maybe'"),
        ("score: neg_elbow",
         "score: expected 'neg_elbo', 'reconstruction' or 'importance_weighted', "
         "got 'neg_elbow', did you mean neg_elbo"),
        ("preset: bst",
         "preset: expected 'fast', 'default' or 'best', got 'bst', did you mean best"),
        ("name: -x", "name: expected letters, digits, '.', '_' and '-', 100 at most, got '-x'"),
        ("name: ", "name: expected text, got nothing"),
        ("7: x", "7: expected text as a key, in quotes if need be, got 7"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_one_clause_on_the_users_key(text: str, expected: str) -> None:
    assert message(text) == expected


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^name is missing; data is missing$"):
        validate_config({})


def test_every_fault_is_named_at_once_and_the_first_is_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        with_yaml("{model: {depth: x, widht: 3}, data: {splits: {test: 1.2}}}")
    assert str(caught.value) == (
        "data.splits.test: expected less than 1, got 1.2; "
        "model.depth: expected a whole number, got 'x'; unknown key model.widht"
    )
    assert caught.value.key == "data.splits.test"


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"test": 0.5, "calibration": 0.5}, "calibration and test leave nothing to train on"),
        ({"test": 0.9}, "train, calibration and test add up to 1.1, more than 1"),
        ({"train": 0.9}, "train, calibration and test add up to 1.3, more than 1"),
        ({"test": SPLITS["test"]}, "all as fractions or all as [from, to]"),
        ({**SPLITS, "train": 0.5}, "all as fractions or all as [from, to]"),
        ({**SPLITS, "test": ["2024-04-01", "2024-03-01"]}, "test ends before it begins"),
        ({**SPLITS, "test": ["2024-03-01", "2024-03-01"]}, "test ends before it begins"),
        ({**SPLITS, "test": ["2024-02-20", "2024-04-01"]}, "calibration and test overlap"),
        ({**SPLITS, "test": ["2024-02-20T00:00Z", "2024-04-01"]}, "calibration and test overlap"),
    ],
)
def test_splits_that_contradict_each_other_are_refused(
    splits: Mapping[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config(merged(LEAST, {"data": {"splits": splits}}))
    assert str(caught.value).startswith("data.splits: ")
    assert expected in str(caught.value)


def test_intervals_may_touch_and_mix_zones() -> None:
    splits = Splits.model_validate({**SPLITS, "test": ["2024-03-01T01:00:00+01:00", "2024-04-01"]})
    assert splits.by_interval


anything = st.recursive(
    st.none() | st.integers() | st.text("ab\n", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["path", "features", "splits", "test", "depth"]), inner)
    ),
)


@given(anything, st.sampled_from(["data", "model", "score", "preset"]))
def test_whatever_is_written_is_valid_or_refused_in_one_line(content: Any, section: str) -> None:
    fault = None
    try:
        validate_config({**LEAST, section: content})
    except ConfigError as error:
        fault = str(error)
    assert fault is None or (section in fault and "\n" not in fault)


# ---------------------------------------------------------------- keys that were renamed


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


def test_an_old_key_of_images_is_merely_unknown_to_tables() -> None:
    assert message("model: {contamination: true}").startswith("unknown key model.contamination")
    assert message("data: {window: auto}").startswith("unknown key data.window")


def test_a_null_does_not_hide_an_unknown_key() -> None:
    assert message("calibration: {alfa: null}") == (
        "unknown key calibration.alfa, did you mean alpha"
    )


# ---------------------------------------------------------------- files and --set


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


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


# ---------------------------------------------------------------- presets, sizes, the record


@pytest.mark.parametrize(
    ("kind", "preset"), [(kind, preset) for kind in PRESETS for preset in PRESETS[kind]]
)
def test_a_preset_lies_under_what_the_user_writes(kind: str, preset: str) -> None:
    least = merged(LEAST, {"kind": kind, "preset": preset})
    plain = validate_config(least)
    for section, keys in PRESETS[kind][preset].items():
        for key, value in keys.items():
            assert getattr(getattr(plain, section), key) == value
            own = validate_config(merged(least, {section: {key: 7}}))
            assert getattr(getattr(own, section), key) == 7
            others = {k: getattr(getattr(own, section), k) for k in keys if k != key}
            assert others == {k: v for k, v in keys.items() if k != key}


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_can_be_chosen(kind: str) -> None:
    annotation = KINDS[kind].model_fields["preset"].annotation
    assert {*PRESETS[kind], "default"} == set(annotation.__args__)  # type: ignore[union-attr]  # a Literal


def test_a_score_may_be_written_as_its_type() -> None:
    assert with_yaml("score: reconstruction").score.type == "reconstruction"
    best = with_yaml("{preset: best, score: reconstruction}")
    assert best.score.type == "reconstruction"
    assert best.model.members == 8


@given(st.integers(1, 3_000), st.integers(1, 5_000_000))
def test_what_is_absent_is_chosen_within_its_bounds(n_columns: int, n_rows: int) -> None:
    model = ModelConfig().resolve(n_columns)
    assert model.latent_dim is not None
    assert model.hidden_dim is not None
    assert 1 <= model.latent_dim <= 64
    assert 64 <= model.hidden_dim <= 256
    training = TrainingConfig().resolve(n_rows)
    assert training.batch_size is not None
    assert training.epochs is not None
    assert 32 <= training.batch_size <= 512
    assert 3 <= training.epochs <= 300


def test_what_is_given_is_not_chosen() -> None:
    model = ModelConfig(latent_dim=3, hidden_dim=5).resolve(100)
    assert (model.latent_dim, model.hidden_dim) == (3, 5)
    training = TrainingConfig(epochs=2, batch_size=7).resolve(100_000)
    assert (training.epochs, training.batch_size) == (2, 7)


def test_the_record_holds_no_place_device_or_server() -> None:
    config = with_yaml(
        "{data: {path: /secret/rows.csv}, training: {device: cpu, resume: false}, "
        "mlflow: {tracking_uri: 'http://secret:5000'}}"
    )
    record = config.recorded()
    assert "secret" not in str(record)
    assert "mlflow" not in record
    assert not {"device", "resume"} & record["training"].keys()
    moved = config.model_copy(update={"mlflow": validate_config(LEAST).mlflow})
    assert moved.recorded() == record


def test_a_gap_needs_a_time_column() -> None:
    with pytest.raises(ConfigError, match="gap_days needs a time column"):
        validate_config({"name": "x", "data": {"path": "a.csv", "splits": {"gap_days": 7}}})


def test_the_record_keeps_what_the_model_depends_on() -> None:
    config = validate_config(
        {
            "name": "x",
            "data": {
                "path": "a.csv",
                "time": "t",
                "features": {"a": {"type": "numeric"}},
                "splits": {**SPLITS, "gap_days": 7},
            },
        }
    )
    record = config.recorded()
    again = validate_config(merged(record, {"data": {"path": "a.csv"}}))
    assert again == config
    assert record["data"]["features"]["a"]["type"] == ColumnType.NUMERIC.value


# ---------------------------------------------------------------- images

SCANS = {"kind": "image", "name": "scans", "data": {"path": "scans/"}}


def test_images_have_their_own_defaults_and_sections() -> None:
    config = validate_config(SCANS)
    assert isinstance(config, ImageConfig)
    assert (config.data.size, config.data.channels, config.data.time) == (64, 1, None)
    assert config.calibration.alpha == 0.05
    assert config.recorded()["data"]["size"] == 64
    assert "path" not in config.recorded()["data"]
    assert validate_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "audio"}, "kind: expected 'tabular' or 'image', got 'audio'"),
        ({"data": {"time": "t"}}, "unknown key data.time"),
        ({"data": {"sise": 3}}, "unknown key data.sise, did you mean size"),
        ({"data": {"size": 8}}, "data.size: expected at least 16"),
        ({"data": {"channels": 2}}, "data.channels: expected 1 or 3"),
        ({"data": {"splits": {"gap_days": 3}}}, "images have no time column"),
        ({"data": {"splits": SPLITS}}, "images have no time column"),
        ({"model": {"depth": 2}}, "unknown key model.depth"),
        ({"training": {"batch_size": 1}}, "training.batch_size: expected at least 2"),
        ({"training": {"hide": 0.1}}, "unknown key training.hide"),
        ({"training": {"corruption": {"kind": "mask"}}}, "unknown key training.corruption.kind"),
        ({"score": "contamination"}, "score contamination needs model.localization_head: true"),
    ],
)
def test_what_does_not_fit_images_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(merged(SCANS, changes))


def test_a_window_is_a_word_or_two_numbers() -> None:
    windowed = validate_config(merged(SCANS, {"data": {"intensity_window": [40, 80]}}))
    assert isinstance(windowed, ImageConfig)
    assert windowed.data.intensity_window == (40.0, 80.0)
    with pytest.raises(ConfigError, match=r"data\.intensity_window"):
        validate_config(merged(SCANS, {"data": {"intensity_window": "brain"}}))


@given(st.integers(1, 5_000_000))
def test_what_is_absent_of_images_is_chosen_within_its_bounds(n_images: int) -> None:
    training = ImageTrainingConfig().resolve(n_images)
    assert training.batch_size is not None
    assert training.epochs is not None
    assert 32 <= training.batch_size <= 512
    assert 3 <= training.epochs <= 300
    assert ImageModelConfig(network="convolutional").resolve(4096).latent_dim == 16


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            {"delta": 0.1},
            "method conformal has no delta, only alpha, group_by, trim_scores, density_ratio",
        ),
        ({"method": "certified", "tail": 0.2}, "method certified has no tail, only alpha, delta"),
        ({"method": "certifed"}, "did you mean certified"),
        ({"method": "budget"}, "method budget needs per_1000 or per_day"),
        ({"method": "cost"}, "method cost needs costs.review or costs.blocked"),
        ({"method": "budget", "per_1000": 1, "alpha": 0.2}, "method budget has no alpha"),
    ],
)
def test_a_key_of_another_method_is_refused(calibration: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config({**LEAST, "calibration": calibration})


def test_null_takes_back_what_a_file_says_of_another_method() -> None:
    calibration = {"method": "quantile", "alpha": 0.03, "delta": None}
    assert validate_config({**LEAST, "calibration": calibration}).calibration.alpha == 0.03
