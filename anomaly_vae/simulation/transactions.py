"""Simulate card transactions with known frauds, to try the detectors on.

The simulation is a reduced version of that in Le Borgne et al., *Reproducible Machine Learning for
Credit Card Fraud Detection: Practical Handbook*, chapter 3: "Transaction data simulator" for
customers, terminals and frauds, "Baseline feature transformation" for the windows. Customers and
terminals have a location. A customer has an activity, a mean amount, an hour of the day and
preferred channels, and uses nearby terminals.

Everything is stationary: customers do not join, leave or change, all days have the same
distribution, and frauds are equally likely on every day. The rows returned follow a burn-in period
that fills the windows, so that early and late rows have the same distribution.
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
_ORIGIN: Final = np.datetime64("2024-01-01", "us")
"""Start of the simulation, a Monday."""
_BURN_IN_DAYS: Final = 49
"""Days before the returned rows: whole weeks, longer than the longest window and its delay."""
_RETURNED_DAYS: Final = 63
"""Days of the returned rows, in whole weeks."""
_DAYS: Final = _BURN_IN_DAYS + _RETURNED_DAYS

_ROWS_PER_CUSTOMER: Final = 126
"""Mean number of returned transactions per customer: 2 a day."""
_TERMINALS_PER_CUSTOMER: Final = 2
_MIN_CUSTOMERS: Final = 10
_MAX_ROWS: Final = 2_000_000
"""Maximum number of rows; more would need more terminals than a 16-bit TERMINAL_ID can number."""

_CHANNELS: Final = np.array(["chip", "contactless", "online", "atm", "mail_order"])
_CHIP, _CONTACTLESS, _ONLINE, _ATM, _MAIL_ORDER = range(5)
_SHOP, _WEB, _CASH = range(3)
"""Kinds of terminals."""
_CHANNEL_KINDS: Final = np.array([_SHOP, _SHOP, _WEB, _CASH, _WEB])
"""Kind of terminal that each channel uses."""
_TERMINAL_KINDS: Final = np.array(
    [_SHOP, _WEB, _SHOP, _CASH, _SHOP, _SHOP, _WEB, _SHOP, _WEB, _SHOP]
)
"""Kinds of ten consecutive terminals, chosen so that all terminals are about equally busy."""
_CHANNEL_AMOUNTS: Final = np.array([1.1, 0.6, 1.2, 1.5, 1.3])
"""Mean amount by channel, relative to the customer's mean amount."""
_CONTACTLESS_LIMIT: Final = 50.0
"""Amount above which a contactless payment becomes a chip payment, in units of the currency."""

_WINDOW_DAYS: Final = (1, 7, 30)
"""Lengths of the windows, in days."""
_LABEL_DELAY_DAYS: Final = 7
"""Time until a transaction is known to be genuine or a fraud, in days."""

_STOLEN_CARD_SHARE: Final = 0.0045
"""Frauds of scenario 1, as a fraction of all transactions."""
_COMPROMISED_SHARE: Final = 0.003
"""Frauds of scenario 2, as a fraction of all transactions."""
_BURST_SHARE: Final = 0.0045
"""Frauds of scenario 3, as a fraction of all transactions."""
_MAIL_FRAUD_SHARE: Final = 0.003
"""Frauds of scenario 4, as a fraction of all transactions."""

_COMPROMISED_DAYS: Final = 28
"""Time for which a terminal is compromised, in days."""
_COMPROMISED_FRAUD_RATE: Final = 0.7
"""Fraction of frauds among the transactions at a compromised terminal."""
_BURST_LENGTH: Final = 8
"""Mean number of transactions in a burst."""

_MISSING_SHARES: Final = {"TX_CHANNEL": 0.02, "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW": 0.03}
"""Fraction of missing values, by column."""


