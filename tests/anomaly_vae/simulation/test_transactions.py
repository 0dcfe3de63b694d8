"""Simulated transactions: the promises of the docstring, from the returned table alone."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from anomaly_vae.errors import DataError
from anomaly_vae.simulation.transactions import simulate_transactions

DAY = np.timedelta64(1, "D")
WINDOW_DAYS = (1, 7, 30)
LABEL_DELAY_DAYS = 7
CHANNELS = {"chip", "contactless", "online", "atm", "mail_order"}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return simulate_transactions(20_000, seed=0)


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy()


def genuine(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["TX_FRAUD"], 0))


def test_the_schema_is_the_handbooks_and_a_channel(table: pa.Table) -> None:
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("TRANSACTION_ID", "int32"),
        ("TX_DATETIME", "timestamp[us]"),
        ("CUSTOMER_ID", "int16"),
        ("TERMINAL_ID", "int16"),
        ("TX_AMOUNT", "double"),
        ("TX_FRAUD", "int8"),
        ("TX_FRAUD_SCENARIO", "int8"),
        ("TX_DURING_WEEKEND", "int8"),
        ("TX_DURING_NIGHT", "int8"),
        *((f"CUSTOMER_ID_{what}_{days}DAY_WINDOW", "float")
          for days in WINDOW_DAYS for what in ("NB_TX", "AVG_AMOUNT")),
        *((f"TERMINAL_ID_{what}_{days}DAY_WINDOW", "float")
          for days in WINDOW_DAYS for what in ("NB_TX", "RISK")),
        ("TX_CHANNEL", "string"),
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    assert simulate_transactions(500, seed=3).equals(simulate_transactions(500, seed=3))
    assert not simulate_transactions(500, seed=3).equals(simulate_transactions(500, seed=4))


@pytest.mark.parametrize("rows", [1, 2, 999, 1_000, 20_000])
def test_it_has_the_rows_asked_for_in_time_order(rows: int) -> None:
    table = simulate_transactions(rows, seed=1)
    assert column(table, "TRANSACTION_ID").tolist() == list(range(rows))
    assert np.all(np.diff(column(table, "TX_DATETIME")) >= np.timedelta64(0))


@pytest.mark.parametrize("rows", [1_000, 5_000, 50_000])
def test_it_spans_nine_weeks_whatever_its_size(rows: int) -> None:
    moments = column(simulate_transactions(rows, seed=2), "TX_DATETIME")
    assert 56 < (moments[-1] - moments[0]) / DAY < 70


def test_too_few_or_too_many_rows_are_refused_with_the_range() -> None:
    for rows in (0, -5, 2_000_001):
        with pytest.raises(DataError, match=f"rows: expected 1 to 2,000,000, got {rows:,}"):
            simulate_transactions(rows, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(DataError, match="seed: expected a whole number from 0 up, got -1"):
        simulate_transactions(10, seed=-1)


def rows_of(table: pa.Table, owner: str, owner_id: int) -> pa.Table:
    return table.filter(pc.equal(table[owner], owner_id))


def rows_with_full_windows(mine: pa.Table, begin: np.datetime64) -> np.ndarray:
    """Positions whose longest window, delay included, begins after the table does."""
    oldest = (max(WINDOW_DAYS) + LABEL_DELAY_DAYS) * DAY
    return np.flatnonzero(column(mine, "TX_DATETIME") - oldest >= begin)


def test_customer_windows_are_what_a_loop_over_the_rows_finds(table: pa.Table) -> None:
    customer = int(np.bincount(column(table, "CUSTOMER_ID")).argmax())
    mine = rows_of(table, "CUSTOMER_ID", customer)
    moment, amount = column(mine, "TX_DATETIME"), column(mine, "TX_AMOUNT")
    positions = rows_with_full_windows(mine, column(table, "TX_DATETIME")[0])
    assert len(positions) > 20
    for i in positions:
        for days in WINDOW_DAYS:
            window = (moment > moment[i] - days * DAY) & (moment <= moment[i])
            assert mine[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"][i].as_py() == window.sum()
            mean = mine[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"][i].as_py()
            assert mean is None or mean == pytest.approx(amount[window].mean(), rel=1e-6)


def test_terminal_windows_are_what_a_loop_over_the_rows_finds(table: pa.Table) -> None:
    frauds = table.filter(pc.equal(table["TX_FRAUD"], 1))
    terminal = int(np.bincount(column(frauds, "TERMINAL_ID")).argmax())
    mine = rows_of(table, "TERMINAL_ID", terminal)
    moment, fraud = column(mine, "TX_DATETIME"), column(mine, "TX_FRAUD")
    positions = rows_with_full_windows(mine, column(table, "TX_DATETIME")[0])
    assert len(positions) > 10
    assert column(mine, "TERMINAL_ID_RISK_30DAY_WINDOW")[positions].max() > 0
    for i in positions:
        known = moment[i] - LABEL_DELAY_DAYS * DAY
        for days in WINDOW_DAYS:
            window = (moment > known - days * DAY) & (moment <= known)
            count, risk = window.sum(), fraud[window].sum() / max(window.sum(), 1)
            assert mine[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"][i].as_py() == count
            assert mine[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"][i].as_py() == pytest.approx(risk)


def test_night_and_weekend_follow_from_the_time(table: pa.Table) -> None:
    moments = table["TX_DATETIME"]
    night = pc.less(pc.hour(moments), 7).cast(pa.int8())
    weekend = pc.greater_equal(pc.day_of_week(moments), 5).cast(pa.int8())  # Monday is 0
    assert table["TX_DURING_NIGHT"].equals(night)
    assert table["TX_DURING_WEEKEND"].equals(weekend)


def test_only_two_columns_have_missing_values(table: pa.Table) -> None:
    shares = {name: table[name].null_count / table.num_rows for name in table.column_names}
    assert shares.pop("TX_CHANNEL") == pytest.approx(0.02, abs=0.004)
    assert shares.pop("CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW") == pytest.approx(0.03, abs=0.005)
    assert set(shares.values()) == {0.0}
    for name in shares:
        assert not pc.any(pc.is_null(table[name], nan_is_null=True)).as_py()


def test_channels_are_five_of_which_mail_order_is_rare(table: pa.Table) -> None:
    channels = column(genuine(table), "TX_CHANNEL")
    assert set(channels) - {None} == CHANNELS
    assert 0.001 < np.mean(channels == "mail_order") < 0.02
    assert all(np.mean(channels == name) > 0.05 for name in CHANNELS - {"mail_order"})


def test_a_terminal_takes_only_the_channels_of_its_kind(table: pa.Table) -> None:
    taken: dict[int, set[str]] = {}
    known = table.filter(pc.is_valid(table["TX_CHANNEL"]))
    for terminal, channel in zip(
        column(known, "TERMINAL_ID"), column(known, "TX_CHANNEL"), strict=True
    ):
        taken.setdefault(int(terminal), set()).add(channel)
    kinds = ({"chip", "contactless"}, {"online", "mail_order"}, {"atm"})
    assert all(any(channels <= kind for kind in kinds) for channels in taken.values())


def test_amounts_are_positive_whole_cents_and_contactless_ones_small(table: pa.Table) -> None:
    amount = column(table, "TX_AMOUNT")
    assert amount.min() >= 0.01
    np.testing.assert_array_equal(amount, amount.round(2))
    assert amount[column(table, "TX_CHANNEL") == "contactless"].max() <= 50


@pytest.mark.parametrize("seed", range(4))
def test_one_to_two_percent_are_fraud_of_all_four_scenarios(seed: int) -> None:
    table = simulate_transactions(20_000, seed)
    fraud, scenario = column(table, "TX_FRAUD"), column(table, "TX_FRAUD_SCENARIO")
    assert 0.01 < fraud.mean() < 0.02
    np.testing.assert_array_equal(fraud == 1, scenario > 0)
    assert all(np.sum(scenario == number) >= 20 for number in (1, 2, 3, 4))


def test_each_scenario_shows_as_it_is_described(table: pa.Table) -> None:
    scenario, channel = column(table, "TX_FRAUD_SCENARIO"), column(table, "TX_CHANNEL")
    times_the_usual = column(table, "TX_AMOUNT") / column(
        table, "CUSTOMER_ID_AVG_AMOUNT_30DAY_WINDOW"
    )
    assert np.median(times_the_usual[scenario == 0]) < 1.2
    assert np.median(times_the_usual[scenario == 1]) > 3
    assert np.median(column(table, "TERMINAL_ID_RISK_30DAY_WINDOW")[scenario == 2]) > 0.1
    assert np.median(column(table, "CUSTOMER_ID_NB_TX_1DAY_WINDOW")[scenario == 3]) >= 4
    assert set(channel[scenario == 3]) <= {"online", None}
    assert set(channel[scenario == 4]) <= {"mail_order", None}


def test_who_is_defrauded_by_mail_never_ordered_by_mail(table: pa.Table) -> None:
    normal = genuine(table)
    orders_by_mail = set(
        column(normal, "CUSTOMER_ID")[column(normal, "TX_CHANNEL") == "mail_order"]
    )
    fourth = table.filter(pc.equal(table["TX_FRAUD_SCENARIO"], 4))
    assert orders_by_mail.isdisjoint(column(fourth, "CUSTOMER_ID").tolist())


def late_minus_early(seed: int) -> dict[str, float]:
    """For genuine rows, the mean of the last third less that of the first, in deviations."""
    rows = genuine(simulate_transactions(20_000, seed))
    values = {
        name: column(rows, name)
        for name in rows.column_names
        if name == "TX_AMOUNT" or "_WINDOW" in name or "DURING" in name
    } | {name: column(rows, "TX_CHANNEL") == name for name in CHANNELS}
    third = rows.num_rows // 3
    return {
        name: (np.nanmean(v[-third:]) - np.nanmean(v[:third])) / np.nanstd(v)
        for name, v in values.items()
    }


def test_genuine_rows_have_the_same_means_early_and_late() -> None:
    """What a threshold set on earlier rows promises of later ones rests on this.

    Rows of one customer go together, so a single world wavers by about 0.04; ten do not.
    """
    worlds = [late_minus_early(seed) for seed in range(10)]
    for name in worlds[0]:
        assert abs(np.mean([world[name] for world in worlds])) < 0.05, name
