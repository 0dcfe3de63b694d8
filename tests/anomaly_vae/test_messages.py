"""Values and lists of names are short in error messages."""

from anomaly_vae.messages import listed, shown


def test_a_quoted_value_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert shown(True) == "true"
    assert shown(2.5) == "2.5"
    assert len(shown("x" * 100)) == 40


def test_a_list_of_names_is_quoted_and_cut() -> None:
    assert listed([]) == "nothing"
    assert listed(["a", "b"]) == "'a', 'b'"
    names = [f"n{i}" for i in range(14)]
    assert listed(names[:12]).endswith("'n11'")
    assert listed(names).endswith("'n11' and 2 more")
    assert listed(names, most=1) == "'n0' and 13 more"
