"""The hierarchy is the one drawn at the top of its module, and every class can be told apart."""

import inspect
import re

import pytest

from anomaly_vae import errors
from anomaly_vae.errors import AnomalyVAEError, ConfigError, DataError, RecordError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]


def drawn() -> dict[str, str]:
    """Class → parent, as the picture in the module's docstring shows them."""
    parents: list[str] = []
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        name = re.search(r"\b\w+Error\b", line)
        if not name or not line.startswith("    "):
            continue
        depth = (name.start() - 4) // 4
        parents[depth:] = [name[0]]
        found[name[0]] = parents[depth - 1] if depth else "Exception"
    return found


def test_the_drawn_hierarchy_is_the_one_that_is_raised() -> None:
    assert drawn() == {c.__name__: c.__base__.__name__ for c in CLASSES}


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_caught_by_the_root(error: type[Exception]) -> None:
    assert issubclass(error, AnomalyVAEError)
    assert error.__doc__


def test_errors_carry_their_place() -> None:
    assert ConfigError("x", key="model.depth").key == "model.depth"
    error = DataError("x", column="age", path="a.csv")
    assert (error.column, error.path) == ("age", "a.csv")


def test_a_record_error_names_the_record_and_the_field() -> None:
    error = RecordError(3, "age", "expected a number, got 'abc'")
    assert str(error) == "record 3, field 'age': expected a number, got 'abc'"
    assert (error.record, error.field, error.column) == (3, "age", "age")
    assert str(RecordError(0, None, "expected an object")) == "record 0: expected an object"