def simulate_transactions(rows: int, seed: int) -> pa.Table:
    """Simulate card transactions in time order; the same seed gives the same table.

    The columns are those of the Handbook's feature table, and `TX_CHANNEL`. `TX_DATETIME` begins
    about 2024-02-19, a Monday, and spans about 63 days for any number of rows, since there is one
    customer per 126 rows (at least 10) and two terminals per customer. Amounts are in units of the
    currency, rounded to cents.

    `CUSTOMER_ID_{NB_TX,AVG_AMOUNT}_{D}DAY_WINDOW` are the number and mean amount of the customer's
    transactions in `(t - D days, t]`, including the row itself. `TERMINAL_ID_{NB_TX,RISK}_…` are
    the number of the terminal's transactions in `(t - 7 - D days, t - 7 days]`, and the fraction
    of frauds among them (0 without transactions): labels are known after 7 days. Nights end at
    07:00.

    `TX_FRAUD` is 1 in about 1.5% of the rows. `TX_FRAUD_SCENARIO` is 0 for genuine transactions,
    and otherwise:

    1. stolen card: a payment of four to nine times the holder's mean amount;
    2. compromised terminal: for 28 days, most payments at the terminal are frauds, of two to five
       times the amount;
    3. burst: leaked card details are used for about eight payments on the web in one night;
    4. mail order: a payment by mail order with the card of a customer who never uses it, of 2.5 to
       six times the mean amount.

    `TX_CHANNEL` (chip, contactless, online, atm and, rarely, mail_order) is missing at random in 2%
    of the rows, `CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW` in 3%.

    Args:
        rows: Number of transactions, 1 to 2,000,000.
        seed: Seed of the random numbers, 0 or more.

    Raises:
        DataError: An argument is out of range.

    Example:
        >>> from anomaly_vae.simulation import simulate_transactions
        >>> table = simulate_transactions(1_000, seed=0)
        >>> table.num_rows, table.column_names[:5]
        (1000, ['TRANSACTION_ID', 'TX_DATETIME', 'CUSTOMER_ID', 'TERMINAL_ID', 'TX_AMOUNT'])
        >>> sum(table["TX_FRAUD"].to_pylist())
        7
    """
    if not 1 <= rows <= _MAX_ROWS:
        raise DataError(f"rows: expected 1 to {_MAX_ROWS:,}, got {rows:,}")
    if seed < 0:
        raise DataError(f"seed: expected a whole number from 0 up, got {seed}")
    rng = np.random.default_rng(seed)
    total = round(rows * _DAYS / _RETURNED_DAYS)
    population = _draw_population(rows, rng)
    payments = _draw_payments(population, total, rng)
    _add_frauds(payments, population, rng)
    return _remove_values(_transaction_table(payments, rows), rng)


@dataclass(frozen=True)
class _Population:
    """C customers, M terminals, and the terminals that each customer uses."""

    activity: _Floats
    """Fraction of all transactions by customer, (C,)."""
    mean_amount: _Floats
    """Mean amount by customer, (C,)."""
    hour: _Floats
    """Mean hour of the day of a customer's transactions, (C,)."""
    channel_shares: _Floats
    """Fraction of a customer's transactions by channel, (C, 5)."""
    kind: _Ints
    """Kind of each terminal, (M,)."""
    usual: tuple[_Ints, _Ints, _Ints]
    """Terminals that each customer uses, (C, K) for each kind."""

    def terminals_of_kind(self, kind: int) -> _Ints:
        """Return the terminals of this kind."""
        return np.flatnonzero(self.kind == kind)


@dataclass
class _Payments:
    """N transactions in time order; genuine ones are turned into frauds in place."""

    second: _Ints
    """Time since the origin, in seconds, (N,)."""
    customer: _Ints
    """Number of the customer, (N,)."""
    terminal: _Ints
    """Number of the terminal, (N,)."""
    channel: _Ints
    """Index of the channel in `_CHANNELS`, (N,)."""
    amount: _Floats
    """Amount, (N,)."""
    scenario: _Ints
    """Scenario of the fraud, 0 for genuine, (N,)."""


