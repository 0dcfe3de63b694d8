"""Check what the configuration of windows accepts."""

import pytest
from pydantic import ValidationError

from anomaly_vae.config import validate_config
from anomaly_vae.config.windows import EntityWindows, seconds
from anomaly_vae.errors import ConfigError


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("4w", 2_419_200)])
def test_durations_have_units(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["0h", "7", "1.5d", "-1h", "1 h", "1y", ""])
def test_other_durations_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 30m, 12h, 7d or 4w"):
        seconds(text)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"over": ["1h", "60m"], "count": True}, "names a length twice"),
        ({"over": ["1h"]}, "add count: true"),
        ({"over": [], "count": True}, "at least 1"),
    ],
)
def test_contradictions_are_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EntityWindows.model_validate(section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"risk": {"label": "fraud"}}, "risk.delay is missing; write delay: 7d"),
        (
            {"risk": {"label": "fraud", "delay": 7}},
            "risk.delay: expected text, got 7; write delay: 7d",
        ),
        ({"risk": "fraud"}, "got 'fraud'; write risk: {label: COLUMN, delay: 7d}"),
        ({"risk": {"label": "fraud", "delay": "0d"}}, "write 30m, 12h, 7d or 4w"),
        ({"risk": {"label": "fraud", "dealy": "7d"}}, "risk.dealy, did you mean delay"),
        ({"over": "1h"}, "over: expected a list, got '1h'; write over: [1h, 7d]"),
        ({"over": []}, "over: expected at least one, got []; write over: [1h, 7d]"),
        ({"over": None}, "over: expected a list, got nothing; write over: [1h, 7d]"),
        ({"of": ["amount"]}, "write of: {COLUMN: [sum, mean]}"),
        ({"distinct": "shop"}, "write distinct: [COLUMN]"),
        ({"cuont": True}, "unknown key data.windows.card.cuont, did you mean count"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_line_that_mends_it(
    section: dict[str, object], message: str
) -> None:
    windows = {"card": {"over": ["1h"], "count": True, **section}}
    data = {"path": "a.csv", "time": "at", "windows": windows}
    with pytest.raises(ConfigError) as error:
        validate_config({"name": "cards", "data": data})
    assert message in str(error.value)
