"""Whole numbers that name things are told from amounts and counts."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.data.identifiers import named_like_things, seems_to_name_things, words
from anomaly_vae.data.schema import ColumnType
from anomaly_vae.data.type_inference import infer_type
from anomaly_vae.simulation.transactions import simulate_transactions

FEW = pa.array([5411, 5812, 4829])


def test_words_are_split() -> None:
    assert words("a b") == {"a", "b"}


@pytest.mark.parametrize(
    "name",
    ["mcc", "MCC", "customer_id", "CustomerID", "merchantid", "terminal", "zip",
     "zipCode", "postcode", "account_no", "Kunden-Nr.", "card number", "CardNo", "PLZ", "phone",
     "iban", "order_key", "house_number"],
)  # fmt: skip
def test_columns_named_like_things(name: str) -> None:
    assert named_like_things(name)
    assert seems_to_name_things(name, FEW)
    assert seems_to_name_things(name, pa.array([5411.0, 5812.0]))


@pytest.mark.parametrize(
    "name",
    ["amount", "TX_AMOUNT", "CUSTOMER_ID_NB_TX_1DAY_WINDOW", "TERMINAL_ID_RISK_7DAY_WINDOW",
     "num_cards", "number_of_accounts", "days_since_account_opening", "card_count",
     "account_balance", "n_users", "customer_age", "valid", "paid", "x", "V14",
     "", "total_no_of_items"],
)  # fmt: skip
def test_columns_that_measure_or_count(name: str) -> None:
    assert not named_like_things(name)
    assert not seems_to_name_things(name, FEW)


def test_fractions_name_nothing() -> None:
    assert not seems_to_name_things("customer_id", pa.array([1.5, 2.0]))


def test_long_numbers_of_one_length_name_things_whatever_the_column_is_called() -> None:
    draw = random.Random(0)
    cards = pa.array([draw.randrange(4 * 10**15, 5 * 10**15) for _ in range(50)])
    assert seems_to_name_things("x", cards)
    assert not seems_to_name_things("total_amount", cards)
    assert not seems_to_name_things("x", cards.slice(0, 19))
    assert not seems_to_name_things("x", pa.array([10**k for k in range(18)] * 2))


def naming(table: pa.Table) -> set[str]:
    notes = {name: infer_type(name, table.column(name))[1] for name in table.column_names}
    return {name for name, note in notes.items() if note and "name things" in note}


def test_no_count_or_amount_of_transactions_is_said_to_name_things() -> None:
    table = simulate_transactions(3_000, seed=0)
    assert naming(table) == {"CUSTOMER_ID", "TERMINAL_ID"}


@pytest.mark.parametrize("value", ["00123", "07"])
def test_zero_padded_text_stays_text(value: str) -> None:
    kind, note = infer_type("branch", pa.chunked_array([[value, "12345", "99999"] * 10]))
    assert kind is ColumnType.CATEGORICAL
    assert note is not None
    assert "zero-padded" in note
    assert "data.types: {branch: {type: numeric}}" in note


FRAUD = Path("shared/data/fraud")


@pytest.mark.skipif(not FRAUD.is_dir(), reason="needs the published transactions")
def test_no_count_or_amount_of_the_published_transactions_is_said_to_name_things() -> None:
    table = pq.read_table(min(FRAUD.glob("*.parquet"))).slice(0, 20_000)
    assert naming(table) == {"CUSTOMER_ID", "TERMINAL_ID"}
