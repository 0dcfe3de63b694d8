"""What a case holds: clean, short texts and finite numbers; and which snoozes are refused."""

import json
import math

import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.review import Case, CaseReason, Snooze
from anomaly_vae.review.cases import MAX_FIELDS_LENGTH


def case(row=12, **parts):
    usual = {"score": 9.5, "p_value": 0.001, "threshold": 5.0, "alpha": 0.01, "at": 5.0}
    return Case.of(model="fraud", row=row, **{**usual, **parts})


@pytest.mark.parametrize("row", [12, 12.0, "12", " 12 "])
def test_an_id_is_the_one_that_labels_name(row):
    assert case(row).row_id == "12"


@pytest.mark.parametrize("row", [None, "", math.nan])
def test_a_row_without_an_id_is_named_by_its_contents_and_time(row):
    first, again = case(row, fields={"a": 1}), case(row, fields={"a": 1}, recorded_at=7.0)
    assert first.row_id.startswith("row-")
    assert first.key == again.key
    assert first.key != case(row, fields={"a": 2}).key
    assert first.key != case(row, fields={"a": 1}, at=6.0).key


def test_ids_that_labels_refuse_stay_distinct():
    odd = [case(name).row_id for name in ("a" * 300, "a" * 301, "b\0", "b?", "b\ud800", b"\xff")]
    assert len({*odd}) == len(odd)
    assert all(len(name) <= 200 and name.isprintable() for name in odd)


def test_texts_are_cut_and_numbers_finite():
    reason = CaseReason("amount", math.nan, math.inf, "x" * 600, "line\nline")
    odd = case(
        fields={"text": "x" * 600, "nan": math.nan, "inf": math.inf, "list": [1], "big": 1 << 80},
        reasons=[reason] * 50, amount="12.5", amount_column="eur", unusual_input="y" * 600,
        at=math.inf, recorded_at=9.0,
    )  # fmt: skip
    assert (len(odd.fields["text"]), odd.fields["nan"], odd.fields["inf"]) == (500, None, "inf")
    assert (odd.fields["list"], odd.amount, odd.at) == ("[1]", 12.5, 9.0)
    assert (len(odd.reasons), odd.reasons[0].text, odd.reasons[0].amount) == (20, "line?line", 0.0)
    json.dumps(odd.fields, allow_nan=False)


def test_fields_are_limited():
    many = case(fields={f"column {number}": "x" * 400 for number in range(1_000)})
    assert 0 < len(json.dumps(many.fields)) < 1.2 * MAX_FIELDS_LENGTH


def test_an_entity_needs_a_column_and_a_value():
    assert case(entity=7).entity is None
    assert case(entity_column="card").entity_column is None
    assert case(entity_column="card", entity=7.0).entity == "7"


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("until", {"until": 10.0}), ("until", {"until": math.nan}), ("until", {"until": 1e300}),
        ("reason", {"reason": " "}), ("reason", {"reason": "x" * 2_001}),
        ("who", {"who": ""}), ("entity", {"entity": None}),
        ("entity_column", {"entity_column": ""}),
    ],
)  # fmt: skip
def test_a_bad_snooze_names_the_part(field, parts):
    good = {"entity_column": "card", "entity": 7, "until": 20.0, "reason": "new", "who": "alice"}
    assert Snooze.of(**good, at=10.0).entity == "7"
    with pytest.raises(DataError) as caught:
        Snooze.of(**{**good, **parts}, at=10.0)
    assert caught.value.column == field
