"""Simulated data to try the detectors on: card transactions, with known frauds.

The world is a small relative of that in Le Borgne et al., *Reproducible Machine Learning for Credit
Card Fraud Detection: Practical Handbook*, chapter 3: "Transaction data simulator" for customers,
terminals and frauds, "Baseline feature transformation" for the windows. Customers and terminals
have a place; a customer has an activity, a mean amount, an hour of the day and a way to pay, and
uses the terminals nearby.

Every part of it is stationary: customers neither come, go nor change, every day has the same
distribution, and each fraud is as likely on any day. What is returned comes after a burn-in in
which the windows fill up, so earlier and later rows have the same distribution.
"""

from dataclasses import dataclass, fields
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from anomaly_vae.errors import DataError

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]

_HOUR: Final = 3_600
_DAY: Final = 24 * _HOUR
_ORIGIN: Final = np.datetime64("2024-01-01", "us")  # a Monday; second 0 of the simulation
_BURN_IN_DAYS: Final = 49  # more than the longest window (30 days) and its delay (7 days)
_RETURNED_DAYS: Final = 63  # whole weeks, like the burn-in
_DAYS: Final = _BURN_IN_DAYS + _RETURNED_DAYS

_ROWS_PER_CUSTOMER: Final = 126  # in the returned period: 2 a day
_TERMINALS_PER_CUSTOMER: Final = 2
_MIN_CUSTOMERS: Final = 10
_MAX_ROWS: Final = 2_000_000  # beyond it, terminals outnumber the 16-bit TERMINAL_ID

_CHANNELS: Final = np.array(["chip", "contactless", "online", "atm", "mail_order"])
_CHIP, _CONTACTLESS, _ONLINE, _ATM, _MAIL_ORDER = range(5)
_SHOP, _WEB, _CASH = range(3)  # what a terminal is
_KIND_OF_CHANNEL: Final = np.array([_SHOP, _SHOP, _WEB, _CASH, _WEB])
_KINDS: Final = np.array(  # of each ten terminals: as many as the channels keep equally busy
    [_SHOP, _WEB, _SHOP, _CASH, _SHOP, _SHOP, _WEB, _SHOP, _WEB, _SHOP]
)
_SIZE_OF_CHANNEL: Final = np.array([1.1, 0.6, 1.2, 1.5, 1.3])  # amount, relative to the mean
_CONTACTLESS_LIMIT: Final = 50.0  # above it the card is put in

_WINDOW_DAYS: Final = (1, 7, 30)
_LABEL_DELAY_DAYS: Final = 7  # until a transaction is known to be a fraud or not

# Shares of all transactions.
_OUT_OF_HABIT: Final = 0.0045
_COMPROMISED: Final = 0.003
_BURST: Final = 0.0045
_MAIL_FRAUD: Final = 0.003

_COMPROMISED_DAYS: Final = 28
_COMPROMISED_FRAUDS: Final = 0.7  # of the transactions at a compromised terminal
_BURST_LENGTH: Final = 8  # transactions, on average

_MISSING: Final = {"TX_CHANNEL": 0.02, "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW": 0.03}


