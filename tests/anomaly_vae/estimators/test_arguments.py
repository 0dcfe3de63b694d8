"""Arguments of a constructor become a configuration, and its docstring describes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly_vae.errors import ConfigError
from anomaly_vae.estimators.arguments import (
    ARGUMENTS,
    HELD_OUT,
    LARGEST_SEED,
    SHARED_KEYS,
    configuration,
    documented,
    seed_of,
    value_at,
)

KEYS = {
    "alpha": ("calibration.alpha",),
    "epochs": ("training.epochs",),
    "features": ("data.features",),
    "random_state": ("training.seed", "score.seed"),
}


def configured(**arguments: Any) -> dict[str, Any]:
    """Return the configuration of these arguments; the others are None."""
    given = {**dict.fromkeys(KEYS), "random_state": 0, **arguments}
    return configuration("tabular", KEYS, given).model_dump(mode="json")


def test_an_argument_sets_its_keys_and_none_leaves_the_default() -> None:
    assert value_at(configured(alpha=0.2), "calibration.alpha") == 0.2
    assert value_at(configured(), "calibration.alpha") == 0.01
    assert value_at(configured(), "data.splits.calibration") == HELD_OUT


def test_one_argument_may_set_several_keys() -> None:
    content = configured(random_state=7)
    assert value_at(content, "training.seed") == value_at(content, "score.seed") == 7


def test_numbers_of_numpy_are_plain_numbers() -> None:
    content = configured(epochs=np.int64(3), alpha=np.float32(0.25))
    assert (value_at(content, "training.epochs"), value_at(content, "calibration.alpha")) == (
        3,
        0.25,
    )


def test_types_of_features_may_be_given_by_name_alone() -> None:
    content = configured(features={"a": "numeric", "b": {"type": "binary"}})
    assert value_at(content, "data.features.a.type") == "numeric"
    assert value_at(content, "data.features.b.type") == "binary"


def test_a_value_that_does_not_fit_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        configured(alpha=2)
    assert caught.value.key == "calibration.alpha"


def test_the_value_of_a_key_that_is_absent_is_none() -> None:
    content = {"model": {"depth": 2}, "score": "neg_elbo"}
    assert value_at(content, "model.depth") == 2
    assert value_at(content, "model.width") is None
    assert value_at(content, "score.type") is None
    assert value_at(content, "data.splits.test") is None


def test_a_seed_is_kept_and_a_generator_moves_on() -> None:
    assert seed_of(42) == 42
    first, second = (np.random.RandomState(0) for _ in range(2))
    assert seed_of(first) == seed_of(second)
    drawn = [seed_of(first) for _ in range(50)]
    assert len(set(drawn)) == 50
    assert all(0 <= seed < LARGEST_SEED for seed in drawn)


def test_without_a_seed_one_is_drawn_from_numpys_own_generator() -> None:
    state = np.random.get_state()  # noqa: NPY002 what scikit-learn draws from
    try:
        np.random.seed(3)  # noqa: NPY002
        first, second = seed_of(None), seed_of(None)
        np.random.seed(3)  # noqa: NPY002
        assert seed_of(None) == first != second
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_a_docstring_describes_each_argument_with_its_default() -> None:
    class Estimator:
        def __init__(self, alpha: float, epochs: int | None, random_state: int) -> None: ...

    text = documented(f"Args:\n{ARGUMENTS}\nEnd.", "tabular", SHARED_KEYS, Estimator.__init__)
    head, *lines = text.splitlines()
    assert (head, lines[-1]) == ("Args:", "End.")
    starts = [line.strip().partition(":")[0] for line in lines if not line.startswith(" " * 12)]
    assert starts == ["alpha", "epochs", "random_state", "End."]
    body = " ".join(text.split())
    assert "Default: 0.01." in body
    assert "Seed of everything random" in body
    assert "null" not in body
    assert all(len(line) <= 100 for line in lines)
