"""The parts of a label and their limits."""

import time
from decimal import Decimal

import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.review.labels import MAX_NAME, MAX_NOTE, Label


@pytest.mark.parametrize("row", [12, 12.0, "12", "12.0", " 12 ", Decimal("12.00"), b"12"])
def test_spellings_of_a_number_are_one_id(row):
    assert Label.of("fraud", row, "anomaly", "alice").id == "12"


@pytest.mark.parametrize("row", ["0012", "12a", "1.5", "ü-7", "N/A", "<b>"])
def test_other_texts_stay_as_they_are(row):
    assert Label.of("fraud", row, "normal", "alice").id == row


@pytest.mark.parametrize(
    ("field", "change", "reason"),
    [
        ("label", {"label": "maybe"}, "expected anomaly, normal or unsure, got 'maybe'"),
        ("label", {"label": "Anomaly"}, "expected anomaly"),
        ("id", {"row": None}, "empty"),
        ("id", {"row": float("nan")}, "empty"),
        ("id", {"row": "  "}, "empty"),
        ("id", {"row": "x" * (MAX_NAME + 1)}, "201 characters"),
        ("id", {"row": 1e300}, "301 characters"),
        ("id", {"row": "a\nb"}, "control characters"),
        ("id", {"row": "a\x00b"}, "control characters"),
        ("id", {"row": "a\udc80b"}, "control characters"),
        ("model", {"model": ""}, "empty"),
        ("model", {"model": "a\x1b[31m"}, "control characters"),
        ("who", {"who": "\x7fbob"}, "control characters"),
        ("note", {"note": "x" * (MAX_NOTE + 1)}, "2,001 characters"),
        ("note", {"note": "\x1b[2J"}, "control characters"),
        ("at", {"at": time.time() + 3600}, "in the future"),
    ],
)
def test_bad_parts_are_named(field, change, reason):
    good = {"model": "fraud", "row": 12, "label": "normal", "who": "alice", "at": None, "note": ""}
    with pytest.raises(DataError, match=reason) as caught:
        Label.of(**good | change)
    assert caught.value.column == field


def test_notes_are_texts_of_several_lines_and_any_script():
    note = "<script>alert('x')</script>\n\t'; DROP TABLE anomaly_vae_labels; -- 中文 ﷺ"
    assert Label.of("fraud", 12, "normal", "alice", note=note).note == note