def simulate_transactions(rows: int, seed: int) -> pa.Table:
    """Simulate `rows` card transactions in time order; the same seed gives the same table.

    The columns are those of the Handbook's feature table and `TX_CHANNEL`. `TX_DATETIME` begins
    about 2024-02-19, a Monday, and spans about 63 days whatever `rows` is (1 to 2,000,000), because
    there is one customer per 126 rows (at least 10) and two terminals per customer. Amounts are in
    units of the currency, to the cent.

    `CUSTOMER_ID_{NB_TX,AVG_AMOUNT}_{D}DAY_WINDOW` are the number and mean amount of the customer's
    transactions in `(t - D days, t]`, the row itself included. `TERMINAL_ID_{NB_TX,RISK}_…` are
    the number and the share of frauds (0 if there are none) of the terminal's transactions in
    `(t - 7 - D days, t - 7 days]`: labels are known after 7 days. A night ends at 07:00.

    `TX_FRAUD` is 1 in about 1.5% of the rows, and `TX_FRAUD_SCENARIO`, else 0, says how:

    1. out of habit: a stolen card pays four to nine times its holder's mean amount;
    2. compromised terminal: most of what a terminal takes in 28 days is fraud, for two to five
       times the amount;
    3. burst: leaked card details pay for about eight things on the web in one night;
    4. mail order: a card whose holder never orders by mail does so, for 2.5 to six times the mean.

    `TX_CHANNEL` (chip, contactless, online, atm and the rare mail_order) is missing in 2% of the
    rows and `CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW` in 3%, at random.
    """
    if not 1 <= rows <= _MAX_ROWS:
        raise DataError(f"rows: expected 1 to {_MAX_ROWS:,}, got {rows:,}")
    if seed < 0:
        raise DataError(f"seed: expected a whole number from 0 up, got {seed}")
    rng = np.random.default_rng(seed)
    total = round(rows * _DAYS / _RETURNED_DAYS)
    world = _draw_world(rows, rng)
    payments = _draw_payments(world, total, rng)
    _add_frauds(payments, world, rng)
    return _with_missing(_transaction_table(payments, rows), rng)


@dataclass(frozen=True)
class _World:
    """C customers, M terminals, and who pays where. Places lie in the unit square."""

    activity: _Floats  # (C,) share of all transactions, sums to 1
    mean_amount: _Floats  # (C,)
    hour: _Floats  # (C,) about which the day's transactions lie
    channel_shares: _Floats  # (C, 5), rows sum to 1
    kind: _Ints  # (M,) shop, web or cash
    usual: tuple[_Ints, _Ints, _Ints]  # by kind, (C, K): the terminals a customer uses

    def of_kind(self, kind: int) -> _Ints:
        """The terminals that are of `kind`."""
        return np.flatnonzero(self.kind == kind)


@dataclass
class _Payments:
    """N transactions in time order; frauds are written over genuine ones in place."""

    second: _Ints  # (N,) since the origin
    customer: _Ints  # (N,)
    terminal: _Ints  # (N,)
    channel: _Ints  # (N,) index of _CHANNELS
    amount: _Floats  # (N,)
    scenario: _Ints  # (N,) 0 for genuine


def _draw_world(rows: int, rng: np.random.Generator) -> _World:
    customers = max(_MIN_CUSTOMERS, round(rows / _ROWS_PER_CUSTOMER))
    kind = np.resize(_KINDS, _TERMINALS_PER_CUSTOMER * customers)
    activity = rng.gamma(4.0, size=customers)
    return _World(
        activity=activity / activity.sum(),
        mean_amount=np.clip(40 * rng.lognormal(0.0, 0.5, size=customers), 8, 200),
        hour=_draw_hours(customers, rng),
        channel_shares=_draw_channel_shares(customers, rng),
        kind=kind,
        usual=_draw_usual_terminals(customers, kind, rng),
    )


def _draw_hours(customers: int, rng: np.random.Generator) -> _Floats:
    """(C,) hours of the day: most people's early afternoon, for one in twelve the small hours."""
    by_day = rng.normal(13.5, 2.0, size=customers)
    return np.where(rng.random(customers) < 1 / 12, by_day + 12, by_day)


def _draw_channel_shares(customers: int, rng: np.random.Generator) -> _Floats:
    """(C, 5) shares that sum to 1; only one customer in twenty ever orders by mail."""
    at_a_terminal = rng.dirichlet([3.0, 4.0, 2.5, 1.0], size=customers)
    by_mail = np.where(rng.permutation(customers) % 20 == 0, 0.13, 0.0)
    return np.column_stack([at_a_terminal * (1 - by_mail[:, None]), by_mail])


