"""Test what label values and words mean."""

from __future__ import annotations

import pytest

from anomaly_vae.data.vocabulary import ANOMALY, NORMAL, UNSURE, Vocabulary


@pytest.mark.parametrize(
    ("positive", "normal", "name", "code"),
    [
        (1, (), "1", ANOMALY),
        (1, (), "true", ANOMALY),
        (1, (), "0", NORMAL),
        (1, (), "false", NORMAL),
        (1, (), "Anomaly", ANOMALY),
        (1, (), "NORMAL", NORMAL),
        (1, (), "unsure", UNSURE),
        (1, (), "2", None),
        (1, (), "fruad", None),
        (0, (), "1", NORMAL),
        ("fraud", (), "fraud", ANOMALY),
        ("fraud", (), "legit", None),
        ("fraud", ("legit",), "legit", NORMAL),
        ("fraud", (), "1", None),
        ("normal", (), "normal", ANOMALY),
        (2, ("0", "1"), "1", NORMAL),
    ],
)
def test_labels_mean_what_the_configuration_and_the_words_say(
    positive: object, normal: tuple[str, ...], name: str, code: int | None
) -> None:
    assert Vocabulary(positive, frozenset(normal)).code(name) == code


@pytest.mark.parametrize(
    ("positive", "normal", "name"),
    [
        (1, (), "0"),
        (1, ("false",), "false"),
        (True, (), "false"),
        ("fraud", (), "normal"),
        ("fraud", ("legit", "ok"), "legit"),
        ("normal", (), "other"),
    ],
)
def test_a_normal_row_is_named_as_the_others_are(
    positive: object, normal: tuple[str, ...], name: str
) -> None:
    assert Vocabulary(positive, frozenset(normal)).normal_name == name