def _draw_population(rows: int, rng: np.random.Generator) -> _Population:
    customers = max(_MIN_CUSTOMERS, round(rows / _ROWS_PER_CUSTOMER))
    kind = np.resize(_TERMINAL_KINDS, _TERMINALS_PER_CUSTOMER * customers)
    activity = rng.gamma(4.0, size=customers)
    return _Population(
        activity=activity / activity.sum(),
        mean_amount=np.clip(40 * rng.lognormal(0.0, 0.5, size=customers), 8, 200),
        hour=_draw_hours(customers, rng),
        channel_shares=_draw_channel_shares(customers, rng),
        kind=kind,
        usual=_draw_usual_terminals(customers, kind, rng),
    )


def _draw_hours(customers: int, rng: np.random.Generator) -> _Floats:
    """Draw the mean hour of each customer (C,): early afternoon, or at night for one in twelve."""
    by_day = rng.normal(13.5, 2.0, size=customers)
    return np.where(rng.random(customers) < 1 / 12, by_day + 12, by_day)


def _draw_channel_shares(customers: int, rng: np.random.Generator) -> _Floats:
    """Draw the fractions of channels (C, 5); only one customer in twenty uses mail order."""
    at_a_terminal = rng.dirichlet([3.0, 4.0, 2.5, 1.0], size=customers)
    by_mail = np.where(rng.permutation(customers) % 20 == 0, 0.13, 0.0)
    return np.column_stack([at_a_terminal * (1 - by_mail[:, None]), by_mail])


def _draw_usual_terminals(
    customers: int, kind: _Ints, rng: np.random.Generator
) -> tuple[_Ints, _Ints, _Ints]:
    """Choose the 20 nearest shops, 10 random web shops and the 4 nearest cash machines."""
    homes, locations = rng.random((customers, 2)), rng.random((len(kind), 2))
    shops, webs, cash = (np.flatnonzero(kind == k) for k in (_SHOP, _WEB, _CASH))
    return (
        shops[_nearest(homes, locations[shops], 20)],
        rng.choice(webs, size=(customers, 10)),
        cash[_nearest(homes, locations[cash], 4)],
    )


