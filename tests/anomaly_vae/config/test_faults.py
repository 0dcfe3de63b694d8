"""Each fault of a configuration is one clause on the user's key."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.config import validate_config
from anomaly_vae.errors import ConfigError
from tests.support.configurations import LEAST, message, with_yaml

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
        ("data: {splits: {test: abc}}",
         "data.splits.test: expected a span such as 28d, 12h or 4w, got 'abc'"),
        ("data: {splits: {test: 7}}",
         "data.splits.test: expected a fraction between 0 and 1, a span such as 28d, 12h or 4w, "
         "or [from, to], got 7"),
        ("data: {splits: {test: 28m}}",
         "data.splits.test: expected a span such as 28d, 12h or 4w, got '28m'"),
        ("data: {label_delay: 7}",
         "data.label_delay: expected a span such as 28d, 12h or 4w, got 7"),
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


def test_an_old_key_of_images_is_merely_unknown_to_tables() -> None:
    assert message("model: {contamination: true}").startswith("unknown key model.contamination")
    assert message("data: {window: auto}").startswith("unknown key data.window")


def test_a_null_does_not_hide_an_unknown_key() -> None:
    assert message("calibration: {alfa: null}") == (
        "unknown key calibration.alfa, did you mean alpha"
    )
