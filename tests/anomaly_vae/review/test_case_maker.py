"""Which columns a case keeps, which are masked, and where its time, entity and amount come from."""

import math

import pytest

from anomaly_vae.errors import ConfigError
from anomaly_vae.review import CaseColumns, CaseFields, CaseMaker, CaseReason

SALT = "0123456789abcdef"
ROW = {"tx": 12, "at": "2024-01-31T12:00:00", "card": 7, "amount": 950.0, "name": "Ann"}
REASONS = [
    CaseReason("amount", 6.0, 950.0, 28.1, "amount 950, usually 5 to 80"),
    CaseReason("card_amount_sum_1h", 2.0, 1000.0, 30.0, "the sum of amount is 1,000"),
    CaseReason("card_count_1h", 1.0, 9.0, 1.0, "9 events"),
]


def maker(fields=CaseFields(), **columns):  # noqa: B008  # it is frozen
    usual = {"id": "tx", "time": "at", "entity": "card", "amount": "amount"}
    return CaseMaker(
        model="fraud", version="3", alpha=0.01, columns=CaseColumns(**{**usual, **columns}),
        names=("amount", "card_amount_sum_1h", "card_count_1h"), fields=fields,
        sources={"card_amount_sum_1h": "amount", "card_count_1h": "card_count_1h"},
    )  # fmt: skip


def made(one, row=ROW, **parts):
    return one.make(row, score=9.5, p_value=0.001, threshold=5.0, reasons=REASONS, **parts)


def test_a_case_has_the_columns_of_the_model():
    case = made(maker(), {**ROW, "card_amount_sum_1h": 1000.0})
    assert case.fields == {"amount": 950.0, "card_amount_sum_1h": 1000.0}
    assert (case.row_id, case.at, case.entity_column, case.entity) == (
        "12",
        1706702400.0,
        "card",
        "7",
    )
    assert (case.amount_column, case.amount, case.reasons) == ("amount", 950.0, tuple(REASONS))


@pytest.mark.parametrize("at", [None, "soon", math.nan, [1]])
def test_without_a_time_that_of_scoring_counts(at):
    assert made(maker(), {**ROW, "at": at}, recorded_at=5.0).at == 5.0


def test_masked_values_appear_nowhere():
    fields = CaseFields(masked=frozenset({"amount", "card"}), salt=SALT)
    case = made(maker(fields), {**ROW, "card_amount_sum_1h": 1000.0})
    assert "950" not in repr(case)
    assert "1000" not in repr(case)
    assert case.fields["amount"].startswith("masked-")
    assert (case.entity, case.amount) == (fields.value("card", "7"), None)
    assert case.reasons[2] == REASONS[2]
    other = CaseFields(masked=frozenset({"card"}), salt=SALT[::-1])
    assert other.value("card", 7) != fields.value("card", 7)


def test_only_named_columns_are_kept():
    case = made(maker(CaseFields(kept=frozenset({"name", "card_count_1h"}))))
    assert case.fields == {"name": "Ann"}
    assert [one.observed for one in case.reasons] == [None, None, 9.0]
    assert "950" not in repr([one.text for one in case.reasons])


@pytest.mark.parametrize("hidden", [{"masked": {"amount"}}, {"kept": {"name"}}])
def test_reasons_that_are_no_columns_hide_the_values_of_columns_only(hidden):
    fields = CaseFields(**{key: frozenset(names) for key, names in hidden.items()}, salt=SALT)
    text = "resembles known fraud: amount 950"
    like = CaseReason("known_anomalies", 2.0, "amount 950 (1.5)", "no resemblance", text)
    region = CaseReason("region", 8.0, "1,2,3,4", None, "the area from x 1 to 3")
    found, place = (
        maker(fields).make(ROW, score=9, p_value=0.01, threshold=5, reasons=(like, region)).reasons
    )
    assert (found.text, found.observed, found.expected) == ("resembles known fraud", None, None)
    assert place == region
    whole = maker().make(ROW, score=9, p_value=0.01, threshold=5, reasons=(like,))
    assert whole.reasons == (like,)


def test_a_mask_needs_a_salt():
    with pytest.raises(ConfigError, match="ANOMALY_VAE_CASES_SALT"):
        CaseFields(masked=frozenset({"card"}), salt="short")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, CaseColumns()),
        ({"data": {"group": "customer", "windows": {"card": {}}}}, CaseColumns(entity="customer")),
        ({"calibration": {"cost": {"amount": "eur"}}}, CaseColumns(amount="eur")),
        ({"calibration": {"cost": None}, "data": {"windows": None}}, CaseColumns()),
    ],
)
def test_columns_of_a_configuration(config, expected):
    assert CaseColumns.of_config(config) == expected
    assert expected.named("a", "b") == CaseColumns(entity="a", amount="b")
