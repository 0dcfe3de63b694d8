"""Check what the configuration of windows accepts."""

import pytest
from pydantic import ValidationError

from anomaly_vae.config.windows import EntityWindows, seconds


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
        ({"over": ["1h"], "risk": {"label": "fraud"}}, "delay"),
    ],
)
def test_contradictions_are_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EntityWindows.model_validate(section)