def _draw_usual_terminals(
    customers: int, kind: _Ints, rng: np.random.Generator
) -> tuple[_Ints, _Ints, _Ints]:
    """The 20 nearest shops, 10 web shops from anywhere, and the 4 nearest cash machines."""
    homes, places = rng.random((customers, 2)), rng.random((len(kind), 2))
    shops, webs, cash = (np.flatnonzero(kind == k) for k in (_SHOP, _WEB, _CASH))
    return (
        shops[_nearest(homes, places[shops], 20)],
        rng.choice(webs, size=(customers, 10)),
        cash[_nearest(homes, places[cash], 4)],
    )


def _nearest(homes: _Floats, places: _Floats, count: int) -> _Ints:
    """(C, min(count, M)) positions of the nearest of the M `places` to each of the C `homes`."""
    count = min(count, len(places))
    blocks = np.array_split(homes, -(-len(homes) // 256))  # the distances of all would not fit
    return np.concatenate([_nearest_of_block(block, places, count) for block in blocks])


def _nearest_of_block(homes: _Floats, places: _Floats, count: int) -> _Ints:
    squared = (homes[:, :1] - places[:, 0]) ** 2 + (homes[:, 1:] - places[:, 1]) ** 2
    nearest = np.argpartition(squared, count - 1, axis=1)[:, :count]
    return np.sort(nearest, axis=1)  # the order a partition leaves depends on the processor


def _draw_payments(world: _World, total: int, rng: np.random.Generator) -> _Payments:
    """`total` transactions over the whole simulation; those of the bursts are frauds already."""
    in_bursts = round(_BURST * total)
    genuine = _draw_genuine(world, total - in_bursts, rng)
    return _in_time_order(genuine, _draw_bursts(world, in_bursts, rng))


def _draw_genuine(world: _World, count: int, rng: np.random.Generator) -> _Payments:
    """A Poisson process given its `count`: independent transactions, by activity and hour."""
    customer = rng.choice(len(world.activity), size=count, p=world.activity)
    channel = _draw_channels(world.channel_shares[customer], rng)
    of_day = np.mod(rng.normal(world.hour[customer], 3.5), 24) * _HOUR
    return _Payments(
        second=rng.integers(_DAYS, size=count) * _DAY + of_day.astype(np.int64),
        customer=customer,
        terminal=_draw_terminals(world, customer, channel, rng),
        channel=channel,
        amount=_draw_amounts(world.mean_amount[customer] * _SIZE_OF_CHANNEL[channel], rng),
        scenario=np.zeros(count, np.int64),
    )


def _draw_channels(shares: _Floats, rng: np.random.Generator) -> _Ints:
    """(N,) channels, one by each of the (N, 5) `shares`."""
    passed = shares[:, :-1].cumsum(axis=1) <= rng.random((len(shares), 1))
    channel: _Ints = passed.sum(axis=1)
    return channel


def _draw_terminals(
    world: _World, customer: _Ints, channel: _Ints, rng: np.random.Generator
) -> _Ints:
    """(N,) terminals among the customer's usual ones, of the kind the channel needs."""
    terminal = np.empty_like(customer)
    for kind, usual in enumerate(world.usual):
        here = np.flatnonzero(_KIND_OF_CHANNEL[channel] == kind)
        terminal[here] = usual[customer[here], rng.integers(usual.shape[1], size=len(here))]
    return terminal


def _draw_amounts(mean: _Floats, rng: np.random.Generator) -> _Floats:
    """(N,) amounts about their `mean`; one in a hundred is a large purchase."""
    large = np.where(rng.random(len(mean)) < 0.01, rng.uniform(2, 4, size=len(mean)), 1.0)
    return mean * large * rng.gamma(4.0, 1 / 4.0, size=len(mean))


def _draw_bursts(world: _World, count: int, rng: np.random.Generator) -> _Payments:
    """Scenario 3: `count` transactions on the web, in bursts of one card and one night each."""
    bursts = max(1, round(count / _BURST_LENGTH))
    burst = rng.integers(bursts, size=count)
    customer = rng.integers(len(world.activity), size=bursts)[burst]
    night = _spread(0, _DAYS, bursts, rng) // _DAY
    begin = night * _DAY + rng.integers(4 * _HOUR, size=bursts)
    after = rng.exponential(1.5 * _HOUR, size=count).astype(np.int64)
    return _Payments(
        second=np.minimum(begin[burst] + after, _DAYS * _DAY - 1),
        customer=customer,
        terminal=rng.choice(world.of_kind(_WEB), size=count),
        channel=np.full(count, _ONLINE),
        amount=world.mean_amount[customer] * rng.lognormal(0.6, 0.7, size=count),
        scenario=np.full(count, 3),
    )


def _spread(first: int, last: int, count: int, rng: np.random.Generator) -> _Ints:
    """(count,) seconds from day `first` to day `last`: one at random in each of `count` parts."""
    part = (rng.permutation(count) + rng.random(count)) / count
    return ((first + (last - first) * part) * _DAY).astype(np.int64)


def _in_time_order(*parts: _Payments) -> _Payments:
    order = np.argsort(np.concatenate([part.second for part in parts]), kind="stable")
    names = [field.name for field in fields(_Payments)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return _Payments(**{name: values[order] for name, values in joined.items()})


def _add_frauds(payments: _Payments, world: _World, rng: np.random.Generator) -> None:
    """Turn genuine transactions into frauds of scenarios 1, 2 and 4, and settle the amounts."""
    _compromise_terminals(payments, world, rng)
    _pay_out_of_habit(payments, world, rng)
    _order_by_mail(payments, world, rng)
    payments.amount = np.maximum(payments.amount.round(2), 0.01)
    too_much = (payments.channel == _CONTACTLESS) & (payments.amount > _CONTACTLESS_LIMIT)
    payments.channel[too_much] = _CHIP


def _pay_out_of_habit(payments: _Payments, world: _World, rng: np.random.Generator) -> None:
    """Scenario 1: a stolen card pays several times the mean amount of its holder."""
    chosen = _choose(payments.scenario == 0, _OUT_OF_HABIT, rng)
    mean = world.mean_amount[payments.customer[chosen]]
    payments.scenario[chosen] = 1
    payments.amount[chosen] = mean * rng.uniform(4, 9, size=len(chosen))


def _compromise_terminals(payments: _Payments, world: _World, rng: np.random.Generator) -> None:
    """Scenario 2: for 28 days, most of what a terminal takes is fraud.

    The first days may lie before the simulation, so that every day has as many such terminals.
    """
    share = _COMPROMISED / _COMPROMISED_FRAUDS * (1 + _DAYS / _COMPROMISED_DAYS)
    terminals = len(world.kind)
    some = rng.choice(terminals, size=max(1, round(share * terminals)), replace=False)
    begin = np.full(terminals, _DAYS * _DAY)  # never
    begin[some] = _spread(-_COMPROMISED_DAYS, _DAYS, len(some), rng)
    age = payments.second - begin[payments.terminal]
    exposed = (payments.scenario == 0) & (age >= 0) & (age < _COMPROMISED_DAYS * _DAY)
    fraud = exposed & (rng.random(len(age)) < _COMPROMISED_FRAUDS)
    payments.scenario[fraud] = 2
    payments.amount[fraud] *= rng.uniform(2, 5, size=fraud.sum())


def _order_by_mail(payments: _Payments, world: _World, rng: np.random.Generator) -> None:
    """Scenario 4: an order by mail with the card of a customer who never orders so."""
    never = world.channel_shares[payments.customer, _MAIL_ORDER] == 0
    chosen = _choose((payments.scenario == 0) & never, _MAIL_FRAUD, rng)
    payments.scenario[chosen] = 4
    payments.channel[chosen] = _MAIL_ORDER
    payments.terminal[chosen] = rng.choice(world.of_kind(_WEB), size=len(chosen))
    mean = world.mean_amount[payments.customer[chosen]]
    payments.amount[chosen] = mean * rng.uniform(2.5, 6, size=len(chosen))


def _choose(eligible: NDArray[np.bool_], share: float, rng: np.random.Generator) -> _Ints:
    """Positions of `share` of all N rows, drawn among the `eligible`."""
    return rng.choice(np.flatnonzero(eligible), size=round(share * len(eligible)), replace=False)


def _transaction_table(payments: _Payments, rows: int) -> pa.Table:
    """The last `rows` transactions with their windows, which look back at all of them."""
    moment = _ORIGIN + payments.second.astype("timedelta64[s]")
    fraud = payments.scenario > 0
    columns: dict[str, NDArray[np.generic]] = {
        "TRANSACTION_ID": np.arange(-len(fraud), 0, dtype=np.int32) + np.int32(rows),
        "TX_DATETIME": moment,
        "CUSTOMER_ID": payments.customer.astype(np.int16),
        "TERMINAL_ID": payments.terminal.astype(np.int16),
        "TX_AMOUNT": payments.amount,
        "TX_FRAUD": fraud.astype(np.int8),
        "TX_FRAUD_SCENARIO": payments.scenario.astype(np.int8),
        "TX_DURING_WEEKEND": (payments.second // _DAY % 7 >= 5).astype(np.int8),
        "TX_DURING_NIGHT": (payments.second % _DAY < 7 * _HOUR).astype(np.int8),
        **_customer_windows(payments),
        **_terminal_windows(payments),
        "TX_CHANNEL": _CHANNELS[payments.channel],
    }
    return pa.table({name: values[-rows:] for name, values in columns.items()})


def _customer_windows(payments: _Payments) -> dict[str, NDArray[np.generic]]:
    """Number and mean amount of the customer's transactions up to and including each, (N,)."""
    cents = (payments.amount * 100).round().astype(np.int64)  # whole, so that sums are exact
    columns: dict[str, NDArray[np.generic]] = {}
    for days in _WINDOW_DAYS:
        count, total = _look_back(payments.customer, payments.second, cents, days, delay=0)
        columns[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = count.astype(np.float32)
        mean = total / count / 100
        columns[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = mean.astype(np.float32)
    return columns


def _terminal_windows(payments: _Payments) -> dict[str, NDArray[np.generic]]:
    """Number and share of frauds of the terminal's transactions whose label is known, (N,)."""
    fraud = (payments.scenario > 0).astype(np.int64)
    columns: dict[str, NDArray[np.generic]] = {}
    for days in _WINDOW_DAYS:
        count, frauds = _look_back(
            payments.terminal, payments.second, fraud, days, delay=_LABEL_DELAY_DAYS
        )
        columns[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"] = count.astype(np.float32)
        risk = frauds / np.maximum(count, 1)
        columns[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"] = risk.astype(np.float32)
    return columns


def _look_back(
    owner: _Ints, second: _Ints, value: _Ints, days: int, delay: int
) -> tuple[_Ints, _Ints]:
    """Count the owner's rows in `(t - delay - days, t - delay]` and sum their `value`, (N,) each.

    Rows are in time order; `days` and `delay` are in days.
    """
    order = np.argsort(owner, kind="stable")
    clock = owner[order] * (2 * _DAYS * _DAY) + second[order]  # no window reaches another owner
    stop = np.searchsorted(clock, clock - delay * _DAY, side="right")
    start = np.searchsorted(clock, clock - (delay + days) * _DAY, side="right")
    running = np.concatenate([[0], value[order].cumsum()])
    count, total = np.empty_like(value), np.empty_like(value)
    count[order], total[order] = stop - start, running[stop] - running[start]
    return count, total


def _with_missing(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The table with nulls, completely at random, in the columns that have them."""
    for name, share in _MISSING.items():
        present = pa.array(rng.random(table.num_rows) >= share)
        column = pc.if_else(present, table[name], None)
        table = table.set_column(table.column_names.index(name), name, column)
    return table
