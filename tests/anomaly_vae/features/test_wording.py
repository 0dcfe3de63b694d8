"""Window features in words."""

import math

import pytest

from anomaly_vae.config.windows import EntityWindows, Risk
from anomaly_vae.features import WindowDefinition
from anomaly_vae.features.wording import describe, span

CARD = EntityWindows(
    over=("30d",),
    count=True,
    of={"amount": ("sum", "mean", "max", "std")},
    distinct=("shop",),
    since_last=True,
    risk=Risk(label="fraud", delay="7d"),
)
FEATURES = {str(f.kind): f for f in WindowDefinition({"card": CARD}).features}


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("count", 9, "9 events of this card in the last 30 days"),
        ("count", 0, "0 events of this card in the last 30 days"),
        ("sum", 1234.5, "total amount 1,234.50 of this card in the last 30 days"),
        ("mean", 0.01234, "mean amount 0.0123 of this card in the last 30 days"),
        ("max", 120.0, "highest amount 120 of this card in the last 30 days"),
        ("std", 5.25, "standard deviation of amount 5.25 of this card in the last 30 days"),
        ("distinct", 3, "3 different shop of this card in the last 30 days"),
        (
            "risk",
            0.125,
            "12.5% known anomalies among the events of this card in the 30 days that ended 7 days "
            "before",
        ),
        ("since_last", 120.0, "2 minutes since the last event of this card"),
        ("since_last", None, "no event of this card in the last 30 days"),
        ("max", math.nan, "no amount of this card in the last 30 days"),
        ("risk", None, "no event of this card in the 30 days that ended 7 days before"),
    ],
)
def test_each_kind_has_its_words(kind: str, value: float | None, words: str) -> None:
    assert describe(FEATURES[kind], value) == words


def test_the_noun_can_be_given() -> None:
    assert describe(FEATURES["count"], 2, "payment").startswith("2 payments of this card")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (0, "0 seconds"),
        (604_800, "7 days"),
        (86_400, "1 day"),
        (4_000, "67 minutes"),
    ],
)
def test_times_have_one_unit(seconds: float, words: str) -> None:
    assert span(seconds) == words
