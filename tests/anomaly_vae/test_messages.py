"""Values and lists of names are short in error messages."""

from anomaly_vae.messages import listed, shown


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
