"""Recognise columns of whole numbers that name things, such as merchants, rather than measure."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc


def words(text: str) -> frozenset[str]:
    """Return the set of words of a text.

    >>> sorted(words("id code"))
    ['code', 'id']
    """
    return frozenset(text.split())


NAMING = words(
    "id ids uid uuid guid code codes mcc mnc mcccode sic naics zip zipcode postcode postal plz "
    "postleitzahl iban bic bin account acct konto kontonummer card pan phone telephone tel mobile "
    "msisdn imei imsi ean upc gtin isbn sku ssn key pk fk serial terminal merchant customer "
    "client user device store branch kundennummer ref reference identifier ident kennung"
)
"""Words in the names of columns whose numbers name things."""
NUMBERING = words("number no nr num nbr nummer numero")
"""Words that mean a name if they end the name of a column, as in account_no."""
MEASURING = words(
    "amount amt sum total count cnt n nb num avg average mean median min max std var ratio rate "
    "share pct percent percentage score age day days hour hours minute minutes second seconds "
    "week weeks month months year years duration time timestamp date balance price cost costs fee "
    "fees value qty quantity limit income salary size length len width height weight distance "
    "dist lat lon freq frequency risk diff delta since per of window volume turnover revenue "
    "points level rank index velocity tenure spend spent paid budget change"
)
"""Words in the names of columns whose numbers measure or count."""
JOINED = re.compile(
    r"(merchant|customer|cust|card|account|acct|terminal|user|client|device|store|shop|branch|order"
    r"|invoice|transaction|trans|tx|txn|product|prod|item|employee|emp|session|phone|zip|post|bank"
    r"|country|city|state|area|region|location|loc|member|policy|patient|vendor|supplier|group)"
    r"(id|code|no|nr|num|number|key|nummer)"
)
"""Pattern of a word such as customerid, which names things."""
LONG = 9
"""Smallest number of digits of numbers that name things because all have the same length."""
MIN_VALUES = 20
"""Smallest number of values by which numbers are judged without a name."""


def seems_to_name_things(name: str, values: pa.Array) -> bool:
    """Return whether numbers (N,), without missing values, seem to name things.

    They do if they are whole and the column is named so, or if all have the same length of nine or
    more digits, unless the name of the column says that they measure something.

    >>> seems_to_name_things("merchantId", pa.array([7, 12, 7]))
    True
    >>> seems_to_name_things("card_count", pa.array([7, 12, 7]))
    False
    """
    if _measures(_split(name)) or not _are_whole(values):
        return False
    return named_like_things(name) or _have_one_length(values)


def named_like_things(name: str) -> bool:
    """Return whether the name of a column says that its numbers name things.

    >>> named_like_things("account_no"), named_like_things("no_of_accounts")
    (True, False)
    """
    parts = _split(name)
    naming = bool(NAMING.intersection(parts)) or any(map(JOINED.fullmatch, parts))
    return not _measures(parts) and (naming or NUMBERING.issuperset(parts[-1:] or [""]))


def _measures(parts: list[str]) -> bool:
    return bool(MEASURING.intersection(parts[:-1]) or (MEASURING - NUMBERING).intersection(parts))


def _split(name: str) -> list[str]:
    """Split a name at delimiters, changes of case and digits, into lower-case words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", spaced)]


def _are_whole(values: pa.Array) -> bool:
    if pa.types.is_integer(values.type):
        return True
    return bool(pc.all(pc.equal(pc.floor(values), values)).as_py())


def _have_one_length(values: pa.Array) -> bool:
    extremes = pc.min_max(values).as_py()
    low, high = int(extremes["min"]), int(extremes["max"])
    same = low > 0 and len(str(low)) == len(str(high)) >= LONG
    return same and len(values) >= MIN_VALUES and high > low