def _nearest(homes: _Floats, locations: _Floats, count: int) -> _Ints:
    """Return the indices of the nearest of M locations to each of C homes, (C, min(count, M))."""
    count = min(count, len(locations))
    blocks = np.array_split(homes, -(-len(homes) // 256))  # all distances would need much memory
    return np.concatenate([_nearest_in_block(block, locations, count) for block in blocks])


def _nearest_in_block(homes: _Floats, locations: _Floats, count: int) -> _Ints:
    squared = (homes[:, :1] - locations[:, 0]) ** 2 + (homes[:, 1:] - locations[:, 1]) ** 2
    nearest = np.argpartition(squared, count - 1, axis=1)[:, :count]
    return np.sort(nearest, axis=1)  # the order within a partition depends on the processor


def _draw_payments(population: _Population, total: int, rng: np.random.Generator) -> _Payments:
    """Draw all transactions of the simulation; those in bursts are frauds already."""
    in_bursts = round(_BURST_SHARE * total)
    genuine = _draw_genuine(population, total - in_bursts, rng)
    return _in_time_order(genuine, _draw_bursts(population, in_bursts, rng))


def _draw_genuine(population: _Population, count: int, rng: np.random.Generator) -> _Payments:
    """Draw independent transactions by activity and hour: a Poisson process with a fixed count."""
    customer = rng.choice(len(population.activity), size=count, p=population.activity)
    channel = _draw_channels(population.channel_shares[customer], rng)
    of_day = np.mod(rng.normal(population.hour[customer], 3.5), 24) * _HOUR
    return _Payments(
        second=rng.integers(_DAYS, size=count) * _DAY + of_day.astype(np.int64),
        customer=customer,
        terminal=_draw_terminals(population, customer, channel, rng),
        channel=channel,
        amount=_draw_amounts(population.mean_amount[customer] * _CHANNEL_AMOUNTS[channel], rng),
        scenario=np.zeros(count, np.int64),
    )


def _draw_channels(shares: _Floats, rng: np.random.Generator) -> _Ints:
    """Draw one channel from each row of `shares` (N, 5); returns (N,)."""
    passed = shares[:, :-1].cumsum(axis=1) <= rng.random((len(shares), 1))
    channel: _Ints = passed.sum(axis=1)
    return channel


def _draw_terminals(
    population: _Population, customer: _Ints, channel: _Ints, rng: np.random.Generator
) -> _Ints:
    """Draw one of the customer's usual terminals, of the kind the channel needs; returns (N,)."""
    terminal = np.empty_like(customer)
    for kind, usual in enumerate(population.usual):
        here = np.flatnonzero(_CHANNEL_KINDS[channel] == kind)
        terminal[here] = usual[customer[here], rng.integers(usual.shape[1], size=len(here))]
    return terminal


def _draw_amounts(mean: _Floats, rng: np.random.Generator) -> _Floats:
    """Draw amounts around their `mean`; one in a hundred is a large purchase; returns (N,)."""
    large = np.where(rng.random(len(mean)) < 0.01, rng.uniform(2, 4, size=len(mean)), 1.0)
    return mean * large * rng.gamma(4.0, 1 / 4.0, size=len(mean))


def _draw_bursts(population: _Population, count: int, rng: np.random.Generator) -> _Payments:
    """Draw the frauds of scenario 3: bursts on the web, each with one card in one night."""
    bursts = max(1, round(count / _BURST_LENGTH))
    burst = rng.integers(bursts, size=count)
    customer = rng.integers(len(population.activity), size=bursts)[burst]
    night = _spread_over_days(0, _DAYS, bursts, rng) // _DAY
    begin = night * _DAY + rng.integers(4 * _HOUR, size=bursts)
    after = rng.exponential(1.5 * _HOUR, size=count).astype(np.int64)
    return _Payments(
        second=np.minimum(begin[burst] + after, _DAYS * _DAY - 1),
        customer=customer,
        terminal=rng.choice(population.terminals_of_kind(_WEB), size=count),
        channel=np.full(count, _ONLINE),
        amount=population.mean_amount[customer] * rng.lognormal(0.6, 0.7, size=count),
        scenario=np.full(count, 3),
    )


def _spread_over_days(first: int, last: int, count: int, rng: np.random.Generator) -> _Ints:
    """Draw a random time, in seconds, in each of `count` equal parts from day `first` to `last`."""
    part = (rng.permutation(count) + rng.random(count)) / count
    return ((first + (last - first) * part) * _DAY).astype(np.int64)


def _in_time_order(*parts: _Payments) -> _Payments:
    order = np.argsort(np.concatenate([part.second for part in parts]), kind="stable")
    names = [field.name for field in fields(_Payments)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return _Payments(**{name: values[order] for name, values in joined.items()})


def _add_frauds(payments: _Payments, population: _Population, rng: np.random.Generator) -> None:
    """Turn genuine transactions into frauds of scenarios 1, 2 and 4, and round the amounts."""
    _compromise_terminals(payments, population, rng)
    _use_stolen_cards(payments, population, rng)
    _order_by_mail(payments, population, rng)
    payments.amount = np.maximum(payments.amount.round(2), 0.01)
    too_much = (payments.channel == _CONTACTLESS) & (payments.amount > _CONTACTLESS_LIMIT)
    payments.channel[too_much] = _CHIP


def _use_stolen_cards(
    payments: _Payments, population: _Population, rng: np.random.Generator
) -> None:
    """Add the frauds of scenario 1: payments of several times the mean amount of the holder."""
    chosen = _choose_rows(payments.scenario == 0, _STOLEN_CARD_SHARE, rng)
    mean = population.mean_amount[payments.customer[chosen]]
    payments.scenario[chosen] = 1
    payments.amount[chosen] = mean * rng.uniform(4, 9, size=len(chosen))


def _compromise_terminals(
    payments: _Payments, population: _Population, rng: np.random.Generator
) -> None:
    """Add the frauds of scenario 2: for 28 days, most payments at a terminal are frauds.

    Terminals may be compromised before the simulation starts, so that all days are alike.
    """
    share = _COMPROMISED_SHARE / _COMPROMISED_FRAUD_RATE * (1 + _DAYS / _COMPROMISED_DAYS)
    terminals = len(population.kind)
    some = rng.choice(terminals, size=max(1, round(share * terminals)), replace=False)
    begin = np.full(terminals, _DAYS * _DAY)  # never
    begin[some] = _spread_over_days(-_COMPROMISED_DAYS, _DAYS, len(some), rng)
    age = payments.second - begin[payments.terminal]
    exposed = (payments.scenario == 0) & (age >= 0) & (age < _COMPROMISED_DAYS * _DAY)
    fraud = exposed & (rng.random(len(age)) < _COMPROMISED_FRAUD_RATE)
    payments.scenario[fraud] = 2
    payments.amount[fraud] *= rng.uniform(2, 5, size=fraud.sum())


def _order_by_mail(payments: _Payments, population: _Population, rng: np.random.Generator) -> None:
    """Add the frauds of scenario 4: mail orders with the cards of customers who never use them."""
    never = population.channel_shares[payments.customer, _MAIL_ORDER] == 0
    chosen = _choose_rows((payments.scenario == 0) & never, _MAIL_FRAUD_SHARE, rng)
    payments.scenario[chosen] = 4
    payments.channel[chosen] = _MAIL_ORDER
    payments.terminal[chosen] = rng.choice(population.terminals_of_kind(_WEB), size=len(chosen))
    mean = population.mean_amount[payments.customer[chosen]]
    payments.amount[chosen] = mean * rng.uniform(2.5, 6, size=len(chosen))


def _choose_rows(eligible: NDArray[np.bool_], share: float, rng: np.random.Generator) -> _Ints:
    """Draw rows among the `eligible` (N,), as many as `share` of all N rows; returns indices."""
    return rng.choice(np.flatnonzero(eligible), size=round(share * len(eligible)), replace=False)


def _transaction_table(payments: _Payments, rows: int) -> pa.Table:
    """Return the last `rows` transactions, with windows computed over all transactions."""
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
    """Return the number and mean amount of the customer's transactions in each window, (N,)."""
    cents = (payments.amount * 100).round().astype(np.int64)  # integers, so that sums are exact
    columns: dict[str, NDArray[np.generic]] = {}
    for days in _WINDOW_DAYS:
        count, total = _sum_window(payments.customer, payments.second, cents, days, delay=0)
        columns[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = count.astype(np.float32)
        mean = total / count / 100
        columns[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = mean.astype(np.float32)
    return columns


def _terminal_windows(payments: _Payments) -> dict[str, NDArray[np.generic]]:
    """Return the number and fraud rate of the terminal's labelled transactions, (N,)."""
    fraud = (payments.scenario > 0).astype(np.int64)
    columns: dict[str, NDArray[np.generic]] = {}
    for days in _WINDOW_DAYS:
        count, frauds = _sum_window(
            payments.terminal, payments.second, fraud, days, delay=_LABEL_DELAY_DAYS
        )
        columns[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"] = count.astype(np.float32)
        risk = frauds / np.maximum(count, 1)
        columns[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"] = risk.astype(np.float32)
    return columns


def _sum_window(
    owner: _Ints, second: _Ints, value: _Ints, days: int, delay: int
) -> tuple[_Ints, _Ints]:
    """Count the owner's rows in `(t - delay - days, t - delay]` and sum their `value`, (N,) each.

    The rows must be in time order; `days` and `delay` are in days.
    """
    order = np.argsort(owner, kind="stable")
    clock = (
        owner[order] * (2 * _DAYS * _DAY) + second[order]
    )  # windows do not overlap with other owners
    stop = np.searchsorted(clock, clock - delay * _DAY, side="right")
    start = np.searchsorted(clock, clock - (delay + days) * _DAY, side="right")
    running = np.concatenate([[0], value[order].cumsum()])
    count, total = np.empty_like(value), np.empty_like(value)
    count[order], total[order] = stop - start, running[stop] - running[start]
    return count, total


def _remove_values(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Replace values by nulls completely at random, in the columns that have missing values."""
    for name, share in _MISSING_SHARES.items():
        present = pa.array(rng.random(table.num_rows) >= share)
        column = pc.if_else(present, table[name], None)
        table = table.set_column(table.column_names.index(name), name, column)
    return table
