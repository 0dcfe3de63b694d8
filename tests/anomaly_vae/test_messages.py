"""Values and lists of names are short in error messages."""

import math

import pytest

from anomaly_vae.messages import listed, plain_number, shown


def test_a_quoted_value_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown(True) == "true"
    assert shown(2.5) == "2.5"
    assert len(shown("x" * 100)) == 40


def test_long_lists_of_names_are_cut() -> None:
    assert listed([]) == "nothing"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed([f"c{i}" for i in range(1_500)]).endswith("'c11' and 1488 more")
    assert listed(["a", "b"], most=2) == "'a', 'b'"
    assert listed(["a", "b", "c"], most=1) == "'a' and 2 more"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00001, "0.00001"),
        (0.0000123456, "0.0000123"),
        (0.0999, "0.0999"),
        (3.70, "3.7"),
        (9.999, "10"),
        (99.96, "100"),
        (1045.82, "1046"),
        (-12345678.9, "-12345679"),
        (9, "9"),
        (-0.0, "0"),
        (1e20, "1e+20"),
        (5e-324, "4.94e-324"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_for_people_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert plain_number(value) == text
