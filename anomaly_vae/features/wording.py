"""Say window features in words, for explanations."""

from __future__ import annotations

from anomaly_vae.features.definition import MICROSECONDS, WindowFeature
from anomaly_vae.messages import plain_number

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))
"""Units of time with their seconds, from the longest to the shortest."""
STATISTICS = {"sum": "total", "mean": "mean", "max": "highest", "std": "standard deviation of"}
"""Words for the statistics of a column."""


def describe(feature: WindowFeature, observed: float | None, noun: str = "event") -> str:
    """Return a noun phrase that says the value of a window feature.

    Args:
        feature: the feature.
        observed: its value; None or NaN if it is missing.
        noun: the singular of what a row is, such as "payment".

    >>> count = WindowFeature("card_count_1h", "card", "count", None, 3_600 * MICROSECONDS)
    >>> describe(count, 9.0, "payment"), describe(count, 1.0)
    ('9 payments of this card in the last hour', '1 event of this card in the last hour')
    >>> mean = WindowFeature("m", "card", "mean", "amount", 7 * 86_400 * MICROSECONDS)
    >>> describe(mean, 61.254)
    'mean amount 61.25 of this card in the last 7 days'
    >>> describe(mean, None)
    'no amount of this card in the last 7 days'
    """
    of_entity = f"of this {feature.entity}"
    value = None if observed is None or observed != observed else float(observed)  # noqa: PLR0124 NaN
    if feature.kind == "since_last" and value is not None:
        return f"{value_text(feature, value)} since the last {noun} {of_entity}"
    return f"{_amount(feature, value, noun)} {of_entity} in {_period(feature)}"


def value_text(feature: WindowFeature, value: float) -> str:
    """Return a value of a window feature with its unit.

    >>> risk = WindowFeature("card_risk_1d", "card", "risk", None, 86_400 * MICROSECONDS)
    >>> value_text(risk, 0.0625), value_text(risk, 0.0)
    ('6.25%', '0%')
    """
    if feature.kind == "risk":
        return f"{100 * value:.3g}%"
    return span(value) if feature.kind == "since_last" else plain_number(value)


def _amount(feature: WindowFeature, value: float | None, noun: str) -> str:
    """Return what was counted or measured in a window."""
    if value is None:
        return f"no {feature.column or noun}"
    match feature.kind:
        case "count":
            return f"{value:,.0f} {noun if value == 1 else f'{noun}s'}"
        case "distinct":
            return f"{value:,.0f} different {feature.column}"
        case "risk":
            return f"{value_text(feature, value)} known anomalies among the {noun}s"
    return f"{STATISTICS[feature.kind]} {feature.column} {_number(value)}"


def _number(value: float) -> str:
    return f"{value:,.2f}".removesuffix(".00") if abs(value) >= 1 else f"{value:.3g}"


def _period(feature: WindowFeature) -> str:
    """Return the words for a window, such as the last hour."""
    length = span(feature.span / MICROSECONDS).removeprefix("1 ")
    if feature.delay:
        return f"the {length} that ended {span(feature.delay / MICROSECONDS)} before"
    return f"the last {length}"


def span(seconds: float) -> str:
    """Return a length of time in words, in the longest unit that it is a multiple of.

    Other times are rounded to the longest unit that they hold twice.

    >>> span(3_600), span(90), span(100_000), span(0.25)
    ('1 hour', '90 seconds', '28 hours', '0.25 seconds')
    """
    whole = ((name, seconds // size) for name, size in UNITS[:-1] if seconds and not seconds % size)
    large = ((name, round(seconds / size)) for name, size in UNITS if seconds >= 2 * size)
    name, count = next(whole, None) or next(large, ("second", round(seconds, 3)))
    return f"{count:g} {name}{'' if count == 1 else 's'}"
